// Caches written for their words, not for speed: what evictors are compared with. Each is a list of objects, newest
// first, and looks at all of it for every victim.
#ifndef PITH_EVICT_NAIVE_CACHE_TEST_UTIL_H_
#define PITH_EVICT_NAIVE_CACHE_TEST_UTIL_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "evict/random.h"
#include "evict/trace.h"

namespace pith::evict {

struct NaiveCache {
  struct Item {
    uint32_t object;
    uint64_t size;
    uint64_t stored;
    uint64_t used;
    uint64_t count;
    double priority;
    uint32_t next;
    bool visited;
  };

  NaiveCache(std::string policy_name, uint64_t bytes, const Trace& of)
      : policy(std::move(policy_name)), capacity(bytes), trace(of) {}

  Item* Find(uint32_t object) {
    for (Item& item : items) {
      if (item.object == object) return &item;
    }
    return nullptr;
  }
  uint64_t Used() const {
    uint64_t used = 0;
    for (const Item& item : items) used += item.size;
    return used;
  }
  double Priority(const Item& item) const {
    return age + static_cast<double>(item.count) * 1e6 / static_cast<double>(item.size);
  }

  // True: item a goes before b.
  bool Worse(const Item& a, const Item& b, uint32_t now) const {
    if (policy == "fifo") return a.stored < b.stored;
    if (policy == "lru") return a.used < b.used;
    if (policy == "lfu") return a.count != b.count ? a.count < b.count : a.used < b.used;
    if (policy.starts_with("gdsf")) return a.priority != b.priority ? a.priority < b.priority : a.used < b.used;
    const uint64_t id_a = trace.ids[a.object];
    const uint64_t id_b = trace.ids[b.object];
    if (policy == "belady") return a.next != b.next ? a.next > b.next : id_a > id_b;
    // belady-size
    const auto distance = [&](const Item& item) {
      const unsigned __int128 far = item.next == kNever ? uint64_t{1} << 40 : item.next - now;
      return far * item.size;
    };
    return distance(a) != distance(b) ? distance(a) > distance(b) : id_a < id_b;
  }

  void EvictOne(uint32_t now) {
    auto worst = items.begin();
    if (policy == "sieve") {
      // The hand is an object, or the oldest when it fell off the new end.
      auto at = std::find_if(items.begin(), items.end(), [&](const Item& item) { return item.object == hand; });
      if (at == items.end()) at = items.end() - 1;
      while (at->visited) {
        at->visited = false;
        at = at == items.begin() ? items.end() - 1 : at - 1;
      }
      hand = at == items.begin() ? kNever : (at - 1)->object;
      worst = at;
    } else {
      for (auto item = items.begin(); item != items.end(); ++item) {
        if (Worse(*item, *worst, now)) worst = item;
      }
    }
    age = worst->priority;
    items.erase(worst);
  }

  void Access(uint32_t object, uint64_t size, uint32_t next, uint32_t now) {
    ++clock;
    if (Item* item = Find(object)) {
      item->used = clock;
      item->visited = true;
      item->next = next;
      ++item->count;
      item->priority = Priority(*item);
      return;
    }
    if (size > capacity) return;
    const bool admit = policy == "gdsf-admit";
    while (!admit && Used() + size > capacity) EvictOne(now);
    items.insert(items.begin(), {object, size, clock, clock, 1, 0, next, false});
    items.front().priority = Priority(items.front());
    while (Used() > capacity) EvictOne(now);
  }

  void Erase(uint32_t object) {
    const auto at = std::find_if(items.begin(), items.end(), [&](const Item& item) { return item.object == object; });
    if (hand == object) hand = at == items.begin() ? kNever : (at - 1)->object;
    items.erase(at);
  }

  uint64_t Hits(bool with_ttl) {
    uint64_t hits = 0;
    if (trace.has_prompts()) {
      for (uint32_t p = 0; p < trace.prompts.size(); ++p) {
        uint32_t i = trace.end_of(p);
        for (; i > trace.prompts[p].first && Find(trace.object[i - 1]) != nullptr; --i) ++hits;
        for (i = trace.prompts[p].first; i < trace.end_of(p); ++i) Access(trace.object[i], 1, trace.next[i], p);
      }
      return hits;
    }
    std::map<uint32_t, double> stored_at;
    for (uint32_t i = 0; i < trace.num_accesses(); ++i) {
      const uint32_t object = trace.object[i];
      if (with_ttl && Find(object) != nullptr && trace.time[i] > stored_at[object] + double{trace.ttl[i]})
        Erase(object);
      if (Find(object) != nullptr) {
        ++hits;
      } else {
        stored_at[object] = trace.time[i];
      }
      Access(object, trace.size[i], trace.next[i], i);
    }
    return hits;
  }

  std::string policy;
  uint64_t capacity;
  const Trace& trace;
  std::vector<Item> items;  // newest first
  uint64_t clock = 0;
  double age = 0;
  uint32_t hand = kNever;
};

// Requests for `objects` objects, the popular ones often, with sizes up to max_size and TTLs of a few requests.
inline Trace RandomTrace(uint64_t seed, size_t requests, uint32_t objects, uint32_t max_size) {
  Random random(seed);
  Trace trace;
  std::vector<uint64_t> sizes;
  for (uint32_t i = 0; i < objects; ++i) {
    sizes.push_back(1 + random.Below(max_size));
    trace.ids.push_back(random.Next() % 100000 * objects + i);
  }
  std::map<uint32_t, uint32_t> dense;
  std::vector<uint64_t> ids;
  for (size_t i = 0; i < requests; ++i) {
    const double u = random.Uniform();
    const auto which = static_cast<uint32_t>(u * u * objects);
    const auto [at, fresh] = dense.emplace(which, static_cast<uint32_t>(dense.size()));
    if (fresh) ids.push_back(trace.ids[which]);
    trace.object.push_back(at->second);
    trace.size.push_back(sizes[which]);
    trace.time.push_back(static_cast<double>(i));
    trace.ttl.push_back(static_cast<float>(5 + which % 40));
  }
  trace.ids = ids;
  EXPECT_TRUE(trace.Finish());
  return trace;
}

// Prompts that share beginnings: paths in a random tree.
inline Trace RandomPrompts(uint64_t seed, size_t prompts) {
  Random random(seed);
  Trace trace;
  std::map<std::pair<uint32_t, uint32_t>, uint32_t> children;
  for (size_t p = 0; p < prompts; ++p) {
    std::vector<uint32_t> chain;
    uint32_t parent = kNever;
    const uint32_t depth = 1 + random.Below(8);
    for (uint32_t d = 0; d < depth; ++d) {
      const auto key = std::make_pair(parent, random.Below(1 + d));
      parent = children.emplace(key, static_cast<uint32_t>(children.size())).first->second;
      chain.push_back(parent);
    }
    trace.prompts.push_back({static_cast<uint32_t>(trace.object.size()), depth * 512, 100, static_cast<double>(p)});
    for (size_t i = chain.size(); i-- > 0;) {
      trace.object.push_back(chain[i]);
      trace.size.push_back(1);
      trace.time.push_back(static_cast<double>(p));
    }
  }
  for (uint32_t i = 0; i < children.size(); ++i) trace.ids.push_back(1000 - i);
  EXPECT_TRUE(trace.Finish());
  return trace;
}

}  // namespace pith::evict

#endif  // PITH_EVICT_NAIVE_CACHE_TEST_UTIL_H_
