#include "store/tier_policy.h"

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "evict/random.h"

namespace pith::store {
namespace {

constexpr uint64_t kCapacity = 2000, kSize = 60;
constexpr double kLong = 1000;  // s

const std::vector<std::string>& Evictors() {
  static const std::vector<std::string> names = {"lru",      "gdsf", "s3fifo",     "sieve",     "lfu",
                                                 "wtinylfu", "fifo", "gdsf-admit", "lhd:seed=3"};
  return names;
}

std::unique_ptr<TierPolicy> Make(const std::string& evictor) {
  auto policy = TierPolicy::Make(evictor, kCapacity);
  EXPECT_TRUE(policy) << policy.error().message;
  return std::move(*policy);
}

// Objects that nobody has asked for before, each of them again and again, so that all evictors take them.
void Flood(TierPolicy& policy, uint32_t first) {
  std::vector<uint32_t> victims;
  for (uint32_t object = first; object < first + 200; ++object) {
    for (int i = 0; i < 8; ++i) {
      if (policy.Contains(object))
        policy.Hit(object);
      else
        (void)policy.Admit(object, kSize, victims);
    }
    ASSERT_LE(policy.used_bytes(), policy.capacity());
  }
}

// Into the tier, and there pinned, if evictors let it in.
bool Enter(TierPolicy& policy, uint32_t object, double pin_seconds) {
  std::vector<uint32_t> victims;
  for (int i = 0; i < 8 && !policy.Contains(object); ++i) (void)policy.Admit(object, kSize, victims);
  return policy.Contains(object) && (pin_seconds == 0 || policy.Pin(object, pin_seconds, victims));
}

TEST(TierPolicy, PinnedObjectsStay) {
  for (const std::string& evictor : Evictors()) {
    const auto policy = Make(evictor);
    ASSERT_TRUE(Enter(*policy, 1, kLong)) << evictor;
    ASSERT_TRUE(Enter(*policy, 2, 0)) << evictor;
    Flood(*policy, 100);
    EXPECT_TRUE(policy->Contains(1)) << evictor;
    EXPECT_FALSE(policy->Contains(2)) << evictor << ": nothing was pushed out";
    EXPECT_EQ(policy->pinned_bytes(), kSize);
    policy->Erase(1);
    EXPECT_FALSE(policy->Contains(1));
    EXPECT_EQ(policy->pinned_bytes(), 0u);
    Flood(*policy, 1000);
    // All of the capacity is the evictor's again.
    EXPECT_GT(policy->used_bytes() + 2 * kSize, kCapacity / 10 * 9) << evictor;
  }
}

TEST(TierPolicy, PinsEnd) {
  for (const std::string& evictor : Evictors()) {
    const auto policy = Make(evictor);
    ASSERT_TRUE(Enter(*policy, 1, 0.03)) << evictor;
    ASSERT_TRUE(Enter(*policy, 2, 0.03)) << evictor;
    std::vector<uint32_t> victims;
    ASSERT_TRUE(policy->Pin(2, kLong, victims)) << "again, for longer";
    std::this_thread::sleep_for(std::chrono::milliseconds(40));
    Flood(*policy, 100);
    EXPECT_FALSE(policy->Contains(1)) << evictor;
    EXPECT_TRUE(policy->Contains(2)) << evictor;
    EXPECT_EQ(policy->pinned_bytes(), kSize);
  }
}

TEST(TierPolicy, HalfOfATierIsPinnedAtMost) {
  for (const std::string& evictor : Evictors()) {
    const auto policy = Make(evictor);
    uint32_t pinned = 0;
    for (uint32_t object = 0; object < 200; ++object) pinned += Enter(*policy, object, kLong) ? 1 : 0;
    EXPECT_EQ(policy->pinned_bytes(), pinned * kSize);
    EXPECT_LE(policy->pinned_bytes(), kCapacity / 2) << evictor;
    EXPECT_GT(policy->pinned_bytes(), kCapacity / 2 - 2 * kSize) << evictor;
    Flood(*policy, 1000);
    uint32_t there = 0;
    for (uint32_t object = 0; object < 200; ++object) there += policy->Contains(object) ? 1 : 0;
    EXPECT_EQ(there, pinned) << evictor;
  }
}

// Sizes add up to what is said, whatever is done.
TEST(TierPolicy, CountsWhatItHolds) {
  for (const std::string& evictor : Evictors()) {
    const auto policy = Make(evictor);
    evict::Random random(7);
    std::vector<uint64_t> sizes(64, 0);
    for (int step = 0; step < 5000; ++step) {
      const uint32_t object = random.Below(64);
      std::vector<uint32_t> victims;
      switch (random.Below(4)) {
        case 0:
          policy->Hit(object);
          break;
        case 1:
          (void)policy->Pin(object, step % 3 == 0 ? 1e-5 : kLong, victims);
          break;
        case 2:
          if (random.Below(4) == 0) policy->Erase(object);
          break;
        default: {
          const uint64_t size = 1 + random.Below(150);
          if (policy->Admit(object, size, victims)) sizes[object] = size;
        }
      }
      uint64_t sum = 0;
      for (uint32_t o = 0; o < sizes.size(); ++o) sum += policy->Contains(o) ? sizes[o] : 0;
      for (const uint32_t victim : victims) ASSERT_TRUE(victim == object || !policy->Contains(victim)) << evictor;
      ASSERT_EQ(policy->used_bytes(), sum) << evictor << " step " << step;
      ASSERT_LE(sum, kCapacity) << evictor;
      ASSERT_LE(policy->pinned_bytes(), kCapacity / 2) << evictor;
    }
  }
}

}  // namespace
}  // namespace pith::store
