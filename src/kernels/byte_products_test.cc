#include "kernels/byte_products.h"

#include <gtest/gtest.h>
#include <hwy/base.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/targets_test_util.h"

namespace pith::kernels {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kQ4_0, WeightFormat::kQ4_1, WeightFormat::kQ5_0,
                                     WeightFormat::kQ5_1, WeightFormat::kQ8_0, WeightFormat::kQ6_K};

// Powers of two and their halves' sums are exact in f16.
uint16_t HalfBits(float value) {
  int exponent;
  const float fraction = std::frexp(std::abs(value), &exponent);  // [0.5, 1)
  if (fraction == 0) return 0;
  const auto mantissa = static_cast<uint16_t>(std::ldexp(fraction, 11)) & 0x3ff;
  return static_cast<uint16_t>((value < 0 ? 0x8000 : 0) | (exponent + 14) << 10 | mantissa);
}

struct Weights {
  std::vector<std::byte> bytes;
  std::vector<double> values;
  WeightRows rows;
};

// A block of 256 as documented for GGUF.
void DrawQ6K(std::mt19937& random, bool extreme, std::vector<std::byte>& bytes, std::vector<double>& values) {
  uint8_t low[128] = {}, high[64] = {};
  int8_t scales[16];
  const float scale = std::ldexp(static_cast<float>(1 + random() % 7), -10);
  for (int8_t& s : scales) s = extreme ? -128 : static_cast<int8_t>(static_cast<int>(random() % 256) - 128);
  for (int i = 0; i < 256; ++i) {
    const int code = extreme ? 0 : static_cast<int>(random() % 64), half = i / 128, j = i % 128;
    low[64 * half + j % 64] |= static_cast<uint8_t>((code & 15) << (j < 64 ? 0 : 4));
    high[32 * half + j % 32] |= static_cast<uint8_t>((code >> 4) << (j / 32 * 2));
    values.push_back(static_cast<double>(scale) * scales[i / 16] * (code - 32));
  }
  const auto put = [&](const void* from, size_t size) {
    bytes.insert(bytes.end(), static_cast<const std::byte*>(from), static_cast<const std::byte*>(from) + size);
  };
  const uint16_t bits = HalfBits(scale);
  put(low, sizeof low);
  put(high, sizeof high);
  put(scales, sizeof scales);
  put(&bits, sizeof bits);
}

// Blocks as documented for GGUF, written from their values.
Weights Draw(WeightFormat format, int num_rows, int width, std::mt19937& random, bool extreme = false) {
  const bool nibbles = format != WeightFormat::kQ8_0;
  const bool fifth = format == WeightFormat::kQ5_0 || format == WeightFormat::kQ5_1;
  const bool least = format == WeightFormat::kQ4_1 || format == WeightFormat::kQ5_1;
  const int levels = nibbles ? fifth ? 32 : 16 : 255;
  Weights weights;
  for (int block = 0; block < num_rows * width / WeightsInBlock(format); ++block) {
    if (format == WeightFormat::kQ6_K) {
      DrawQ6K(random, extreme, weights.bytes, weights.values);
      continue;
    }
    const float scale = std::ldexp(static_cast<float>(1 + random() % 7), -6) * (random() % 2 ? 1.0F : -1.0F);
    const float lowest = least ? std::ldexp(static_cast<float>(random() % 9) - 4, -3) : 0;
    int codes[kWeightBlock];
    for (int& code : codes) code = extreme ? levels - 1 : static_cast<int>(random() % static_cast<unsigned>(levels));
    const auto put = [&](const auto& value) {
      const auto* from = reinterpret_cast<const std::byte*>(&value);
      weights.bytes.insert(weights.bytes.end(), from, from + sizeof value);
    };
    put(HalfBits(scale));
    if (least) put(HalfBits(lowest));
    uint32_t high = 0;
    for (int k = 0; k < kWeightBlock; ++k) high |= static_cast<uint32_t>(codes[k] >> 4 & 1) << k;
    if (fifth) put(high);
    for (int k = 0; k < 16 && nibbles; ++k) put(static_cast<uint8_t>((codes[k] & 15) | (codes[k + 16] & 15) << 4));
    for (int k = 0; k < kWeightBlock && !nibbles; ++k) put(static_cast<int8_t>(codes[k] - 127));
    const int zero = !nibbles ? 127 : least ? 0 : levels / 2;
    for (const int code : codes) weights.values.push_back(static_cast<double>(scale) * (code - zero) + lowest);
  }
  weights.rows = {format, weights.bytes.data(),
                  static_cast<size_t>(width / WeightsInBlock(format)) * WeightBlockBytes(format), num_rows};
  EXPECT_EQ(weights.bytes.size(), weights.rows.row_bytes * static_cast<size_t>(num_rows));
  return weights;
}

class ByteProducts : public TargetTest {};

// With the rounded input every product is exact but for sums in float32.
TEST_P(ByteProducts, EqualTheReference) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const WeightFormat format : kFormats) {
    for (const int width : {32, 64, 96, 128, 256, 576, 672, 768}) {
      if (width % WeightsInBlock(format) != 0) continue;
      for (const int num_inputs : {1, 2, 3, 4, 5, 7, 8, 15, 31}) {
        const int num_rows = 1 + static_cast<int>(random() % 13);
        SCOPED_TRACE(std::to_string(static_cast<int>(format)) + ": " + std::to_string(num_rows) + " x " +
                     std::to_string(width) + " x " + std::to_string(num_inputs));
        const Weights weights = Draw(format, num_rows, width, random);
        const size_t stride = static_cast<size_t>(width) + 3, output_stride = static_cast<size_t>(num_rows) + 2;
        std::vector<float> input(stride * static_cast<size_t>(num_inputs));
        for (float& x : input) x = normal(random);
        RoundedRows rounded;
        rounded.Round(input.data(), stride, num_inputs, width);
        std::vector<float> output(output_stride * static_cast<size_t>(num_inputs), 1e9F);
        MultiplyRows(weights.rows, rounded, output.data(), output_stride, nullptr);
        for (int n = 0; n < num_inputs; ++n) {
          for (int i = 0; i < num_rows; ++i) {
            double expected = 0, plain = 0, square = 0;
            for (int k = 0; k < width; ++k) {
              const double weight = weights.values[static_cast<size_t>(i * width + k)];
              const double in =
                  static_cast<double>(rounded.codes(n)[k]) * rounded.scales(n)[RoundedRows::ScaleAt(k / kWeightBlock)];
              const double x = input[static_cast<size_t>(n) * stride + static_cast<size_t>(k)];
              ASSERT_NEAR(in, x, 0.51 * rounded.scales(n)[RoundedRows::ScaleAt(k / kWeightBlock)]);
              expected += weight * in;
              plain += weight * x;
              square += weight * weight;
            }
            const float got = output[static_cast<size_t>(n) * output_stride + static_cast<size_t>(i)];
            ASSERT_NEAR(got, expected, 1e-5 * std::sqrt(square)) << n << ' ' << i;
            ASSERT_NEAR(got, plain, 0.06 * std::sqrt(square)) << n << ' ' << i;
          }
          for (size_t i = static_cast<size_t>(num_rows); i < output_stride; ++i) {
            ASSERT_EQ(output[static_cast<size_t>(n) * output_stride + i], 1e9F) << "written past the rows";
          }
        }
      }
    }
  }
}

// The largest codes times the largest input: pairs must fit 16 bits.
TEST_P(ByteProducts, DoNotOverflow) {
  std::mt19937 random(4);
  for (const WeightFormat format : kFormats) {
    const int width = 256;
    const Weights weights = Draw(format, 5, width, random, /*extreme=*/true);
    for (const float x : {-3.0F, 3.0F}) {
      const std::vector<float> input(width, x);
      RoundedRows rounded;
      rounded.Round(input.data(), width, 1, width);
      std::vector<float> output(5);
      MultiplyRows(weights.rows, rounded, output.data(), 5, nullptr);
      for (int i = 0; i < 5; ++i) {
        double expected = 0;
        for (int k = 0; k < width; ++k)
          expected += weights.values[static_cast<size_t>(i * width + k)] * static_cast<double>(x);
        EXPECT_NEAR(output[static_cast<size_t>(i)], expected, 1e-4 * (1 + std::abs(expected)));
      }
    }
  }
}

TEST_P(ByteProducts, OfNothingAreNothing) {
  std::mt19937 random(5);
  const Weights weights = Draw(WeightFormat::kQ4_0, 3, 32, random);
  const std::vector<float> input(32, 0.0F);
  RoundedRows rounded;
  rounded.Round(input.data(), 32, 1, 32);
  std::vector<float> output(3, 1);
  MultiplyRows(weights.rows, rounded, output.data(), 3, weights.bytes.data());
  EXPECT_EQ(output, std::vector<float>(3, 0.0F));
}

// Rows of input drawn once, and their products.
std::vector<float> Products(const Weights& weights, const float* input, int num_inputs, int width) {
  RoundedRows rounded;
  rounded.Round(input, static_cast<size_t>(width), num_inputs, width);
  std::vector<float> output(static_cast<size_t>(num_inputs * weights.rows.num_rows), 1e9F);
  MultiplyRows(weights.rows, rounded, output.data(), static_cast<size_t>(weights.rows.num_rows), nullptr);
  return output;
}

// A sequence's tokens must not depend on what else is decoded with it.
TEST_P(ByteProducts, DoNotDependOnOtherRows) {
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  for (const WeightFormat format : kFormats) {
    for (const int width : {96, 576, 768, 2304}) {  // more than is packed at once, and no multiple of it
      if (width % WeightsInBlock(format) != 0) continue;
      const int num_rows = 1 + static_cast<int>(random() % 100);
      const Weights weights = Draw(format, num_rows, width, random);
      std::vector<float> input(static_cast<size_t>(70 * width));
      for (float& x : input) x = normal(random);
      std::vector<float> alone;
      for (int n = 0; n < 70; ++n) {
        const std::vector<float> row = Products(weights, input.data() + n * width, 1, width);
        alone.insert(alone.end(), row.begin(), row.end());
      }
      for (const int num_inputs : {2, 3, 4, 5, 6, 7, 8, 9, 15, 23, 70}) {
        const std::vector<float> together = Products(weights, input.data(), num_inputs, width);
        ASSERT_EQ(std::memcmp(together.data(), alone.data(), together.size() * sizeof(float)), 0)
            << static_cast<int>(format) << ": " << num_rows << " x " << width << " x " << num_inputs;
      }
    }
  }
}

// Nor on the processor: blocks are exact, and added up in one order.
TEST_P(ByteProducts, AreThoseOfEveryTarget) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (const WeightFormat format : kFormats) {
    const Weights weights = Draw(format, 19, 768, random);
    std::vector<float> input(9 * 768);
    for (float& x : input) x = normal(random);
    for (const int num_inputs : {1, 2, 9}) {
      const std::vector<float> here = Products(weights, input.data(), num_inputs, 768);
      UseTarget(HWY_SCALAR);
      const std::vector<float> there = Products(weights, input.data(), num_inputs, 768);
      UseTarget(GetParam());
      ASSERT_EQ(here, there) << static_cast<int>(format) << " x " << num_inputs;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Every, ByteProducts, ::testing::ValuesIn(Targets()));

}  // namespace
}  // namespace pith::kernels
