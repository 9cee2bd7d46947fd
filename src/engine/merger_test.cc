#include "engine/merger.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <thread>

#include "base/parallel.h"

namespace pith {
namespace {

constexpr int kDim = 2, kHeads = 3;

// The example of policy/act/merge.h's source in the first head, one merge in the second, nothing to do in the third.
const std::vector<float> kKeys = {1, 0, .9F, .1F, 0, 1, .6F, .8F, .1F, 1, .8F, .6F, 1, 1, 0, 1};

class MergerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    cache_ = KvCache::Create(&ledger_, {{kHeads, kDim, kDim, true}});
    sequence_ = *cache_->NewSequence({.num_columns = 1}, ledger_.common());
    for (HeadCache& head : cache_->heads(sequence_, 0)) {
      ASSERT_TRUE(head.Extend(8));
      for (int i = 0; i < 8; ++i) {
        const float value[kDim] = {static_cast<float>(2 * i), static_cast<float>(2 * i + 1)};
        kernels::WriteEntryF32(head.layout(), head.page_of(i), i, kKeys.data() + i * kDim, value, i);
        head.layout().column(head.page_of(i), 0)[i] = static_cast<float>(i);
      }
      head.Commit(8);
    }
  }

  void Run(const KeptHeads& kept, double* threshold, int threads) {
    Barrier barrier;
    SharedLoops loops;
    std::vector<std::thread> others;
    const auto work = [&](int ith) {
      loops.Lead({ith, threads, &barrier},
                 [&] { status_ = merger_.Run(cache_->heads(sequence_, 0), kept, {}, threshold); });
    };
    for (int i = 1; i < threads; ++i) others.emplace_back(work, i);
    work(0);
    for (std::thread& other : others) other.join();
  }

  std::vector<float> Keys(int head) const {
    std::vector<float> keys(8 * kDim);
    cache_->head(sequence_, 0, head).ReadKeys(keys.data());
    return keys;
  }

  Ledger ledger_{size_t{64} << 10};
  std::unique_ptr<KvCache> cache_;
  int sequence_ = 0;
  Merger merger_;
  Status status_;
};

TEST_F(MergerTest, MergesByOneThresholdOfTheLayer) {
  for (const int threads : {1, 2, 4}) {
    SetUp();
    double threshold = std::nan("");
    // The second head lacks entry 1 only; its similarity takes part in the mean.
    Run({{0, 2, 5, 6, 7}, {0, 2, 3, 4, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6, 7}}, &threshold, threads);
    ASSERT_TRUE(status_);
    EXPECT_NEAR(threshold, (0.993884 + 0.989949 + 0.995037 + 0.993884) / 4, 1e-3);
    const std::vector<float> first = Keys(0), second = Keys(1), third = Keys(2);
    EXPECT_NEAR(first[0], 0.947248, 2e-3);
    EXPECT_NEAR(first[1], 0.049694, 2e-3);
    EXPECT_NEAR(first[4], 0.049752, 2e-3);
    EXPECT_NEAR(second[0], 0.947248, 2e-3);
    for (size_t i = 0; i < third.size(); ++i) EXPECT_NEAR(third[i], kKeys[i], 1e-3);
    std::vector<float> column(8);
    cache_->head(sequence_, 0, 0).ReadColumn(0, column);
    for (int i = 0; i < 8; ++i) EXPECT_EQ(column[static_cast<size_t>(i)], static_cast<float>(i));
  }
  EXPECT_EQ(merger_.num_merged(), 9);
}

TEST_F(MergerTest, TheThresholdIsCarriedOn) {
  double threshold = 3;  // nothing is so similar
  Run({{0, 2, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6, 7}}, &threshold, 2);
  EXPECT_NEAR(threshold, 1.5 + 0.992957 / 2, 1e-3);
  EXPECT_EQ(merger_.num_merged(), 0);
  for (size_t i = 0; i < kKeys.size(); ++i) EXPECT_NEAR(Keys(0)[i], kKeys[i], 1e-3);
  const double before = threshold;
  Run({{0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6, 7}}, &threshold, 2);
  EXPECT_EQ(threshold, before);  // nothing went
}

}  // namespace
}  // namespace pith
