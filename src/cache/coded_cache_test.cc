// Heads whose full pages are coded: what they are charged, forks, files and damage to them.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "base/byte_io.h"
#include "cache/kv_cache.h"
#include "cache/page_entries.h"
#include "kernels/coded_pages.h"

namespace pith {
namespace {

constexpr int kDim = 64;

class CodedCacheTest : public testing::Test {
 protected:
  CodedCacheTest() : ledger_(size_t{4} << 20), cache_(KvCache::Create(&ledger_, {{1, kDim, kDim, true}})) {
    sequence_ = *cache_->NewSequence(layout_, ledger_.common());
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    HeadCache& head = cache_->head(sequence_, 0, 0);
    EXPECT_TRUE(head.Extend(kEntries));
    std::vector<float> key(kDim), value(kDim);
    for (int i = 0; i < kEntries; ++i) {
      for (auto* row : {&key, &value}) {
        for (float& number : *row) number = normal(random);
      }
      kernels::WriteEntryF32(head.layout(), head.page_of(i), i % kP, key.data(), value.data(), i);
      head.Commit(1);
    }
  }
  HeadCache& head() { return cache_->head(sequence_, 0, 0); }
  size_t page_bytes() const { return ledger_.used_bytes(MemoryTag::kPages); }
  std::vector<float> Keys(const HeadCache& head) {
    std::vector<float> keys(static_cast<size_t>(head.num_entries() * kDim));
    head.ReadKeys(keys.data());
    return keys;
  }

  static constexpr int kEntries = 10 * kP + 7;
  const SequenceLayout layout_{.entry = {}, .num_columns = 1, .low = PageFormat(CodedFormat(16))};
  Ledger ledger_;
  std::unique_ptr<KvCache> cache_;
  int sequence_ = 0;
};

TEST_F(CodedCacheTest, PagesAreChargedWhatTheyTake) {
  const size_t before = page_bytes();
  ASSERT_TRUE(head().Demote(0));
  size_t needed = before / 11;  // of the page that is not full
  for (int i = 0; i < 10; ++i) needed += kernels::CodedPageBytes(head().layout_of(i * kP), head().page_of(i * kP));
  EXPECT_GE(page_bytes(), needed);
  EXPECT_LE(static_cast<double>(page_bytes()), 1.05 * static_cast<double>(needed));
  EXPECT_LT(page_bytes(), before / 2);
  EXPECT_TRUE(cache_->Verify());
  cache_->Free(sequence_);
  EXPECT_EQ(page_bytes(), 0U);
}

TEST_F(CodedCacheTest, ForksShareAndWriteOnTheirOwn) {
  ASSERT_TRUE(head().Demote(0));
  const std::vector<float> keys = Keys(head());
  const size_t before = page_bytes();
  const int fork = *cache_->Fork(sequence_, ledger_.common());
  EXPECT_EQ(page_bytes(), before);
  HeadCache& other = cache_->head(fork, 0, 0);
  ASSERT_TRUE(other.WriteColumn(0, std::vector<float>(kEntries, 3)));
  EXPECT_EQ(page_bytes(), 2 * before);
  EXPECT_TRUE(cache_->Verify());
  std::vector<float> column(kEntries);
  head().ReadColumn(0, column);
  EXPECT_EQ(column[40], 0);
  std::vector<int32_t> kept;
  for (int i = 0; i < kEntries; i += 2) kept.push_back(i);
  ASSERT_TRUE(other.Keep(kept));
  EXPECT_TRUE(cache_->Verify());
  EXPECT_EQ(Keys(head()), keys);
  const std::vector<float> left = Keys(other);
  for (size_t i = 0; i < kept.size(); ++i) {
    for (size_t d = 0; d < kDim; ++d) {
      ASSERT_EQ(left[i * kDim + d], keys[static_cast<size_t>(kept[i]) * kDim + d]) << "coded a second time";
    }
  }
}

TEST_F(CodedCacheTest, ComesBackOrIsRefused) {
  ASSERT_TRUE(head().Demote(0));
  MemoryWriter writer;
  cache_->Save(sequence_, writer);
  const std::vector<float> keys = Keys(head());
  const size_t before = ledger_.used_bytes();
  const auto restore = [&](std::span<const std::byte> bytes, bool* same) {
    const int copy = *cache_->NewSequence(layout_, ledger_.common());
    MemoryReader reader(bytes);
    const Status status = cache_->Restore(copy, reader, kEntries);
    *same = status && Keys(cache_->head(copy, 0, 0)) == keys;
    EXPECT_TRUE(!status || cache_->Verify());
    cache_->Free(copy);
    EXPECT_TRUE(cache_->Verify());
    EXPECT_EQ(ledger_.used_bytes(), before);
    return status;
  };
  bool same = false;
  ASSERT_TRUE(restore(writer.bytes(), &same));
  EXPECT_TRUE(same);
  EXPECT_LT(writer.bytes().size(), size_t{10} * 2700 + 9000);
  std::mt19937 random(2);
  int refused = 0, changed = 0;
  for (int i = 0; i < 600; ++i) {
    std::vector<std::byte> damaged = writer.bytes();
    damaged[60 + random() % (damaged.size() - 60)] ^= static_cast<std::byte>(1 << random() % 8);
    const Status status = restore(damaged, &same);
    refused += !status;
    changed += status && !same;
  }
  for (size_t size = 100; size < writer.bytes().size(); size += 997) {
    EXPECT_FALSE(restore(std::span(writer.bytes()).first(size), &same));
  }
  EXPECT_GT(refused, 50);
  EXPECT_GT(changed, 20) << "the control: numbers changed";
}

TEST_F(CodedCacheTest, OtherFormatsAndBack) {
  ASSERT_TRUE(head().Demote(0));
  const std::vector<float> keys = Keys(head());
  ASSERT_TRUE(cache_->SetLow(sequence_, KvFormat::kQ8));
  EXPECT_TRUE(cache_->Verify());
  ASSERT_TRUE(cache_->SetLow(sequence_, CodedFormat(16)));
  EXPECT_TRUE(cache_->Verify());
  ASSERT_TRUE(cache_->SetLow(sequence_, PageFormat()));  // as entries arrive
  EXPECT_EQ(head().num_low_entries(), 0);
  const std::vector<float> now = Keys(head());
  for (size_t i = 0; i < now.size(); ++i) ASSERT_NEAR(now[i], keys[i], 0.3);
  EXPECT_FALSE(cache_->SetLower(sequence_, PageFormat(CodedFormat(16)), {.share = 0.4}));
}

}  // namespace
}  // namespace pith
