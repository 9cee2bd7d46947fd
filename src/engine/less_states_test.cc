// act=less on a head of a cache: its state is the sum over all that has ever left it, in whatever steps it did.
#include "engine/less_states.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "kernels/attention.h"

namespace pith {
namespace {

constexpr int kDim = 8, kValueDim = 4, kRank = 3, kHidden = 6;

class LessStates : public ::testing::Test {
 protected:
  LessStates() {
    const auto normals = [this](std::vector<float>& numbers, size_t count) {
      std::normal_distribution<float> normal;
      numbers.resize(count);
      for (float& x : numbers) x = normal(random_);
    };
    normals(w1_, kDim * kHidden), normals(w2_, kHidden * kRank), normals(w3_, kRank * kRank);
    normals(s1_, kRank), normals(s2_, kRank);
    map_ = {.w1 = w1_.data(),
            .w2 = w2_.data(),
            .w3 = w3_.data(),
            .s1 = s1_.data(),
            .s2 = s2_.data(),
            .dim = kDim,
            .hidden = kHidden,
            .rank = kRank};
  }

  // Entries whose numbers f16 holds as they are.
  void Append(HeadCache& head, int count) {
    std::vector<float> key(kDim), value(kValueDim);
    for (int i = 0; i < count; ++i) {
      for (float& x : key) x = static_cast<float>(static_cast<int>(random_() % 65) - 32) / 16;
      for (float& x : value) x = static_cast<float>(static_cast<int>(random_() % 65) - 32) / 16;
      ASSERT_TRUE(head.Extend(1));
      const int at = head.num_entries();
      kernels::WriteEntryF32(head.layout(), head.page_of(at), at % kPageEntries, key.data(), value.data(), next_++);
      head.Commit(1);
    }
  }

  // The sum in double over the entries that are not kept.
  void AddDropped(const HeadCache& head, const std::vector<int32_t>& kept, std::vector<double>& sums) const {
    const auto n = static_cast<size_t>(head.num_entries());
    std::vector<float> keys(n * kDim), values(n * kValueDim);
    head.ReadKeys(keys.data());
    head.ReadValues(values.data());
    for (size_t i = 0; i < n; ++i) {
      if (std::ranges::binary_search(kept, static_cast<int32_t>(i))) continue;
      std::vector<double> psi(kRank);
      kernels::FeaturesReference(map_, keys.data() + i * kDim, psi.data());
      for (size_t r = 0; r < kRank; ++r) {
        for (size_t c = 0; c < kValueDim; ++c)
          sums[r * kValueDim + c] += psi[r] * static_cast<double>(values[i * kValueDim + c]);
        sums[kRank * kValueDim + r] += psi[r];
      }
    }
  }

  std::vector<int32_t> Some(int num_entries, double share) {
    std::bernoulli_distribution stays(share);
    std::vector<int32_t> kept;
    for (int32_t i = 0; i < num_entries; ++i) {
      if (stays(random_)) kept.push_back(i);
    }
    return kept;
  }

  std::mt19937 random_{4};
  std::vector<float> w1_, w2_, w3_, s1_, s2_;
  kernels::FeatureMap map_;
  int32_t next_ = 0;
};

TEST_F(LessStates, AreTheSumOfAllThatIsGone) {
  for (const std::optional<PageFormat> low : {std::optional<PageFormat>(), std::optional<PageFormat>(KvFormat::kQ4)}) {
    Ledger ledger(size_t{1} << 20);
    auto cache =
        KvCache::Create(&ledger, {{.num_kv_heads = 1, .key_dim = kDim, .value_dim = kValueDim, .global = true}});
    const int sequence = *cache->NewSequence({.low = low, .state_rank = kRank}, ledger.common());
    HeadCache& head = cache->head(sequence, 0, 0);
    std::vector<double> sums(kernels::StateFloats(kRank, kValueDim), 0);
    int64_t gone = 0;
    int total = 0;
    for (int step = 0; step < 12; ++step) {
      const int count = 1 + static_cast<int>(random_() % 300);
      Append(head, count);
      total += count;
      ASSERT_TRUE(head.Demote(0));
      const std::vector<int32_t> kept = step % 4 == 3 ? Some(head.num_entries(), 1) : Some(head.num_entries(), 0.3);
      AddDropped(head, kept, sums);
      gone += head.num_entries() - static_cast<int64_t>(kept.size());
      ASSERT_TRUE(KeepAndAbsorb(head, kept, map_));
      ASSERT_EQ(head.num_entries(), static_cast<int>(kept.size()));
      ASSERT_EQ(head.state().num_entries(), gone);
      ASSERT_EQ(gone + head.num_entries(), total);
      ASSERT_TRUE(cache->Verify());
      ASSERT_NE(head.state().numbers(), nullptr);
      double most = 0;
      for (const double x : sums) most = std::max(most, std::abs(x));
      for (size_t i = 0; i < sums.size(); ++i) {
        ASSERT_NEAR(static_cast<double>(head.state().numbers()[i]), sums[i], 1e-5 * most) << step << ' ' << i;
      }
      EXPECT_GT(sums.back() / static_cast<double>(gone), 1e-5 * most)
          << "control: one entry is more than the tolerance";
    }
    cache->Free(sequence);
  }
}

// Two forks share pages, and the budget does not hold the copies.
TEST_F(LessStates, AFailureChangesNothing) {
  Ledger ledger(size_t{40} << 10);
  auto cache = KvCache::Create(&ledger, {{.num_kv_heads = 1, .key_dim = kDim, .value_dim = kValueDim, .global = true}});
  const int sequence = *cache->NewSequence({.state_rank = kRank}, ledger.common());
  Append(cache->head(sequence, 0, 0), 320);
  const int fork = *cache->Fork(sequence, ledger.common());
  size_t held = 0;
  while (ledger.TryCharge(MemoryTag::kTables, 64)) held += 64;
  HeadCache& head = cache->head(fork, 0, 0);
  std::vector<int32_t> kept(319);
  for (int32_t i = 0; i < 319; ++i) kept[static_cast<size_t>(i)] = i + 1;
  EXPECT_FALSE(KeepAndAbsorb(head, kept, map_));
  EXPECT_EQ(head.num_entries(), 320);
  EXPECT_EQ(head.state().numbers(), nullptr);
  ledger.Release(MemoryTag::kTables, held);
  EXPECT_TRUE(KeepAndAbsorb(head, kept, map_)) << "the control";
  EXPECT_EQ(head.state().num_entries(), 1);
  EXPECT_EQ(cache->head(sequence, 0, 0).state().numbers(), nullptr);
  cache->Free(fork);
  cache->Free(sequence);
}

}  // namespace
}  // namespace pith
