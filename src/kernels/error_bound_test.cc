#include "kernels/error_bound.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "base/half.h"

namespace pith::kernels {
namespace {

const std::vector<float> kExample = {0, 1, .5F, -1, 2, .25F, 1, .5F};

// Of the specification: 4 tokens of 2 channels.
TEST(ErrorBoundTest, WorkedExample) {
  const BoundedCodes block =
      BoundErrors({.unit = ErrorUnit::kBlock, .share = 0.25, .block = 4}, kExample, 1, 4, 2, 0, 4);
  EXPECT_EQ(block.steps, std::vector<float>{.75F});
  EXPECT_EQ(block.minima, std::vector<int32_t>{-1});
  EXPECT_EQ(block.codes, (std::vector<int32_t>{1, 2, 2, 0, 4, 1, 2, 2}));
  EXPECT_EQ(block.values, (std::vector<float>{0, .75F, .75F, -.75F, 2.25F, 0, .75F, .75F}));
  const BoundedCodes channel =
      BoundErrors({.unit = ErrorUnit::kChannel, .share = 0.25, .block = 4}, kExample, 1, 4, 2, 0, 4);
  EXPECT_EQ(channel.steps, (std::vector<float>{.5F, .5F}));
  EXPECT_EQ(channel.minima, (std::vector<int32_t>{0, -2}));
  EXPECT_EQ(channel.codes, (std::vector<int32_t>{0, 4, 1, 0, 4, 2, 2, 3}));
}

TEST(ErrorBoundTest, WholeBlocksAreCutFromTheOldEnd) {
  const ErrorBound bound{.block = 64, .recent = 128};
  const std::vector<std::pair<int, int>> cuts = {{0, 0},     {127, 0},   {191, 64}, {192, 128},
                                                 {193, 128}, {255, 128}, {256, 192}};
  for (const auto& [waiting, cut] : cuts) EXPECT_EQ(bound.CutOf(waiting), cut) << waiting;
}

class Rows {
 public:
  static constexpr size_t kHeads = 3, kTokens = 128, kDim = 12, kBlock = 64;

  Rows() : values_(kHeads * kTokens * kDim), random_(5) {}
  std::vector<float>& values() { return values_; }
  // Numbers of float16 around `center`.
  void Fill(double center, double deviation) {
    std::normal_distribution<double> draw(center, deviation);
    for (float& value : values_) value = static_cast<float>(RoundToHalf(draw(random_)));
  }
  struct Found {
    size_t without = 0;  // units that have no step
    double worst = 0;    // of all errors, in half steps
  };
  // Every element is within half a step of its value, and a step is its share of the range.
  Found Check(ErrorUnit unit, double share) const {
    const ErrorBound bound{.unit = unit, .share = share, .block = kBlock};
    const BoundedCodes coded = BoundErrors(bound, values_, kHeads, kTokens, kDim, 0, kTokens);
    const size_t num_units = NumUnits(bound, kHeads, kTokens, kDim);
    EXPECT_EQ(coded.steps.size(), num_units);
    std::vector<double> least(num_units, 1e300), greatest(num_units, -1e300);
    const auto for_each = [&](const auto& visit) {
      for (size_t i = 0; i < values_.size(); ++i) {
        visit(i, UnitOf(bound, kHeads, kDim, i / (kTokens * kDim), i / kDim % kTokens, i % kDim));
      }
    };
    for_each([&](size_t i, size_t u) {
      least[u] = std::min(least[u], static_cast<double>(values_[i]));
      greatest[u] = std::max(greatest[u], static_cast<double>(values_[i]));
    });
    Found found;
    for_each([&](size_t i, size_t u) {
      const double allowed = RoundToHalf((greatest[u] - least[u]) * share) / 2 * (1 + 1e-6);
      const double error = std::abs(static_cast<double>(values_[i]) - static_cast<double>(coded.values[i]));
      if (!(coded.steps[u] > 0)) {
        EXPECT_TRUE(error == 0 || std::isnan(error)) << i;
      } else {
        EXPECT_LE(error, allowed) << i;
        found.worst = std::max(found.worst, error / allowed);
      }
      EXPECT_GE(coded.codes[i], 0);
      EXPECT_LT(coded.codes[i], bound.alphabet());
    });
    found.without = static_cast<size_t>(std::ranges::count_if(coded.steps, [](float step) { return !(step > 0); }));
    return found;
  }

 private:
  std::vector<float> values_;
  std::mt19937 random_;
};

constexpr ErrorUnit kUnits[] = {ErrorUnit::kBlock, ErrorUnit::kToken, ErrorUnit::kChannel, ErrorUnit::kBlockPerHead};

TEST(ErrorBoundTest, NoElementMovesByMoreThanHalfAStep) {
  for (const ErrorUnit unit : kUnits) {
    for (const double share : {kLeastErrorShare, 0.05, 0.1, 0.25, 0.5}) {
      Rows rows;
      for (const auto& [center, deviation] : {std::pair(0.0, 1.0), {0.0, 5000.0}, {40.0, 1.0}, {0.0, 0.001}}) {
        rows.Fill(center, deviation);
        const Rows::Found found = rows.Check(unit, share);
        EXPECT_EQ(found.without, 0U) << static_cast<int>(unit) << " " << share << " " << center;
        EXPECT_GT(found.worst, 0.5) << "half of that bound would do";
      }
    }
  }
}

// What has no step keeps its numbers: constants, an offset of too many steps, steps that float16 does not have.
TEST(ErrorBoundTest, WhatNoStepSuitsStaysAsItIs) {
  for (const ErrorUnit unit : kUnits) {
    Rows rows;
    rows.Fill(3, 0);
    EXPECT_GT(rows.Check(unit, 0.1).without, 0U);
    rows.Fill(3, 0);
    rows.values()[17] = 4;  // a unit with two numbers among constant ones
    rows.Check(unit, 0.1);
    rows.Fill(0, 1e-7);
    rows.Check(unit, kLeastErrorShare);
    rows.Fill(30000, 0.001);
    rows.values()[40] = 30016;
    rows.Check(unit, kLeastErrorShare);
    rows.Fill(0, 1);
    for (const float odd : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN()}) {
      rows.values()[100] = odd;
      EXPECT_EQ(rows.Check(unit, 0.1).without, 1U) << static_cast<int>(unit) << " " << odd;
    }
  }
}

// Coded, rounded to float16, coded again, twenty times: what the first round made stays, where the units are the same.
TEST(ErrorBoundTest, GridsAreKept) {
  for (const ErrorUnit unit : {ErrorUnit::kToken, ErrorUnit::kChannel, ErrorUnit::kBlockPerHead}) {
    for (const double share : {0.013, 0.06, 0.17, 0.3}) {
      for (const double center : {0.0, 3.0}) {
        double moved[2] = {};
        for (const bool keeps : {false, true}) {
          Rows rows;
          rows.Fill(center, 1);
          const ErrorBound bound{.unit = unit, .share = share, .block = Rows::kBlock, .keeps_grid = keeps};
          std::vector<float> first;
          for (int round = 0; round < 20; ++round) {
            rows.values() =
                BoundErrors(bound, rows.values(), Rows::kHeads, Rows::kTokens, Rows::kDim, 0, Rows::kTokens).values;
            for (float& value : rows.values()) value = static_cast<float>(RoundToHalf(static_cast<double>(value)));
            if (round == 0) first = rows.values();
          }
          for (size_t i = 0; i < first.size(); ++i) {
            moved[keeps ? 1 : 0] += std::abs(static_cast<double>(first[i]) - static_cast<double>(rows.values()[i]));
          }
        }
        EXPECT_GT(moved[0], 0) << "the control";
        EXPECT_LT(moved[1], 0.02 * moved[0]) << static_cast<int>(unit) << " " << share << " " << center;
      }
    }
  }
}

}  // namespace
}  // namespace pith::kernels
