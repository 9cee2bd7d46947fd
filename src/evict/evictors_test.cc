#include <memory>
#include <set>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "evict/naive_cache_test_util.h"
#include "evict/registry.h"
#include "evict/simulate.h"

namespace pith::evict {
namespace {

uint64_t Hits(const std::string& policy, const Trace& trace, uint64_t capacity, bool with_ttl) {
  const auto evictor = MakeEvictor(policy, {capacity, trace.num_objects(), &trace});
  EXPECT_TRUE(evictor) << evictor.error().message;
  if (!evictor) return 0;
  Tally tally;
  (*evictor)->Replay(trace, with_ttl, tally);
  EXPECT_EQ(tally.requests, trace.num_accesses());
  return tally.hits;
}

TEST(Evictors, HitAsOftenAsCachesThatLookAtEverything) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    const Trace sized = RandomTrace(seed, 600, 40, 1 + static_cast<uint32_t>(seed % 3) * 20);
    const Trace uniform = RandomTrace(seed, 600, 40, 1);
    const Trace prompts = RandomPrompts(seed, 120);
    for (const char* policy : {"fifo", "lru", "lfu", "gdsf", "gdsf-admit", "sieve", "belady-size", "belady"}) {
      const bool blocks_only = std::string(policy) == "belady";
      for (const uint64_t capacity : {uint64_t{5}, uint64_t{17}, uint64_t{60}, uint64_t{333}}) {
        SCOPED_TRACE(fmt::format("{}, seed {}, capacity {}", policy, seed, capacity));
        const Trace& trace = blocks_only ? uniform : sized;
        for (const bool ttl : {false, true}) {
          EXPECT_EQ(Hits(policy, trace, capacity, ttl), NaiveCache(policy, capacity, trace).Hits(ttl)) << ttl;
        }
        EXPECT_EQ(Hits(policy, prompts, capacity, false), NaiveCache(policy, capacity, prompts).Hits(false));
      }
    }
  }
}

// What libCacheSim 0.3.5 (PyPI) says of a trace that anyone can compute: request i is for block
// i * i * i % 101 % (7 + i / 50). S3-FIFO by the paper's rule, which it does not have, gives the same there.
TEST(Evictors, HitAsOftenAsAnotherSimulatorSays) {
  Trace trace;
  std::vector<uint32_t> dense(200, kNever);
  for (uint64_t i = 0; i < 2000; ++i) {
    const auto id = static_cast<size_t>(i * i * i % 101 % (7 + i / 50));
    if (dense[id] == kNever) {
      dense[id] = static_cast<uint32_t>(trace.ids.size());
      trace.ids.push_back(id);
    }
    trace.object.push_back(dense[id]);
    trace.size.push_back(1);
    trace.time.push_back(static_cast<double>(i));
  }
  ASSERT_TRUE(trace.Finish());
  struct Row {
    const char* policy;
    uint64_t hits;
  };
  for (const Row& row : {Row{"lru", 1410}, Row{"lfu", 1549}, Row{"sieve", 1455}, Row{"arc", 1403},
                         Row{"s3fifo-cold", 1409}, Row{"s3fifo", 1409}, Row{"belady", 1723}}) {
    EXPECT_EQ(Hits(row.policy, trace, 20, false), row.hits) << row.policy;
  }
}

// Whatever an evictor does: what it says it stores fits, victims were stored and are no more, and the same requests
// give the same hits.
TEST(Evictors, KeepTheirPromises) {
  const Trace sized = RandomTrace(3, 4000, 200, 30);
  const Trace uniform = RandomTrace(4, 4000, 200, 1);
  const Trace prompts = RandomPrompts(5, 800);
  for (const PolicyInfo& info : ListPolicies()) {
    for (const Trace* trace : {&sized, &uniform, &prompts}) {
      for (const uint64_t capacity : {uint64_t{1}, uint64_t{40}, uint64_t{700}}) {
        SCOPED_TRACE(fmt::format("{} {}", info.name, capacity));
        const auto made = MakeEvictor(info.name, {capacity, trace->num_objects(), trace});
        if (!made) {
          EXPECT_EQ(made.error().code, ErrorCode::kUnsupported) << made.error().message;
          continue;
        }
        Evictor& evictor = **made;
        std::vector<uint32_t> victims;
        evictor.RecordVictims(&victims);
        std::set<uint32_t> stored;
        size_t prompt = 0;
        for (uint32_t i = 0; i < trace->num_accesses(); ++i) {
          const Access access = trace->AtNext(i, prompt);
          const bool hit = evictor.Contains(access.object);
          ASSERT_EQ(hit, stored.count(access.object) == 1);
          hit ? evictor.OnHit(access) : evictor.OnMiss(access);
          stored.insert(access.object);
          for (const uint32_t victim : victims) ASSERT_EQ(stored.erase(victim), 1u);
          victims.clear();
          if (!evictor.Contains(access.object)) stored.erase(access.object);
          uint64_t bytes = 0;
          for (const uint32_t object : stored) {
            ASSERT_TRUE(evictor.Contains(object));
            bytes += trace == &sized ? 0 : 1;
          }
          if (trace != &sized) {
            ASSERT_EQ(evictor.used_bytes(), bytes);
          }
          ASSERT_LE(evictor.used_bytes(), capacity);
          if (i % 97 == 0 && !stored.empty()) {
            evictor.Erase(*stored.begin());
            ASSERT_FALSE(evictor.Contains(*stored.begin()));
            stored.erase(stored.begin());
          }
        }
        EXPECT_EQ(Hits(std::string(info.name), *trace, capacity, true),
                  Hits(std::string(info.name), *trace, capacity, true));
      }
    }
  }
}

// On a Zipf-like trace with a scan through it, each beats random luck and none beats the optimum.
TEST(Evictors, StandBetweenFifoAndTheOptimum) {
  const Trace trace = RandomTrace(9, 20000, 500, 1);
  const uint64_t best = Hits("belady", trace, 60, false);
  for (const PolicyInfo& info : ListPolicies()) {
    const std::string name(info.name);
    const uint64_t hits = Hits(name, trace, 60, false);
    EXPECT_LE(hits, best) << name;
    EXPECT_GE(static_cast<double>(hits), 0.97 * static_cast<double>(Hits("fifo", trace, 60, false))) << name;
  }
}

TEST(Evictors, NamesAndParametersAreChecked) {
  const Trace trace = RandomTrace(1, 10, 5, 1);
  const evict::Setup setup{3, trace.num_objects(), &trace};
  const auto message = [&](const char* text) {
    const auto made = MakeEvictor(text, setup);
    EXPECT_FALSE(made) << text;
    return made ? "" : made.error().message;
  };
  EXPECT_NE(message("lur").find("there is no policy \"lur\"; choose from fifo, lru"), std::string::npos);
  EXPECT_EQ(message("lru:seed=1"), "lru has no parameter \"seed\"");
  EXPECT_EQ(message("lhd:seed"), "\"seed\" is no parameter of the form name=value");
  EXPECT_EQ(message("lhd:seed=1,seed=2"), "the parameter seed is given twice");
  EXPECT_EQ(message("mark0:flip=2"), "flip=2 is no number between 0 and 1");
  EXPECT_EQ(message("mark0:bits=some"), "bits=some is none of perfect, learned, zero, one");
}

// Those that must see a trace first say so; all others serve requests that nobody knows before they come.
TEST(Evictors, WithoutATraceServeOrSayThatTheyNeedOne) {
  const std::set<std::string> needing = {"arc", "belady", "belady-size", "fwa0", "mark0", "mnp"};
  const Trace trace = RandomTrace(7, 500, 50, 1);
  for (const PolicyInfo& info : ListPolicies()) {
    const std::string name(info.name);
    const auto made = MakeEvictor(name, {20, trace.num_objects(), nullptr});
    if (needing.contains(name)) {
      ASSERT_FALSE(made) << name;
      EXPECT_EQ(made.error().code, ErrorCode::kUnsupported);
      EXPECT_NE(made.error().message.find("trace"), std::string::npos) << made.error().message;
      continue;
    }
    ASSERT_TRUE(made) << name << ": " << made.error().message;
    uint64_t hits = 0;
    for (size_t i = 0; i < trace.num_accesses(); ++i) {
      const Access access = trace.At(i);
      const bool hit = (*made)->Contains(access.object);
      hits += hit;
      hit ? (*made)->OnHit(access) : (*made)->OnMiss(access);
    }
    EXPECT_EQ(hits, Hits(name, trace, 20, false)) << name;
  }
}

TEST(Simulate, ThreadsDoNotChangeResults) {
  const Trace trace = RandomTrace(2, 5000, 300, 9);
  SimulateOptions options;
  options.policies = {"lru", "gdsf", "lhd"};
  options.capacities = CurveCapacities(trace, 9);
  ASSERT_EQ(options.capacities.size(), 9u);
  EXPECT_EQ(options.capacities.back(), trace.footprint_bytes());
  const auto one = Simulate(trace, options);
  options.num_threads = 4;
  const auto four = Simulate(trace, options);
  ASSERT_TRUE(one && four);
  ASSERT_EQ(one->size(), 27u);
  for (size_t i = 0; i < one->size(); ++i) {
    EXPECT_EQ((*one)[i].tally.hits, (*four)[i].tally.hits);
    EXPECT_EQ((*one)[i].tally.hit_bytes, (*four)[i].tally.hit_bytes);
    EXPECT_EQ((*one)[i].capacity, (*four)[i].capacity);
  }
  // With room for all, only first requests miss.
  for (const size_t last : {8u, 17u}) EXPECT_EQ((*one)[last].tally.hits, trace.num_accesses() - trace.num_objects());
  options.policies = {"lru", "belady"};
  const auto refused = Simulate(trace, options);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kUnsupported);
}

}  // namespace
}  // namespace pith::evict
