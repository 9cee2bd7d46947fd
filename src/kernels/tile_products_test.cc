#include "kernels/tile_products.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/targets_test_util.h"

namespace pith::kernels {
namespace {

float Bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

using SplitTest = TargetTest;

INSTANTIATE_TEST_SUITE_P(Targets, SplitTest, testing::ValuesIn(Targets()),
                         [](const testing::TestParamInfo<int64_t>& target) {
                           return std::string(hwy::TargetName(target.param));
                         });

TEST_P(SplitTest, HalvesKeepSixteenBits) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (const size_t count : {1u, 7u, 16u, 40u, 133u}) {
    std::vector<float> from(count);
    for (float& x : from) x = normal(random) * std::exp2(4 * normal(random));
    std::vector<uint16_t> high(count + 1, 7), low(count + 1, 7);
    SplitRow(from.data(), count, 0.5f, high.data(), low.data());
    for (size_t i = 0; i < count; ++i) {
      const float x = 0.5f * from[i];
      EXPECT_LE(std::abs(Bf16(high[i]) - x), std::abs(x) * 0x1p-8f);
      EXPECT_LE(std::abs(Bf16(high[i]) + Bf16(low[i]) - x), std::abs(x) * 0x1p-16f);
    }
    EXPECT_EQ(high[count], 7);
    EXPECT_EQ(low[count], 7);
  }
}

TEST_P(SplitTest, ElevenBitsAreExact) {
  for (int mantissa = 1024; mantissa < 2048; ++mantissa) {
    const float x = static_cast<float>(mantissa) * 0x1p-12f;
    uint16_t high = 0, low = 0;
    SplitRow(&x, 1, -1.0f, &high, &low);
    ASSERT_EQ(Bf16(high) + Bf16(low), -x);
  }
}

TEST_P(SplitTest, WhatIsNoNumberStaysSo) {
  for (const float x : {std::nanf(""), -std::nanf(""), INFINITY}) {
    uint16_t high = 0, low = 0;
    SplitRow(&x, 1, 1.0f, &high, &low);
    EXPECT_TRUE(std::isnan(Bf16(high) + Bf16(low)));
  }
}

TEST_P(SplitTest, RightFactorsArePackedInPairsOfRows) {
  constexpr size_t kRows = 41, kColumns = 48, kStride = 50;
  std::vector<float> from(kRows * kStride);
  std::mt19937 random(2);
  for (float& x : from) x = std::normal_distribution<float>()(random);
  std::vector<uint32_t> packed(PackedWords(kRows, kColumns), 1);
  PackRight(from.data(), kRows, kColumns, kStride, packed.data());
  for (size_t row = 0; row < 64; ++row) {
    for (size_t column = 0; column < kColumns; ++column) {
      const size_t tile = row / 32 * (kColumns / 16) + column / 16;
      const size_t word = tile * kTileWords + row % 32 / 2 * 16 + column % 16;
      const int shift = row % 2 == 0 ? 0 : 16;
      const float high = Bf16(static_cast<uint16_t>(packed[word] >> shift));
      const float low = Bf16(static_cast<uint16_t>(packed[word + 256] >> shift));
      const float x = row < kRows ? from[row * kStride + column] : 0.0f;
      ASSERT_LE(std::abs(high - x), std::abs(x) * 0x1p-8f);
      ASSERT_LE(std::abs(high + low - x), std::abs(x) * 0x1p-16f);
    }
  }
}

class MultiplyTest : public testing::TestWithParam<const TileUnit*> {};

INSTANTIATE_TEST_SUITE_P(Units, MultiplyTest, testing::ValuesIn(TileUnits()), UnitName);

// Largest error of [32, 32 groups] times [32 groups, 32], relative to the product of the factors' lengths.
double ErrorOf(const TileUnit& unit, int groups, bool add, bool low_halves) {
  std::mt19937 random(static_cast<uint32_t>(groups));
  std::normal_distribution<float> normal;
  const auto depth = static_cast<size_t>(32 * groups), stride = depth + 32;
  std::vector<float> left(32 * depth), right(depth * 32), sums(32 * 40);
  for (auto* values : {&left, &right, &sums}) {
    for (float& x : *values) x = normal(random);
  }
  std::vector<uint16_t> high(32 * stride), low(32 * stride);
  for (size_t r = 0; r < 32; ++r) SplitRow(&left[r * depth], depth, 1.0f, &high[r * stride], &low[r * stride]);
  if (!low_halves) std::fill(low.begin(), low.end(), uint16_t{0});
  std::vector<uint32_t> packed(PackedWords(depth, 32));
  PackRight(right.data(), depth, 32, 32, packed.data());
  const std::vector<float> before = sums;
  unit.begin();
  unit.multiply({high.data(), low.data(), stride, packed.data(), PackedWords(32, 32), groups, sums.data(), 40, add});
  unit.end();
  double worst = 0;
  for (size_t r = 0; r < 32; ++r) {
    for (size_t c = 0; c < 40; ++c) {
      double expected = c >= 32 || add ? before[r * 40 + c] : 0;
      for (size_t k = 0; k < depth && c < 32; ++k) expected += double{left[r * depth + k]} * right[k * 32 + c];
      worst = std::max(worst, std::abs(expected - sums[r * 40 + c]) / std::sqrt(static_cast<double>(depth)));
    }
  }
  return worst;
}

TEST_P(MultiplyTest, EqualsTheReference) {
  for (const int groups : {1, 2, 3, 4, 18}) {
    for (const bool add : {false, true}) EXPECT_LT(ErrorOf(*GetParam(), groups, add, true), 3e-5) << groups;
  }
}

TEST_P(MultiplyTest, HighHalvesAloneWouldBeSeen) { EXPECT_GT(ErrorOf(*GetParam(), 2, false, false), 1e-3); }

}  // namespace
}  // namespace pith::kernels
