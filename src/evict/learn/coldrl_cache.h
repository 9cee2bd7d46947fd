// A cache that asks at each forced eviction which of a few objects shall go.
#ifndef PITH_EVICT_LEARN_COLDRL_CACHE_H_
#define PITH_EVICT_LEARN_COLDRL_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "evict/learn/coldrl.h"
#include "evict/object_lists.h"
#include "evict/registry.h"
#include "evict/trace.h"

namespace pith::evict {

struct ColdRlCacheOptions {
  size_t candidates = 16;
  // The candidates are the least recently used objects, as in the paper; else the next ones that a hand meets, which
  // walks from them to the newest and begins anew: what is worth keeping is then not asked about each time.
  bool from_tail = false;
};

class ColdRlCache {
 public:
  ColdRlCache(size_t num_objects, uint64_t capacity, const ColdRlCacheOptions& options)
      : capacity_(capacity), options_(options), lists_(num_objects, 1), objects_(num_objects) {}

  bool Contains(uint32_t object) const { return lists_.ListOf(object) != 0; }
  uint64_t used_bytes() const { return lists_.bytes(kStored); }
  uint64_t stored() const { return lists_.count(kStored); }
  bool Expired(const Access& access) const { return access.time > objects_[access.object].expires; }
  // Of a stored object, since it was stored; and the moment of its next request, or kNever.
  uint32_t hits(uint32_t object) const { return objects_[object].hits; }
  uint32_t next(uint32_t object) const { return objects_[object].next; }

  void Hit(const Access& access) {
    Object& object = objects_[access.object];
    object.last = access.time;
    object.next = access.next;
    ++object.hits;
    if (hand_ == access.object) hand_ = lists_.TowardsHead(hand_);
    lists_.MoveToHead(access.object);
  }

  // decide(time, candidates, which, count, order) orders at least two, or says no: the least recently used go then.
  // left(object): it was evicted.
  template <typename Decide, typename Left>
  void Miss(const Access& access, Decide&& decide, Left&& left) {
    if (access.size > capacity_) return;
    while (used_bytes() + access.size > capacity_ && Choose(access, decide, left) && !options_.from_tail) continue;
    while (used_bytes() + access.size > capacity_) {
      const uint32_t oldest = lists_.tail(kStored);
      Remove(oldest);
      left(oldest);
    }
    objects_[access.object] = {access.time, access.time, access.time + static_cast<double>(access.ttl),
                               access.rtt,  0,           access.next};
    lists_.PushHead(kStored, access.object, access.size);
  }

  void Remove(uint32_t object) {
    if (hand_ == object) hand_ = lists_.TowardsHead(object);
    lists_.Remove(object);
  }

 private:
  static constexpr uint32_t kStored = 1;
  struct Object {
    double created = 0;
    double last = 0;
    double expires = 0;
    float rtt = 0;
    uint32_t hits = 0;
    uint32_t next = kNever;
  };

  // False: too few to choose from, or nobody who chooses.
  template <typename Decide, typename Left>
  bool Choose(const Access& access, Decide&& decide, Left&& left) {
    uint32_t which[ColdRl::kMostCandidates];
    ColdRlCandidate candidates[ColdRl::kMostCandidates];
    size_t count = 0;
    uint32_t at = options_.from_tail || hand_ == kNoObject ? lists_.tail(kStored) : hand_;
    for (; at != kNoObject && count < options_.candidates; at = lists_.TowardsHead(at), ++count) {
      const Object& object = objects_[at];
      which[count] = at;
      candidates[count] = {access.time - object.created, static_cast<double>(lists_.SizeOf(at)),
                           static_cast<double>(object.hits), access.time - object.last,
                           object.expires - access.time, object.rtt};
    }
    hand_ = at;
    if (count < 2) return stored() >= 2;  // the hand is at the newest one, and begins anew
    uint32_t order[ColdRl::kMostCandidates];
    if (!decide(access.time, candidates, which, count, order)) return false;
    // The hand goes on to others rather than take what is worth keeping.
    const size_t most = options_.from_tail ? count : (count + 3) / 4;
    for (size_t c = 0; c < most && used_bytes() + access.size > capacity_; ++c) {
      Remove(which[order[c]]);
      left(which[order[c]]);
    }
    return true;
  }

  const uint64_t capacity_;
  const ColdRlCacheOptions options_;
  ObjectLists lists_;
  std::vector<Object> objects_;
  uint32_t hand_ = kNoObject;
};

// The evictor, of a network in this process.
std::unique_ptr<Evictor> MakeColdRlWith(const Setup& setup, Model model, const ColdRlCacheOptions& options,
                                        bool per_byte);

// A cache that a trace passes, with a listener for what it asks:
//   void Decide(double time, const ColdRlCandidate*, const uint32_t* which, size_t count, uint32_t* order);
//   void Left(uint32_t object);   evicted or expired
template <typename Listener>
class ColdRlReplay {
 public:
  ColdRlReplay(const Trace& trace, uint64_t capacity, const ColdRlCacheOptions& options, bool with_ttl,
               Listener& listener)
      : trace_(trace), with_ttl_(with_ttl), listener_(listener), cache_(trace.num_objects(), capacity, options) {}

  // Accesses up to `end`, from where the last call ended. Returns its hits.
  uint64_t Run(size_t end) {
    uint64_t hits = 0;
    for (; at_ < end; ++at_) hits += Serve(trace_.AtNext(at_, prompt_));
    return hits;
  }
  double time() const { return time_; }
  const ColdRlCache& cache() const { return cache_; }

 private:
  bool Serve(const Access& access) {
    time_ = access.time;
    if (cache_.Contains(access.object)) {
      if (!with_ttl_ || !cache_.Expired(access)) {
        cache_.Hit(access);
        return true;
      }
      cache_.Remove(access.object);
      listener_.Left(access.object);
    }
    cache_.Miss(
        access, [this](auto... of) { return listener_.Decide(of...), true; },
        [this](uint32_t gone) { listener_.Left(gone); });
    return false;
  }

  const Trace& trace_;
  const bool with_ttl_;
  Listener& listener_;
  ColdRlCache cache_;
  size_t at_ = 0;
  size_t prompt_ = 0;
  double time_ = 0;
};

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_COLDRL_CACHE_H_
