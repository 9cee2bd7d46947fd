// Pages of Huffman-coded integers: bounds, sizes, that nothing is lost a second time, all targets, damage.
#include "kernels/coded_pages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/attention.h"
#include "kernels/attention_test_util.h"
#include "kernels/huffman.h"
#include "kernels/page_kernels.h"
#include "kernels/targets_test_util.h"

namespace pith::kernels {
namespace {

constexpr size_t kP = kPageEntries;

PageLayout LayoutOf(int key_steps, int value_steps, int key_dim, int value_dim, int columns = 0) {
  return PageLayout::Make(PageFormat(CodedFormat(key_steps), CodedFormat(value_steps)), key_dim, value_dim, columns);
}

// float16 numbers, as they arrive.
float Rounded(float number) {
  const PageLayout half = PageLayout::Make(PageFormat(), 1, 1, 0);
  const PoisonedBytes page(half.page_bytes);
  WriteEntryF32(half, page.get(), 0, &number, &number, 0);
  float read = 0;
  ReadKeys(half, page.get(), 1, &read);
  return read;
}

// Keys [D][P] whose channels have a mean and a deviation each, values [P][Dv].
struct Rows {
  std::vector<float> keys, values;

  Rows(const PageLayout& layout, std::mt19937* random, float size) {
    std::normal_distribution<float> normal;
    for (int d = 0; d < layout.key_dim; ++d) {
      const float mean = 2 * normal(*random) * size, deviation = std::exp(normal(*random)) * size;
      for (size_t j = 0; j < kP; ++j) keys.push_back(Rounded(mean + deviation * normal(*random)));
    }
    for (size_t j = 0; j < kP; ++j) {
      const float deviation = std::exp(normal(*random)) * size;
      for (int c = 0; c < layout.value_dim; ++c) values.push_back(Rounded(deviation * normal(*random)));
    }
  }
};

struct Decoded {
  std::vector<float> keys, values;

  Decoded(const PageLayout& layout, const std::byte* page)
      : keys(static_cast<size_t>(layout.key_dim) * kP), values(static_cast<size_t>(layout.value_dim) * kP) {
    ReadPage(layout, page, keys.data(), values.data());
  }
};

float RangeOf(const float* numbers, size_t count, size_t stride) {
  float low = numbers[0], high = numbers[0];
  for (size_t i = 1; i < count; ++i) {
    low = std::min(low, numbers[i * stride]);
    high = std::max(high, numbers[i * stride]);
  }
  return high - low;
}

TEST(CodeBooksTest, TakeHardlyMoreThanHuffmanCodes) {
  const auto& books = CodesOfBooks();
  for (size_t b = 0; b + 1 < books.size(); ++b) {
    const CodeWords& book = books[b];
    const double deviation = 0.2 * std::pow(2.0, (static_cast<double>(b) + 1) / 2);
    const auto below = [](double x, double wide) { return std::erfc(-x / wide / std::sqrt(2.0)) / 2; };
    std::vector<int64_t> counts;
    double bits = 0;
    for (int number = -126; number <= 126; ++number) {
      double share = 0;
      for (const auto& [part, wide] : {std::pair(0.85, deviation), std::pair(0.15, 2.2 * deviation)}) {
        share += part * (below(number + 0.5, wide) - below(number - 0.5, wide));
      }
      const int length = book.lengths[static_cast<size_t>(number + 128)];
      EXPECT_EQ(length > 0, number >= book.least && number <= book.greatest);
      bits += share * (length > 0 ? length : 20);
      counts.push_back(std::max<int64_t>(1, std::llround(share * 1e9)));
    }
    const HuffmanCode best(counts);
    double least = 0;
    for (size_t s = 0; s < counts.size(); ++s) least += 1e-9 * static_cast<double>(counts[s]) * best.lengths()[s];
    EXPECT_LT(bits, (deviation < 6 ? 1.015 : 1.05) * least) << b;
  }
  EXPECT_EQ(books.back().least, -128);
  EXPECT_EQ(books.back().greatest, 127);
}

TEST(CodeBooksTest, WhatComesNextSaysWhichCodeItIs) {
  for (size_t b = 0; b < kCodedBooks; ++b) {
    const CodeBook& book = CodeBooks()[b];
    const CodeWords& codes = CodesOfBooks()[b];
    int64_t filled = 0;
    for (int number = codes.least; number <= codes.greatest; ++number) {
      const int length = codes.lengths[static_cast<size_t>(number + 128)];
      const int word = codes.words[static_cast<size_t>(number + 128)];
      filled += int64_t{1} << (kLongestCode - length);
      for (int rest = 0; rest < 1 << (kLongestCode - length); ++rest) {
        const int next = word << (kLongestCode - length) | rest;
        const auto slot = static_cast<size_t>(next >> (kLongestCode - kSlotBits));
        ASSERT_EQ(book.slots[slot] & 15, length);
        ASSERT_EQ((next >> (kLongestCode - length)) + (book.slots[slot] >> 4), number + kCodeBias);
        ASSERT_EQ(book.slot_lengths[slot], length);
        ASSERT_EQ(static_cast<uint8_t>((next >> (kLongestCode - length)) + book.slot_sums[slot]), number + kCodeBias);
      }
    }
    EXPECT_EQ(filled, 1 << kLongestCode);
  }
}

class CodedPageTest : public TargetTest {};
INSTANTIATE_TEST_SUITE_P(Targets, CodedPageTest, testing::ValuesIn(Targets()),
                         [](const auto& target) { return std::string(hwy::TargetName(target.param)); });

TEST_P(CodedPageTest, EveryElementIsWithinItsBound) {
  std::mt19937 random(1);
  int beyond_half = 0, halves = 0;
  for (int i = 0; i < 200; ++i) {
    const int key_steps = 2 + static_cast<int>(random() % 61), value_steps = 2 + static_cast<int>(random() % 61);
    const PageLayout layout = LayoutOf(key_steps, value_steps, 40 + i % 3 * 24, 32 + i % 5 * 13);
    const Rows rows(layout, &random, std::exp2(static_cast<float>(i % 20) - 12));
    const PoisonedBytes page(layout.page_bytes);
    const uint32_t bytes = EncodePage(layout, rows.keys.data(), rows.values.data(), page.get());
    ASSERT_EQ(bytes, CodedPageBytes(layout, page.get()));
    ASSERT_TRUE(IsCodedPage(layout, page.get(), bytes)) << i;
    halves += std::max(key_steps, value_steps) <= 32 && CodedPage(layout, page.get()).kind == CodedKind::kHalves;
    const Decoded decoded(layout, page.get());
    const float key_bound = RangeOf(rows.keys.data(), rows.keys.size(), 1) / static_cast<float>(2 * key_steps);
    for (size_t k = 0; k < rows.keys.size(); ++k) {
      ASSERT_LE(std::abs(decoded.keys[k] - rows.keys[k]), key_bound) << i << " " << k;
    }
    const auto dim = static_cast<size_t>(layout.value_dim);
    for (size_t j = 0; j < kP; ++j) {
      const float bound = RangeOf(rows.values.data() + j * dim, dim, 1) / static_cast<float>(2 * value_steps);
      for (size_t c = 0; c < dim; ++c) {
        const float error = std::abs(decoded.values[j * dim + c] - rows.values[j * dim + c]);
        ASSERT_LE(error, std::max(bound, 0x1p-25F)) << i << " " << j << " " << c;
        beyond_half += error > bound / 2;
      }
    }
  }
  EXPECT_GT(beyond_half, 10000) << "the control: half the bound does not hold";
  EXPECT_LT(halves, 2);
}

TEST_P(CodedPageTest, DecodesAsOneSymbolAtATime) {
  std::mt19937 random(2);
  for (const auto& [key_dim, value_dim] :
       {std::pair(64, 64), {1, 1}, {7, 33}, {128, 128}, {80, 72}, {576, 512}, {40, 256}}) {
    for (const int steps : {2, 5, 16, 62}) {
      const PageLayout layout = LayoutOf(steps, steps, key_dim, value_dim, 2);
      const Rows rows(layout, &random, 0.5F);
      const PoisonedBytes page(layout.page_bytes);
      EncodePage(layout, rows.keys.data(), rows.values.data(), page.get());
      const auto key_count = static_cast<size_t>(key_dim) * kP;
      const size_t stride = static_cast<size_t>(layout.value_groups()) * kGroupElements;
      std::vector<float> keys(key_count), values(stride * kP, NAN), expected_keys(key_count),
          expected_values(stride * kP, NAN);
      DecodeKeys(layout, page.get(), keys.data());
      DecodeValues(layout, page.get(), values.data(), stride);
      DecodeKeysReference(layout, page.get(), expected_keys.data());
      DecodeValuesReference(layout, page.get(), expected_values.data(), stride);
      ASSERT_EQ(keys, expected_keys) << key_dim << " " << steps;
      ASSERT_EQ(values, expected_values) << value_dim << " " << steps;
      std::ranges::fill(keys, NAN);
      std::ranges::fill(values, NAN);
      GetPageKernels().ConvertPage(layout, page.get(), kPageEntries, keys.data(), values.data(), stride);
      ASSERT_EQ(keys, expected_keys) << key_dim << " " << steps;
      ASSERT_EQ(values, expected_values) << value_dim << " " << steps;
      std::vector<float> key(static_cast<size_t>(key_dim)), value(static_cast<size_t>(value_dim));
      ReadKey(layout, page.get(), 5, key.data(), 1);
      ReadValue(layout, page.get(), 5, value.data());
      for (size_t d = 0; d < key.size(); ++d) ASSERT_EQ(key[d], expected_keys[d * kP + 5]);
      for (size_t c = 0; c < value.size(); ++c) ASSERT_EQ(value[c], expected_values[5 * stride + c]);
    }
  }
}

TEST(CodedPagesTest, CodedAgainIsTheSame) {
  std::mt19937 random(3);
  for (const int steps : {2, 4, 16, 40}) {
    const PageLayout layout = LayoutOf(steps, steps, 64, 64);
    const Rows rows(layout, &random, 1);
    const PoisonedBytes page(layout.page_bytes), again(layout.page_bytes);
    const uint32_t bytes = EncodePage(layout, rows.keys.data(), rows.values.data(), page.get());
    const Decoded decoded(layout, page.get());
    ASSERT_EQ(EncodePage(layout, decoded.keys.data(), decoded.values.data(), again.get()), bytes);
    EXPECT_EQ(std::memcmp(page.get() + layout.key_offset, again.get() + layout.key_offset, bytes - layout.key_offset),
              0);
  }
}

// Survivors of two pages of one head make a third one, and so on; the second one's keys are `wider` times the first's.
double LossOfMixing(float wider) {
  std::mt19937 random(4);
  const PageLayout layout = LayoutOf(16, 16, 64, 64);
  const Rows first(layout, &random, 1), second(layout, &random, wider);
  const PoisonedBytes pages[] = {PoisonedBytes(layout.page_bytes), PoisonedBytes(layout.page_bytes)};
  EncodePage(layout, first.keys.data(), first.values.data(), pages[0].get());
  EncodePage(layout, second.keys.data(), second.values.data(), pages[1].get());
  const Decoded decoded[] = {Decoded(layout, pages[0].get()), Decoded(layout, pages[1].get())};
  Rows mixed = first;
  for (size_t j = 0; j < kP; ++j) {
    const Decoded& from = decoded[j % 2];
    for (size_t d = 0; d < 64; ++d) mixed.keys[d * kP + j] = from.keys[d * kP + j];
    for (size_t c = 0; c < 64; ++c) mixed.values[j * 64 + c] = from.values[j * 64 + c];
  }
  const PoisonedBytes page(layout.page_bytes);
  EncodePage(layout, mixed.keys.data(), mixed.values.data(), page.get());
  const Decoded again(layout, page.get());
  EXPECT_EQ(again.values, mixed.values);
  double loss = 0;
  for (size_t i = 0; i < mixed.keys.size(); ++i) loss += std::abs(again.keys[i] - mixed.keys[i]);
  return loss;
}

TEST(CodedPagesTest, NothingIsLostASecondTime) {
  EXPECT_EQ(LossOfMixing(1), 0);
  EXPECT_EQ(LossOfMixing(1.8F), 0);
  EXPECT_GT(LossOfMixing(40), 0) << "the control: a step more than four times as long";
}

TEST(CodedPagesTest, SizesFollowTheEntropy) {
  std::mt19937 random(5);
  for (const int steps : {3, 8, 16}) {
    const PageLayout layout = LayoutOf(steps, steps, 64, 64);
    double bits = 0, entropy = 0;
    constexpr int kPages = 40;
    for (int i = 0; i < kPages; ++i) {
      const Rows rows(layout, &random, 1);
      const PoisonedBytes page(layout.page_bytes);
      const uint32_t bytes = EncodePage(layout, rows.keys.data(), rows.values.data(), page.get());
      bits += 8.0 * static_cast<double>(bytes - layout.key_offset) / (kP * 128);
      // Of a value's integers, which are normal, where a step is no small part of the deviation.
      const CodedPage coded(layout, page.get());
      const Decoded decoded(layout, page.get());
      std::map<float, int> seen;
      for (size_t c = 0; c < 64 * kP; ++c) {
        ++seen[decoded.values[c] * std::ldexp(1.0F, -coded.value_exponents[c / 64])];
      }
      for (const auto& [number, count] : seen) {
        const double share = static_cast<double>(count) / (64 * kP);
        entropy -= share * std::log2(share);
      }
    }
    // Keys have channels of differing width; 0.6 bits an element go to what stands beside the codes.
    EXPECT_LT(bits / kPages, entropy / kPages + 0.9) << steps;
    EXPECT_GT(bits / kPages, 0.3 * entropy / kPages) << steps;
  }
}

TEST(CodedPagesTest, NumbersWithoutACodeStayAsTheyAre) {
  std::mt19937 random(6);
  const PageLayout layout = LayoutOf(16, 16, 64, 64);
  const Rows rows(layout, &random, 1);
  for (const float strange : {INFINITY, -INFINITY, 65504.0F, -60000.0F}) {
    for (const bool in_key : {false, true}) {
      Rows changed = rows;
      (in_key ? changed.keys : changed.values)[777] = strange;
      const PoisonedBytes page(layout.page_bytes);
      const uint32_t bytes = EncodePage(layout, changed.keys.data(), changed.values.data(), page.get());
      EXPECT_TRUE(IsCodedPage(layout, page.get(), bytes));
      const Decoded decoded(layout, page.get());
      if (in_key || std::isinf(strange)) {
        EXPECT_EQ(decoded.keys, changed.keys);
        EXPECT_EQ(decoded.values, changed.values);
      } else {  // a value's range is that of its outlier, and its step as large
        EXPECT_NEAR(decoded.values[777], strange, 2048);
      }
    }
  }
  Rows nothing = rows;
  nothing.keys[5] = NAN;
  const PoisonedBytes page(layout.page_bytes);
  const uint32_t bytes = EncodePage(layout, nothing.keys.data(), nothing.values.data(), page.get());
  EXPECT_TRUE(std::isnan(Decoded(layout, page.get()).keys[5]));
  EXPECT_FALSE(IsCodedPage(layout, page.get(), bytes)) << "not from a file";
}

TEST(CodedPagesTest, ZerosTakeLittle) {
  const PageLayout layout = LayoutOf(16, 16, 64, 64);
  const std::vector<float> zeros(64 * kP, 0.0F);
  const PoisonedBytes page(layout.page_bytes);
  EXPECT_LT(EncodePage(layout, zeros.data(), zeros.data(), page.get()), layout.key_offset + 850);
  EXPECT_EQ(Decoded(layout, page.get()).keys, zeros);
}

TEST(CodedPagesTest, DamageIsRefusedOrHarmless) {
  std::mt19937 random(7);
  const PageLayout layout = LayoutOf(8, 8, 64, 40, 1);
  const Rows rows(layout, &random, 1);
  const PoisonedBytes page(layout.page_bytes);
  const uint32_t bytes = EncodePage(layout, rows.keys.data(), rows.values.data(), page.get());
  int refused = 0;
  constexpr int kTries = 4000;
  for (int i = 0; i < kTries; ++i) {
    // Of exactly its size, so that reading beyond it shows.
    std::vector<std::byte> exact(page.get(), page.get() + bytes);
    const size_t from = layout.key_offset + (i % 2 == 0 ? 4 : 0), until = i % 3 == 0 ? from + 160 : bytes;
    for (uint32_t k = 0; k <= random() % 3; ++k) {
      exact[from + random() % (until - from)] ^= static_cast<std::byte>(1 << random() % 8);
    }
    if (!IsCodedPage(layout, exact.data(), exact.size())) {
      ++refused;
      continue;
    }
    const Decoded decoded(layout, exact.data());
    EXPECT_TRUE(std::ranges::none_of(decoded.keys, [](float number) { return std::isnan(number); }));
  }
  EXPECT_GT(refused, kTries / 3);
  EXPECT_LT(refused, kTries);
  for (size_t size = 0; size < bytes; ++size) EXPECT_FALSE(IsCodedPage(layout, page.get(), size));
}

}  // namespace
}  // namespace pith::kernels
