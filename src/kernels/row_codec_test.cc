// Entries in and out of pages, on every SIMD target.
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/attention_test_util.h"
#include "kernels/targets_test_util.h"

namespace pith::kernels {
namespace {

// Exactly representable in f16, as 1024 + 10 bits.
uint16_t RandomHalf(std::mt19937* random) {
  const auto bits = static_cast<uint32_t>((*random)());
  const uint32_t exponent = 8 + (bits >> 16) % 12;
  return static_cast<uint16_t>((bits & 0x8000U) | exponent << 10 | (bits & 1023U));
}
float ToFloat(uint16_t half) {
  const float value = std::ldexp(static_cast<float>(1024 + (half & 1023)), (half >> 10 & 31) - 25);
  return (half & 0x8000) != 0 ? -value : value;
}

// Formats whose entries are written one by one.
std::vector<PageFormat> EntryFormats() {
  std::vector<PageFormat> formats;
  for (const KvFormat value : kKvFormats) {
    formats.push_back(IsGrouped(value) ? PageFormat(formats.size() % 2 == 0 ? KvFormat::kF16 : KvFormat::kQ8, value)
                                       : PageFormat(value));
  }
  return formats;
}

using RowCodecTest = TargetTest;

INSTANTIATE_TEST_SUITE_P(Targets, RowCodecTest, testing::ValuesIn(Targets()),
                         [](const testing::TestParamInfo<int64_t>& target) {
                           return std::string(hwy::TargetName(target.param));
                         });

// The largest scale that a group of values low..high may get: the byte of a scale rounds up by less than 1/8.
float FineScaleBound(KvFormat format, float low, float high) {
  const auto levels = static_cast<float>((1 << BitsOf(format)) - 1);
  const float needed = std::max((high - low) / levels, std::abs(low) * static_cast<float>(ZeroUnits(format)) / 127);
  return std::max(needed, 0x1p-18f) * 1.125f;
}

// 32 entries as f16 rows, with a stride wider than a row.
struct Rows {
  int dim;
  size_t stride;
  std::vector<uint16_t> halves;
  std::vector<float> floats;  // [32, dim]

  Rows(int dim_in, std::mt19937* random) : dim(dim_in), stride(static_cast<size_t>(dim_in) + 5) {
    for (size_t i = 0; i < stride * kPageEntries; ++i) halves.push_back(RandomHalf(random));
    for (size_t j = 0; j < kPageEntries; ++j) {
      for (size_t d = 0; d < static_cast<size_t>(dim); ++d) floats.push_back(ToFloat(halves[j * stride + d]));
    }
  }
  const uint16_t* half_row(int j) const { return halves.data() + static_cast<size_t>(j) * stride; }
  const float* row(int j) const { return floats.data() + j * dim; }

  // Largest |read - written| of row j in units of what its format may lose.
  void ExpectNear(KvFormat format, int j, const float* read) const {
    for (int begin = 0; begin < dim; begin += kGroupElements) {
      const int end = IsGrouped(format) ? std::min(dim, begin + kGroupElements) : dim;
      float absmax = 0, low = row(j)[begin], high = low;
      for (int d = begin; d < end; ++d) {
        absmax = std::max(absmax, std::abs(row(j)[d]));
        low = std::min(low, row(j)[d]);
        high = std::max(high, row(j)[d]);
      }
      const auto bound = [&](float value) {
        switch (InfoOf(format).element) {
          case KvElement::kHalf:
            return 0.0f;
          case KvElement::kBfloat:
            return std::abs(value) / 256;
          case KvElement::kByte:
            return absmax / 127 * 0.5001f;
          case KvElement::kCode:
            return FineScaleBound(format, low, high) * 0.5001f;
        }
        return 0.0f;
      };
      for (int d = begin; d < end; ++d) {
        ASSERT_NEAR(read[d], row(j)[d], bound(row(j)[d])) << "entry " << j << " channel " << d;
      }
      if (!IsGrouped(format)) return;
    }
  }
};

void ExpectPage(const PageLayout& layout, const std::byte* page, const Rows& keys, const Rows& values, int count) {
  std::vector<float> read_keys(static_cast<size_t>(count * layout.key_dim));
  std::vector<float> read_values(static_cast<size_t>(count * layout.value_dim));
  ReadKeys(layout, page, count, read_keys.data());
  ReadValues(layout, page, count, read_values.data());
  for (int j = 0; j < count; ++j) {
    keys.ExpectNear(layout.format.key, j, read_keys.data() + j * layout.key_dim);
    values.ExpectNear(layout.format.value, j, read_values.data() + j * layout.value_dim);
    EXPECT_EQ(layout.positions(page)[j], 100 + j);
    for (int c = 0; c < layout.num_columns; ++c) EXPECT_EQ(layout.column(page, c)[j], 0.0f);
  }
}

TEST_P(RowCodecTest, WhatIsWrittenIsRead) {
  std::mt19937 random(1);
  std::vector<int32_t> positions;
  for (int j = 0; j < kPageEntries; ++j) positions.push_back(100 + j);
  for (const PageFormat format : EntryFormats()) {
    for (const auto& [key_dim, value_dim] : {std::pair{64, 64}, {1, 7}, {40, 72}, {129, 65}, {576, 512}}) {
      const PageLayout layout = PageLayout::Make(format, key_dim, value_dim, 2);
      const Rows keys(key_dim, &random);
      const Rows values(value_dim, &random);
      for (const int count : {1, 7, 8, 31, 32}) {
        const PoisonedBytes one(layout.page_bytes);
        const PoisonedBytes floats(layout.page_bytes);
        const PoisonedBytes many(layout.page_bytes);
        for (int j = 0; j < count; ++j) {
          WriteEntryF16(layout, one.get(), j, keys.half_row(j), values.half_row(j), positions[static_cast<size_t>(j)]);
          WriteEntryF32(layout, floats.get(), j, keys.row(j), values.row(j), positions[static_cast<size_t>(j)]);
        }
        // In two parts, so that the second starts at any slot.
        const int first = count / 3;
        WriteEntriesF16(layout, many.get(), 0, first, keys.half_row(0), keys.stride, values.half_row(0), values.stride,
                        positions.data());
        WriteEntriesF16(layout, many.get(), first, count - first, keys.half_row(first), keys.stride,
                        values.half_row(first), values.stride, positions.data() + first);
        ExpectPage(layout, one.get(), keys, values, count);
        // Three ways to write leave the same bytes, and none beyond its entries.
        EXPECT_EQ(std::memcmp(one.get(), floats.get(), layout.page_bytes), 0);
        EXPECT_EQ(std::memcmp(one.get(), many.get(), layout.page_bytes), 0);
        if (count < kPageEntries) {
          EXPECT_EQ(layout.positions(one.get())[count], -1);
        }
      }
    }
  }
}

TEST_P(RowCodecTest, CopyIsExact) {
  std::mt19937 random(2);
  for (const PageFormat format : EntryFormats()) {
    const PageLayout layout = PageLayout::Make(format, 40, 72, 2);
    const Rows keys(40, &random);
    const Rows values(72, &random);
    const PoisonedBytes from(layout.page_bytes);
    const PoisonedBytes to(layout.page_bytes);
    for (int j = 0; j < kPageEntries; ++j) {
      WriteEntryF16(layout, from.get(), j, keys.half_row(j), values.half_row(j), 100 + j);
      layout.column(from.get(), 1)[j] = static_cast<float>(j);
    }
    for (int j = 0; j < kPageEntries; ++j) CopyEntry(layout, to.get(), kPageEntries - 1 - j, from.get(), j);
    EXPECT_EQ(layout.positions(to.get())[0], 131);
    EXPECT_EQ(layout.column(to.get(), 1)[0], 31.0f);
    const PoisonedBytes back(layout.page_bytes);
    for (int j = 0; j < kPageEntries; ++j) CopyEntry(layout, back.get(), kPageEntries - 1 - j, to.get(), j);
    EXPECT_EQ(std::memcmp(back.get(), from.get(), layout.page_bytes), 0);
    CopyEntry(layout, back.get(), 3, back.get(), 3);
    EXPECT_EQ(std::memcmp(back.get(), from.get(), layout.page_bytes), 0);
  }
}

TEST_P(RowCodecTest, ZeroRowsStayZero) {
  const PageLayout layout = PageLayout::Make(KvFormat::kQ8, 64, 64, 0);
  const PoisonedBytes page(layout.page_bytes);
  const std::vector<float> zeros(64, 0.0f);
  WriteEntryF32(layout, page.get(), 0, zeros.data(), zeros.data(), 0);
  std::vector<float> read(64, 1.0f);
  ReadKeys(layout, page.get(), 1, read.data());
  EXPECT_EQ(read, zeros);
  ReadValues(layout, page.get(), 1, read.data());
  EXPECT_EQ(read, zeros);
}

}  // namespace
}  // namespace pith::kernels
