// Pages of groups: their error, and that it does not add up when survivors are regrouped.
#include "kernels/group_codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/attention.h"
#include "kernels/attention_test_util.h"

namespace pith::kernels {
namespace {

constexpr int kP = kPageEntries;

float LargestScale(KvFormat format, std::span<const float> values, ScaleGrid grid) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const int units = ZeroUnits(format), largest_zero = grid == ScaleGrid::kFine ? 127 : 127 / units * units;
  const auto levels = static_cast<float>((1 << BitsOf(format)) - 1);
  const float needed =
      std::max((*high - *low) / levels, std::abs(*low) * static_cast<float>(units) / static_cast<float>(largest_zero));
  // A scale on the nested grid is the next power of two, or the one after it if the range straddles one level more.
  return std::max(needed, 0x1p-18f) * (grid == ScaleGrid::kFine ? 1.125f : 4.0f);
}

std::vector<float> RandomChannel(std::mt19937* random, float mean, float deviation) {
  std::normal_distribution<float> normal(mean, deviation);
  std::vector<float> values(kP);
  for (float& value : values) value = normal(*random);
  return values;
}

class GroupCodecTest : public testing::TestWithParam<KvFormat> {};
INSTANTIATE_TEST_SUITE_P(Formats, GroupCodecTest, testing::ValuesIn(GroupedFormats()),
                         [](const auto& format) { return std::string(KvFormatName(format.param)); });

TEST_P(GroupCodecTest, ErrorIsBounded) {
  const KvFormat format = GetParam();
  const PageLayout layout = PageLayout::Make(format, 1, 32, 0);
  std::mt19937 random(1);
  for (const ScaleGrid grid : {ScaleGrid::kFine, ScaleGrid::kNested}) {
    for (int i = 0; i < 2000; ++i) {
      const float size = std::exp2(static_cast<float>(i % 24) - 10);
      const std::vector<float> values = RandomChannel(&random, size * static_cast<float>(i % 7 - 3), size);
      const PoisonedBytes page(layout.page_bytes);
      WriteKeyGroup(layout, page.get(), 0, values.data(), grid);
      // Half a scale; on the nested grid a smaller scale may cut off the ends, by less than one larger scale.
      const float bound = LargestScale(format, values, grid) * (grid == ScaleGrid::kFine ? 0.5001f : 1.0f);
      for (int j = 0; j < kP; ++j) {
        float read = NAN;
        ReadKey(layout, page.get(), j, &read, 1);
        ASSERT_NEAR(read, values[static_cast<size_t>(j)], bound) << "group " << i << " entry " << j;
      }
    }
  }
}

double SquaredError(KvFormat format, ScaleGrid grid) {
  const PageLayout layout = PageLayout::Make(format, 1, 32, 0);
  std::mt19937 random(5);
  double error = 0;
  for (int i = 0; i < 500; ++i) {
    const std::vector<float> values = RandomChannel(&random, 0.5f, 1.0f);
    const PoisonedBytes page(layout.page_bytes);
    WriteKeyGroup(layout, page.get(), 0, values.data(), grid);
    for (int j = 0; j < kP; ++j) {
      float read = NAN;
      ReadKey(layout, page.get(), j, &read, 1);
      error += std::pow(read - values[static_cast<size_t>(j)], 2);
    }
  }
  return error;
}

TEST_P(GroupCodecTest, ClippingServesTheRestInFewBits) {
  const double share = SquaredError(GetParam(), ScaleGrid::kClipped) / SquaredError(GetParam(), ScaleGrid::kFine);
  if (InfoOf(GetParam()).clips_keys) {
    EXPECT_LT(share, 0.85);
  } else {
    EXPECT_EQ(share, 1.0);
  }
}

TEST_P(GroupCodecTest, ExtremesAreFinite) {
  const PageLayout layout = PageLayout::Make(GetParam(), 1, 32, 0);
  for (const float value : {0.0f, 1e-30f, -1e-30f, 60000.0f, -60000.0f}) {
    for (const ScaleGrid grid : {ScaleGrid::kFine, ScaleGrid::kClipped, ScaleGrid::kNested}) {
      std::vector<float> values(kP, value);
      const PoisonedBytes page(layout.page_bytes);
      WriteKeyGroup(layout, page.get(), 0, values.data(), grid);
      float read = NAN;
      ReadKey(layout, page.get(), 5, &read, 1);
      EXPECT_NEAR(read, value, std::max(4e-6, std::abs(value) * 0.03)) << value;
    }
  }
}

// What lies on the nested grid is stored again without error, in any company that needs no larger scale.
TEST_P(GroupCodecTest, NestedGroupsAreStoredAgainExactly) {
  const PageLayout layout = PageLayout::Make(GetParam(), 1, 32, 0);
  std::mt19937 random(2);
  for (int i = 0; i < 500; ++i) {
    const std::vector<float> values = RandomChannel(&random, static_cast<float>(i % 5 - 2), 1.0f);
    const PoisonedBytes page(layout.page_bytes);
    WriteKeyGroup(layout, page.get(), 0, values.data(), ScaleGrid::kNested);
    std::vector<float> first(kP), again(kP);
    for (int j = 0; j < kP; ++j) ReadKey(layout, page.get(), j, &first[static_cast<size_t>(j)], 1);
    // A part of the group, repeated: its range is smaller, so its scale is.
    std::vector<float> part = first;
    for (int j = kP / 2; j < kP; ++j) part[static_cast<size_t>(j)] = first[static_cast<size_t>(j - kP / 2)];
    WriteKeyGroup(layout, page.get(), 0, part.data(), ScaleGrid::kNested);
    for (int j = 0; j < kP; ++j) ReadKey(layout, page.get(), j, &again[static_cast<size_t>(j)], 1);
    ASSERT_EQ(part, again);
  }
}

// 50 rounds in which a fifth of the entries leave and new ones come: the error of the oldest survivors.
double ErrorAfterRounds(KvFormat format, ScaleGrid grid, int rounds) {
  const PageLayout layout = PageLayout::Make(format, 1, 32, 0);
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  struct Entry {
    float truth, stored;
    int age;
  };
  std::vector<Entry> entries;
  for (int i = 0; i < 16 * kP; ++i) entries.push_back({normal(random), 0, 0});
  for (Entry& entry : entries) entry.stored = entry.truth;
  const PoisonedBytes page(layout.page_bytes);
  for (int round = 0; round <= rounds; ++round) {
    for (size_t p = 0; p < entries.size(); p += kP) {
      float channel[kP];
      for (size_t j = 0; j < kP; ++j) channel[j] = entries[p + j].stored;
      WriteKeyGroup(layout, page.get(), 0, channel, round == 0 ? ScaleGrid::kFine : grid);
      for (size_t j = 0; j < kP; ++j) ReadKey(layout, page.get(), static_cast<int>(j), &entries[p + j].stored, 1);
    }
    if (round == rounds) break;
    // The first half is what the recipe loves; the rest is replaced, in random order.
    std::shuffle(entries.begin(), entries.begin() + 8 * kP, random);
    for (size_t i = 8 * kP; i < entries.size(); ++i) {
      const float fresh = normal(random);
      entries[i] = {fresh, fresh, 0};
    }
    for (size_t i = 0; i < 8 * kP; ++i) ++entries[i].age;
    for (size_t i = 0; i < 4 * kP; ++i) std::swap(entries[i], entries[8 * kP + i]);
    std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.age > b.age; });
    std::shuffle(entries.begin(), entries.begin() + 8 * kP, random);
  }
  double sum = 0;
  int count = 0;
  for (const Entry& entry : entries) {
    if (entry.age < rounds) continue;
    sum += (entry.stored - entry.truth) * (entry.stored - entry.truth);
    ++count;
  }
  return std::sqrt(sum / count);
}

TEST_P(GroupCodecTest, ErrorDoesNotAddUpOverRounds) {
  const KvFormat format = GetParam();
  const double once = ErrorAfterRounds(format, ScaleGrid::kNested, 0);
  const double nested = ErrorAfterRounds(format, ScaleGrid::kNested, 50);
  const double fine = ErrorAfterRounds(format, ScaleGrid::kFine, 50);
  RecordProperty("once", testing::PrintToString(once));
  RecordProperty("nested", testing::PrintToString(nested));
  RecordProperty("fine", testing::PrintToString(fine));
  EXPECT_LT(nested, 2.5 * once);
  EXPECT_GT(fine, 1.5 * nested) << "the control: what a grid that does not nest adds up to";
}

TEST_P(GroupCodecTest, ValuesAndStateMoveExactly) {
  const PageLayout plain = PageLayout::Make(KvFormat::kF16, 40, 72, 2);
  const PageLayout layout = PageLayout::Make(GetParam(), 40, 72, 2);
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  const PoisonedBytes from(plain.page_bytes), page(layout.page_bytes), other(layout.page_bytes);
  std::vector<float> key(40), value(72);
  for (int j = 0; j < kP; ++j) {
    for (float& x : key) x = normal(random);
    for (float& x : value) x = normal(random);
    WriteEntryF32(plain, from.get(), j, key.data(), value.data(), 100 + j);
    plain.column(from.get(), 1)[j] = static_cast<float>(j);
  }
  ConvertPage(plain, from.get(), layout, page.get());
  for (int j = 0; j < kP; ++j) CopyValueAndState(layout, other.get(), kP - 1 - j, layout, page.get(), j);
  std::vector<float> read(72), moved(72);
  for (int j = 0; j < kP; ++j) {
    ReadValue(layout, page.get(), j, read.data());
    ReadValue(layout, other.get(), kP - 1 - j, moved.data());
    EXPECT_EQ(read, moved);
    EXPECT_EQ(layout.positions(other.get())[kP - 1 - j], 100 + j);
    EXPECT_EQ(layout.column(other.get(), 1)[kP - 1 - j], static_cast<float>(j));
  }
  // Back to 16 bits: the float32 reading of the group, rounded.
  ConvertEntry(plain, from.get(), 3, layout, page.get(), 9);
  ReadKey(layout, page.get(), 9, key.data(), 1);
  std::vector<float> back(40);
  ReadKey(plain, from.get(), 3, back.data(), 1);
  for (size_t d = 0; d < 40; ++d) EXPECT_NEAR(back[d], key[d], std::abs(key[d]) / 2048);
  EXPECT_EQ(plain.positions(from.get())[3], 109);
}

}  // namespace
}  // namespace pith::kernels
