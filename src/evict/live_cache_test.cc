#include "evict/live_cache.h"

#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/check.h"
#include "evict/naive_cache_test_util.h"
#include "evict/pith_evict.h"
#include "evict/random.h"

namespace {

thread_local uint64_t num_allocations = 0;

}  // namespace

// Every `new` of this program passes through here, and none is compiled away.
__attribute__((noinline)) void* operator new(size_t bytes) {
  ++num_allocations;
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  PITH_CHECK(memory != nullptr);
  return memory;
}
__attribute__((noinline)) void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  ++num_allocations;
  return std::malloc(bytes == 0 ? 1 : bytes);
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace pith::evict {
namespace {

LiveKey KeyOf(uint64_t object) {
  Random random(object);
  return {random.Next(), random.Next()};
}

LiveRequest RequestOf(const Access& access) {
  LiveRequest request;
  request.key = KeyOf(access.object);
  request.size = access.size;
  request.time = access.time;
  request.ttl = access.ttl;
  request.rtt = access.rtt;
  return request;
}

std::vector<std::string> LivePolicies() {
  std::vector<std::string> names;
  for (const PolicyInfo& info : ListPolicies()) {
    if (MakeEvictor(info.name, {10, 2, nullptr})) names.emplace_back(info.name);
  }
  return names;
}

std::unique_ptr<LiveCache> Make(const LiveCache::Options& options) {
  auto made = LiveCache::Create(options);
  EXPECT_TRUE(made) << made.error().message;
  return made ? std::move(*made) : nullptr;
}

// A naive cache that holds what was asked for and drops what it is told to drop.
struct Follower {
  std::map<LiveKey, uint64_t> sizes;
  uint64_t hits = 0;

  void Ask(LiveCache& cache, const LiveRequest& request) {
    const bool here = sizes.count(request.key) == 1;
    EXPECT_EQ(cache.Contains(request.key), here);
    EXPECT_EQ(cache.Request(request), here && !request.fetched);
    hits += here;
    sizes[request.key] = request.size;
    while (const auto victim = cache.NextVictim()) EXPECT_EQ(sizes.erase(*victim), 1u);
  }
  uint64_t bytes() const {
    uint64_t sum = 0;
    for (const auto& [key, size] : sizes) sum += size;
    return sum;
  }
};

TEST(LiveCache, HitsAsOftenAsTheReplayOfATrace) {
  const Trace trace = RandomTrace(5, 6000, 300, 20);
  const std::vector<std::string> policies = LivePolicies();
  ASSERT_GE(policies.size(), 10u);
  for (const std::string& policy : policies) {
    SCOPED_TRACE(policy);
    const auto evictor = MakeEvictor(policy, {800, trace.num_objects(), nullptr});
    ASSERT_TRUE(evictor);
    const auto cache = Make({policy, 800, static_cast<uint32_t>(trace.num_objects())});
    uint64_t hits = 0;
    uint64_t live_hits = 0;
    for (size_t i = 0; i < trace.num_accesses(); ++i) {
      // An object of another size is another object, to a cache that holds real ones.
      Access access = trace.At(i);
      access.size = 1 + access.object % 20;
      const bool hit = (*evictor)->Contains(access.object);
      hits += hit;
      hit ? (*evictor)->OnHit(access) : (*evictor)->OnMiss(access);
      live_hits += cache->Request(RequestOf(access));
      ASSERT_EQ(cache->used_bytes(), (*evictor)->used_bytes());
    }
    EXPECT_GT(hits, 0u);
    EXPECT_EQ(live_hits, hits);
  }
}

// Far more objects than numbers, of changing sizes, some erased, some fetched again: whoever does as it is told holds
// what the cache says, within its capacity.
TEST(LiveCache, WhoeverDoesAsItSaysHoldsWhatItHolds) {
  for (const std::string& policy : LivePolicies()) {
    for (const uint32_t most_objects : {2u, 7u, 90u, 2000u}) {
      SCOPED_TRACE(policy + " " + std::to_string(most_objects));
      const auto cache = Make({policy, 700, most_objects, 5000});
      Follower follower;
      Random random(most_objects);
      for (int i = 0; i < 12000; ++i) {
        const double skew = random.Uniform();
        LiveRequest request;
        request.key = KeyOf(static_cast<uint64_t>(1500 * skew * skew * skew) + (i > 6000 ? 700 : 0));
        request.size = 1 + (random.Below(50) == 0 ? random.Below(900) : request.key[0] % 40);
        request.time = i;
        request.fetched = random.Below(30) == 0;
        follower.Ask(*cache, request);
        if (i % 61 == 0 && !follower.sizes.empty()) {
          const LiveKey gone = follower.sizes.begin()->first;
          cache->Erase(gone);
          follower.sizes.erase(gone);
        }
        ASSERT_EQ(cache->used_bytes(), follower.bytes()) << i;
        ASSERT_LE(follower.bytes(), 700u);
        if (testing::Test::HasFailure()) return;
      }
      if (most_objects >= 90) {
        EXPECT_GT(follower.hits, 1000u);
      }
    }
  }
}

TEST(LiveCache, WhatIsRememberedOfAKeyIsNotTrueOfTheNextOne) {
  // s3fifo: a ghost that is asked for again goes to main, from where a scan does not drive it out.
  const auto cache = Make({"s3fifo", 100, 40});
  const auto ask = [&](uint64_t object) {
    LiveRequest request;
    request.key = KeyOf(object);
    request.size = 5;
    cache->Request(request);
    while (cache->NextVictim()) {
    }
  };
  for (uint64_t object = 0; object < 1000; ++object) ask(object);
  // All numbers of ghosts have changed hands many times: none of the newest 19 is in main.
  for (uint64_t object = 2000; object < 2020; ++object) ask(object);
  for (uint64_t object = 0; object < 2000; ++object) EXPECT_FALSE(cache->Contains(KeyOf(object))) << object;
}

TEST(LiveCache, GoesOnWhenRequestNumbersRunOut) {
  for (const std::string& policy : LivePolicies()) {
    const auto cache = Make({policy, 100, 64, 100});
    uint64_t hits = 0;
    for (int i = 0; i < 1000; ++i) {
      LiveRequest request;
      request.key = KeyOf(static_cast<uint64_t>(i % 15));
      request.size = 5;
      hits += cache->Request(request);
      while (cache->NextVictim()) {
      }
    }
    // Fifteen objects of 5 bytes fit: only first requests miss, but where a policy's queues are smaller than all.
    EXPECT_GE(hits, 900u) << policy;
  }
}

TEST(LiveCache, RequestsAllocateNothing) {
  for (const std::string& policy : LivePolicies()) {
    const uint64_t at_first = num_allocations;
    const auto cache = Make({policy, 700, 300});
    EXPECT_GT(num_allocations, at_first);
    Random random(1);
    const uint64_t before = num_allocations;
    uint64_t victims = 0;
    for (int i = 0; i < 20000; ++i) {
      LiveRequest request;
      request.key = {random.Below(20) == 0 ? random.Next() : random.Below(100), 1};
      request.size = 1 + request.key[0] % 40;
      request.time = i;
      cache->Request(request);
      while (cache->NextVictim()) ++victims;
    }
    EXPECT_EQ(num_allocations, before) << policy;
    EXPECT_GT(victims, 100u) << policy;
  }
}

TEST(PithEvict, SaysWhyItCannotBeOpened) {
  char error[200] = "";
  EXPECT_EQ(pith_evictor_open("belady", 100, 10, error, sizeof error), nullptr);
  EXPECT_NE(std::strstr(error, "trace"), nullptr) << error;
  EXPECT_EQ(pith_evictor_open("lur", 100, 10, error, sizeof error), nullptr);
  EXPECT_NE(std::strstr(error, "no policy \"lur\""), nullptr) << error;
  EXPECT_EQ(pith_evictor_open("coldrl:model=/nowhere", 100, 10, error, sizeof error), nullptr);
  EXPECT_NE(std::strstr(error, "/nowhere"), nullptr) << error;
  char little[5];
  EXPECT_EQ(pith_evictor_open("lur", 100, 10, little, sizeof little), nullptr);
  EXPECT_STREQ(little, "ther");
  EXPECT_EQ(pith_evictor_open("lru", 100, 1, nullptr, 0), nullptr);
  pith_evictor_close(nullptr);
}

TEST(PithEvict, TellsVictimsByTheirKeys) {
  char error[200] = "";
  pith_evictor* evictor = pith_evictor_open("lru", 100, 10, error, sizeof error);
  ASSERT_NE(evictor, nullptr) << error;
  pith_evict_request request{};
  request.ttl = INFINITY;
  request.rtt = NAN;
  unsigned char victim[PITH_EVICT_KEY_BYTES];
  for (unsigned char object = 0; object < 4; ++object) {
    request.key[3] = object;
    request.size = 30;
    EXPECT_EQ(pith_evictor_ask(evictor, &request), 0);
  }
  EXPECT_EQ(pith_evictor_victim(evictor, victim), 1);
  EXPECT_EQ(victim[3], 0);
  EXPECT_EQ(pith_evictor_victim(evictor, victim), 0);
  EXPECT_EQ(pith_evictor_ask(evictor, &request), 1);
  EXPECT_EQ(pith_evictor_bytes(evictor), 90u);
  pith_evictor_erase(evictor, request.key);
  EXPECT_EQ(pith_evictor_holds(evictor, request.key), 0);
  EXPECT_EQ(pith_evictor_bytes(evictor), 60u);
  // What does not fit goes itself.
  request.size = 101;
  EXPECT_EQ(pith_evictor_ask(evictor, &request), 0);
  EXPECT_EQ(pith_evictor_victim(evictor, victim), 1);
  EXPECT_EQ(std::memcmp(victim, request.key, sizeof victim), 0);
  pith_evictor_close(evictor);
}

}  // namespace
}  // namespace pith::evict
