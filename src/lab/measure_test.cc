#include "lab/measure.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace pith {
namespace {

TEST(Measure, WorkedExample) {
  // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4), both shifted by a constant.
  const std::vector<float> p = {std::log(0.5f) + 3, std::log(0.25f) + 3, std::log(0.25f) + 3};
  const std::vector<float> q = {std::log(0.25f) - 9, std::log(0.5f) - 9, std::log(0.25f) - 9};
  EXPECT_NEAR(LogSumExp(p), 3, 1e-6);
  const Difference difference = Compare(p, q);
  EXPECT_NEAR(difference.kl, 0.25 * std::log(2.0), 1e-6);
  EXPECT_FALSE(difference.same_top);
  EXPECT_NEAR(difference.max_abs, 12 + std::log(2.0), 1e-5);
  EXPECT_EQ(Compare(p, p).kl, 0);
  EXPECT_TRUE(Compare(p, p).same_top);
}

TEST(Measure, MaskedAndLargeLogits) {
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> a = {1000, 999, -inf};
  EXPECT_EQ(Compare(a, a).kl, 0);
  EXPECT_EQ(Compare(a, a).max_abs, 0);
  EXPECT_NEAR(LogSumExp(a), 1000 + std::log1p(std::exp(-1.0)), 1e-9);
}

TEST(Measure, NotANumberShows) {
  const std::vector<float> good = {1, 2};
  const std::vector<float> bad = {1, std::numeric_limits<float>::quiet_NaN()};
  DifferenceSum sum;
  sum.Add(Compare(good, bad));
  EXPECT_TRUE(std::isnan(sum.mean_kl()));
  EXPECT_TRUE(std::isnan(sum.max_kl()));
}

TEST(Measure, Targets) {
  const std::vector<float> rows = {0, 0, 5, 0, 0, 0};  // [2 tokens, vocab 3]
  const std::vector<int32_t> right = {2, 0};
  const TargetMeasure measure = MeasureTarget(rows, right);
  EXPECT_NEAR(measure.nll, (std::log(2 + std::exp(5.0)) - 5 + std::log(3.0)) / 2, 1e-9);
  EXPECT_TRUE(measure.all_top);  // the first of equals
  EXPECT_FALSE(MeasureTarget(rows, std::vector<int32_t>{2, 1}).all_top);
  EXPECT_EQ(MeanKl(rows, rows, 3), 0);
}

TEST(Measure, ReferenceAgreesWithTheSlowWay) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, 6);
  constexpr size_t kVocab = 5000;
  const std::vector<int32_t> target = {11, 4999, 0};
  std::vector<float> full(3 * kVocab), other(3 * kVocab);
  for (float& x : full) x = normal(random);
  for (size_t i = 0; i < other.size(); ++i) other[i] = full[i] + 0.3f * normal(random);
  TargetReference reference;
  reference.Set(full, target);
  double kl = 0;
  const TargetMeasure measure = reference.Compare(other, kl);
  EXPECT_NEAR(kl, MeanKl(full, other, kVocab), 2e-6);
  EXPECT_NEAR(measure.nll, MeasureTarget(other, target).nll, 2e-6);
  EXPECT_EQ(reference.own().nll, MeasureTarget(full, target).nll);
  EXPECT_GT(kl, 0.1);
  double same = 1;
  EXPECT_NEAR(reference.Compare(full, same).nll, reference.own().nll, 2e-6);
  EXPECT_NEAR(same, 0, 2e-6);
  // What the model says for certain, and what it never says.
  other[kVocab + 4999] = 1e4f;
  full[5] = -std::numeric_limits<float>::infinity();
  reference.Set(full, target);
  EXPECT_TRUE(std::isfinite(reference.Compare(other, kl).nll));
  EXPECT_TRUE(std::isfinite(kl));
  other[3] = std::numeric_limits<float>::quiet_NaN();
  reference.Compare(other, kl);
  EXPECT_TRUE(std::isnan(kl));
}

TEST(Measure, Sums) {
  DifferenceSum sum;
  EXPECT_EQ(sum.top1(), 1);
  sum.Add({1, 0.5, true});
  sum.Add({3, 0.1, false});
  EXPECT_EQ(sum.rows(), 2);
  EXPECT_EQ(sum.max_abs(), 3);
  EXPECT_EQ(sum.max_kl(), 0.5);
  EXPECT_DOUBLE_EQ(sum.mean_kl(), 0.3);
  EXPECT_EQ(sum.top1(), 0.5);
  EXPECT_EQ(Median({3, 1, 2}), 2);
  EXPECT_EQ(Median({4, 1, 2, 3}), 2.5);
  EXPECT_EQ(Median({}), 0);
}

}  // namespace
}  // namespace pith
