#include "cache/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/byte_io.h"

namespace pith {
namespace {

constexpr int kLayers = 2, kHeads = 2, kKeyDim = 8, kValueDim = 4, kColumns = 1;

// One entry as a naive model remembers it.
struct Entry {
  int32_t position;
  float key, value, column;
};
using NaiveHead = std::vector<Entry>;

std::vector<CacheLayer> Layers() {
  return std::vector<CacheLayer>(kLayers, CacheLayer{kHeads, kKeyDim, kValueDim, true});
}

SequenceLayout LayoutOf(PageFormat entry, std::optional<PageFormat> low = std::nullopt) {
  return {entry, kColumns, low};
}

// A ledger of so many f16 pages of Layers(), and bytes for tables.
constexpr size_t BytesOfPages(size_t num_pages) {
  return num_pages * (1024 + PagePool::kTableBytesPerPage);
}

Status AppendOne(HeadCache& head, const Entry& entry) {
  PITH_RETURN_IF_ERROR(head.Extend(1));
  const std::vector<float> key(kKeyDim, entry.key), value(kValueDim, entry.value);
  const int at = head.num_entries();
  kernels::WriteEntryF32(head.layout(), head.page_of(at), at % kPageEntries, key.data(), value.data(), entry.position);
  head.layout().column(head.page_of(at), 0)[at % kPageEntries] = entry.column;
  head.Commit(1);
  return {};
}

void ExpectEqual(const HeadCache& head, const NaiveHead& naive, float tolerance) {
  ASSERT_EQ(head.num_entries(), static_cast<int>(naive.size()));
  const size_t n = naive.size();
  std::vector<int32_t> positions(n);
  std::vector<float> keys(n * kKeyDim), values(n * kValueDim), column(n);
  head.ReadPositions(positions);
  head.ReadKeys(keys.data());
  head.ReadValues(values.data());
  head.ReadColumn(0, column);
  for (size_t i = 0; i < n; ++i) {
    ASSERT_EQ(positions[i], naive[i].position);
    ASSERT_NEAR(keys[i * kKeyDim + 3], naive[i].key, tolerance);
    ASSERT_NEAR(values[i * kValueDim + 1], naive[i].value, tolerance);
    ASSERT_EQ(column[i], naive[i].column);
  }
}

// One random operation on a head and on the naive one; column: what entries are marked with.
void ChangeHead(HeadCache& head, NaiveHead& expected, uint32_t action, std::mt19937& rng, int32_t& next_position,
                float column) {
  if (action < 10) {
    for (auto i = rng() % 40; i > 0; --i) {
      const Entry entry{next_position++, static_cast<float>(rng() % 1000) / 1000,
                        static_cast<float>(rng() % 1000) / 1000, static_cast<float>(rng() % 1000)};
      if (!AppendOne(head, entry)) break;  // full: nothing has changed
      expected.push_back(entry);
    }
  } else if (action < 14) {
    std::vector<int32_t> kept;
    NaiveHead left;
    for (int i = 0; i < head.num_entries(); ++i) {
      if (rng() % 3 == 0) continue;
      kept.push_back(i);
      left.push_back(expected[static_cast<size_t>(i)]);
    }
    if (head.Keep(kept)) expected = left;
  } else if (action == 14) {
    const std::vector<float> columns(expected.size(), column);
    if (head.WriteColumn(0, columns)) {
      for (Entry& entry : expected) entry.column = column;
    } else {
      // Some pages may have been written before one could not be copied.
      std::vector<float> now(expected.size());
      head.ReadColumn(0, now);
      for (size_t i = 0; i < now.size(); ++i) expected[i].column = now[i];
    }
  } else if (action >= 16) {
    const int residual = static_cast<int>(rng() % 40);
    if (head.Demote(residual)) {
      EXPECT_LT(head.num_entries() - head.num_low_entries(), kPageEntries + residual);
    }
  } else if (!expected.empty()) {
    const int32_t before = expected[expected.size() / 2].position;
    const int dropped = head.DropPagesBefore(before);
    ASSERT_EQ(dropped % kPageEntries, 0);
    for (int i = 0; i < dropped; ++i) ASSERT_LT(expected[static_cast<size_t>(i)].position, before);
    expected.erase(expected.begin(), expected.begin() + dropped);
  }
}

// Random appends, evictions, column writes, drops, forks and frees against a naive model.
// low: what full pages are demoted to at random moments, if anything.
void RunModelBased(PageFormat format, std::optional<PageFormat> low, float tolerance, uint32_t seed) {
  SCOPED_TRACE(testing::Message() << format.Name() << " " << (low ? low->Name() : "") << " seed " << seed);
  std::mt19937 rng(seed);
  Ledger ledger(BytesOfPages(90) + 4096);
  const auto created = KvCache::Create(&ledger, Layers());
  KvCache& cache = *created;
  std::map<int, std::vector<NaiveHead>> naive;  // sequence -> [layers * heads]
  std::map<int, int32_t> next_position;
  for (int step = 0; step < 400; ++step) {
    const auto pick = [&] {
      return std::next(naive.begin(), static_cast<std::ptrdiff_t>(rng() % naive.size()))->first;
    };
    const auto action = rng() % (low ? 19 : 16);
    if (naive.empty() || action == 0) {
      if (naive.size() >= 4) continue;
      auto id = cache.NewSequence(LayoutOf(format, low), ledger.common());
      if (!id) continue;
      naive[*id].resize(kLayers * kHeads);
      next_position[*id] = 0;
    } else if (action == 1 && naive.size() < 4) {
      const int from = pick();
      auto id = cache.Fork(from, ledger.common());
      if (!id) continue;
      naive[*id] = naive[from];
      next_position[*id] = next_position[from];
    } else if (action == 2 && naive.size() > 1) {
      const int id = pick();
      cache.Free(id);
      naive.erase(id);
    } else {
      const int id = pick();
      const int layer = static_cast<int>(rng() % kLayers), h = static_cast<int>(rng() % kHeads);
      HeadCache& head = cache.head(id, layer, h);
      NaiveHead& expected = naive[id][static_cast<size_t>(layer * kHeads + h)];
      ChangeHead(head, expected, static_cast<uint32_t>(action), rng, next_position[id], static_cast<float>(step));
      if (testing::Test::HasFatalFailure()) return;
    }
    const Status verified = cache.Verify();
    ASSERT_TRUE(verified) << verified.error().message;
    ASSERT_LE(ledger.peak_bytes(), ledger.limit_bytes());
    for (const auto& [id, heads] : naive) {
      for (size_t i = 0; i < heads.size(); ++i) {
        ExpectEqual(cache.head(id, static_cast<int>(i) / kHeads, static_cast<int>(i) % kHeads), heads[i], tolerance);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST(KvCacheTest, RandomOperationsAgreeWithANaiveModel) {
  for (uint32_t seed = 0; seed < 12; ++seed) {
    RunModelBased(KvFormat::kF16, std::nullopt, 1e-3f, seed);
    RunModelBased(KvFormat::kQ8, std::nullopt, 2e-2f, seed);
    RunModelBased(KvFormat::kF16, PageFormat(KvFormat::kQ8), 2e-2f, seed);
    for (const KvFormat format : kKvFormats) {
      if (!IsGrouped(format)) continue;
      // Elements of a group are within 0..1 here: a scale is less than two steps, and half of one is added at each
      // growth.
      const float steps = 2.0f / static_cast<float>((1 << BitsOf(format)) - 1);
      RunModelBased(KvFormat::kF16, PageFormat(format), steps, seed);
      RunModelBased(KvFormat::kF16, PageFormat(format, KvFormat::kQ8), steps, seed);
    }
    if (HasFatalFailure()) return;
  }
}

// A low cache takes the bytes that its format says, and its pages come back.
TEST(KvCacheTest, DemotionFreesBytes) {
  Ledger ledger(size_t{1} << 20);
  const auto cache = KvCache::Create(&ledger, {{1, 64, 64, true}});
  const int id = *cache->NewSequence({.low = KvFormat::kQ4}, ledger.common());
  HeadCache& head = cache->head(id, 0, 0);
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<float> key(64), value(64);
  for (int32_t p = 0; p < 10 * kPageEntries + 5; ++p) {
    for (float& x : key) x = normal(rng);
    for (float& x : value) x = normal(rng);
    ASSERT_TRUE(head.Extend(1));
    kernels::WriteEntryF32(head.layout(), head.page_of(p), p % kPageEntries, key.data(), value.data(), p);
    head.Commit(1);
  }
  const size_t before = ledger.used_bytes(MemoryTag::kPages);
  ASSERT_TRUE(head.Demote(0));
  EXPECT_EQ(head.num_low_entries(), 10 * kPageEntries);
  EXPECT_LT(static_cast<double>(ledger.used_bytes(MemoryTag::kPages)), 0.38 * static_cast<double>(before));
  EXPECT_DOUBLE_EQ(head.content_bytes(), 10 * kPageEntries * (128 * 4.5 / 8) + 5 * 256);
  // Every third entry leaves: the rest of the low ones is grouped anew, and the last group is completed.
  std::vector<int32_t> kept;
  for (int32_t i = 0; i < head.num_entries(); ++i) {
    if (i % 3 != 0) kept.push_back(i);
  }
  ASSERT_TRUE(head.Keep(kept));
  EXPECT_EQ(head.num_entries(), static_cast<int>(kept.size()));
  ASSERT_TRUE(cache->Verify());
  head.Clear();
  EXPECT_EQ(ledger.used_bytes(MemoryTag::kPages), 0u);
}

TEST(HeadCache, ColumnsMayBeWrittenInPlaceOnceAPageIsWritable) {
  Ledger ledger(size_t{1} << 20);
  const auto cache = KvCache::Create(&ledger, Layers());
  const int id = *cache->NewSequence(LayoutOf(KvFormat::kF16), ledger.common());
  HeadCache& head = cache->head(id, 0, 0);
  constexpr int kEntries = 2 * kPageEntries + 5;
  for (int i = 0; i < kEntries; ++i) ASSERT_TRUE(AppendOne(head, {i, 0, 0, static_cast<float>(i)}));
  const int copy = *cache->Fork(id, ledger.common());
  HeadCache& fork = cache->head(copy, 0, 0);
  EXPECT_EQ(fork.page_of(kPageEntries), head.page_of(kPageEntries));
  ASSERT_TRUE(fork.MakeWritable(kPageEntries + 3));
  EXPECT_NE(fork.page_of(kPageEntries), head.page_of(kPageEntries));
  EXPECT_EQ(fork.page_of(0), head.page_of(0));
  std::fill_n(fork.layout_of(kPageEntries).column(fork.page_of(kPageEntries), 0), kPageEntries, -1.0F);
  std::vector<float> of_fork(kEntries), of_head(kEntries);
  fork.ReadColumn(0, of_fork);
  head.ReadColumn(0, of_head);
  for (int i = 0; i < kEntries; ++i) {
    EXPECT_EQ(of_fork[static_cast<size_t>(i)], i / kPageEntries == 1 ? -1.0F : static_cast<float>(i)) << i;
    EXPECT_EQ(of_head[static_cast<size_t>(i)], static_cast<float>(i)) << i;
  }
}

TEST(HeadCache, SharedColumnsAreWrittenWithoutACopyAndValuesReadOneByOne) {
  Ledger ledger(size_t{1} << 20);
  const auto cache = KvCache::Create(&ledger, {{1, 8, 4, true}});
  const int id = *cache->NewSequence({.num_columns = 1}, ledger.common());
  HeadCache& head = cache->head(id, 0, 0);
  constexpr int kEntries = 2 * kPageEntries + 3;
  for (int32_t p = 0; p < kEntries; ++p) {
    const std::vector<float> key(8, 1.0F), value = {static_cast<float>(p), 1, 2, 3};
    ASSERT_TRUE(head.Extend(1));
    kernels::WriteEntryF32(head.layout(), head.page_of(p), p % kPageEntries, key.data(), value.data(), p);
    head.Commit(1);
  }
  HeadCache& fork = cache->head(*cache->Fork(id, ledger.common()), 0, 0);
  const size_t used = ledger.used_bytes(MemoryTag::kPages);
  std::vector<float> column(kEntries);
  for (size_t i = 0; i < column.size(); ++i) column[i] = 10.0F + static_cast<float>(i);
  fork.WriteSharedColumn(0, column);
  EXPECT_EQ(ledger.used_bytes(MemoryTag::kPages), used);
  std::vector<float> read(kEntries);
  head.ReadColumn(0, read);
  EXPECT_EQ(read, column);
  ASSERT_TRUE(fork.WriteColumn(0, read));  // the control: this one copies
  EXPECT_GT(ledger.used_bytes(MemoryTag::kPages), used);
  const int32_t wanted[] = {1, 31, 32, 66};
  std::vector<float> values(4 * 4);
  head.ReadValuesOf(wanted, values.data());
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(values[i * 4], static_cast<float>(wanted[i]));
    EXPECT_EQ(values[i * 4 + 3], 3);
  }
}

class SavedCache : public ::testing::Test {
 protected:
  static constexpr int kEntries = 3 * kPageEntries + 5;

  static std::unique_ptr<KvCache> Make(Ledger* ledger) { return KvCache::Create(ledger, {{1, 64, 64, true}}); }
  static SequenceLayout Layout(std::optional<PageFormat> low, int num_columns = 1) {
    return {PageFormat(), num_columns, low};
  }

  // Two pages in q4, one full and one begun page in f16.
  void SetUp() override {
    const auto cache = Make(&ledger_);
    const int id = *cache->NewSequence(Layout(KvFormat::kQ4), ledger_.common());
    HeadCache& head = cache->head(id, 0, 0);
    for (int32_t p = 0; p < kEntries; ++p) {
      std::vector<float> key(64), value(64);
      for (int d = 0; d < 64; ++d)
        key[d] = static_cast<float>(std::sin(p * 0.3 + d)), value[d] = static_cast<float>(d - p);
      ASSERT_TRUE(head.Extend(1));
      kernels::WriteEntryF32(head.layout(), head.page_of(p), p % kPageEntries, key.data(), value.data(), p);
      head.layout().column(head.page_of(p), 0)[p % kPageEntries] = 0.5f * static_cast<float>(p);
      head.Commit(1);
    }
    ASSERT_TRUE(head.Demote(kPageEntries + 5));
    ASSERT_EQ(head.num_low_entries(), 2 * kPageEntries);
    cache->Save(id, writer_);
    content_ = Content(head);
  }

  static std::vector<float> Content(const HeadCache& head) {
    const auto n = static_cast<size_t>(head.num_entries());
    std::vector<float> all(n * 129);
    head.ReadKeys(all.data());
    head.ReadValues(all.data() + n * 64);
    head.ReadColumn(0, {all.data() + n * 128, n});
    return all;
  }

  void ExpectRefused(const SequenceLayout& layout, size_t account_bytes, ErrorCode code, const std::string& part) {
    const auto account = MemoryAccount::Open(&ledger_, 0, account_bytes);
    const auto cache = Make(&ledger_);
    const int id = *cache->NewSequence(layout, account.get());
    MemoryReader reader(writer_.bytes());
    const Status restored = cache->Restore(id, reader, kEntries);
    ASSERT_FALSE(restored) << part;
    EXPECT_EQ(restored.error().code, code) << restored.error().message;
    EXPECT_NE(restored.error().message.find(part), std::string::npos) << restored.error().message;
    cache->Free(id);
    EXPECT_EQ(ledger_.used_bytes(MemoryTag::kPages), 0u);
  }

  Ledger ledger_{size_t{4} << 20};
  MemoryWriter writer_;
  std::vector<float> content_;
};

TEST_F(SavedCache, LowPagesComeBackAsTheyWere) {
  const auto cache = Make(&ledger_);
  const int id = *cache->NewSequence(Layout(KvFormat::kQ4), ledger_.common());
  MemoryReader reader(writer_.bytes());
  const Status restored = cache->Restore(id, reader, kEntries);
  ASSERT_TRUE(restored) << restored.error().message;
  EXPECT_EQ(reader.left(), 0u);
  HeadCache& head = cache->head(id, 0, 0);
  EXPECT_EQ(head.num_entries(), kEntries);
  EXPECT_EQ(head.num_low_entries(), 2 * kPageEntries);
  EXPECT_EQ(Content(head), content_);
  EXPECT_TRUE(cache->Verify());
  // It goes on: the third page fits the low format too, and a gap regroups.
  ASSERT_TRUE(head.Demote(0));
  EXPECT_EQ(head.num_low_entries(), 3 * kPageEntries);
  std::vector<int32_t> kept;
  for (int32_t i = 0; i < kEntries; i += 2) kept.push_back(i);
  ASSERT_TRUE(head.Keep(kept));
  EXPECT_TRUE(cache->Verify());
}

TEST_F(SavedCache, OtherFormatsAndDamageAreRefused) {
  constexpr size_t kEnough = size_t{1} << 20;
  ExpectRefused(Layout(std::nullopt), kEnough, ErrorCode::kInvalidArgument, "another format");
  ExpectRefused(Layout(KvFormat::kQ2), kEnough, ErrorCode::kInvalidArgument, "another format");
  ExpectRefused(Layout(KvFormat::kQ4, 2), kEnough, ErrorCode::kInvalidArgument, "another format");
  ExpectRefused(Layout(KvFormat::kQ4), size_t{8} << 10, ErrorCode::kOutOfBudget, "no free page");
  const std::vector<std::byte> whole = writer_.bytes();
  writer_.bytes().resize(whole.size() - 1);
  ExpectRefused(Layout(KvFormat::kQ4), kEnough, ErrorCode::kCorrupt, "ends");
  // After the number of layers and nine numbers of the layer: the head's entries, fewer than its low pages hold.
  writer_.bytes() = whole;
  writer_.bytes()[10 * sizeof(uint32_t)] = std::byte{4};
  ExpectRefused(Layout(KvFormat::kQ4), kEnough, ErrorCode::kCorrupt, "more low pages");
}

TEST(KvCacheTest, FullLedgerRefusesAndChangesNothing) {
  Ledger ledger(BytesOfPages(2) + 2048);
  const auto cache = KvCache::Create(&ledger, Layers());
  EXPECT_EQ(ledger.used_bytes(), 0U) << "a cache costs nothing until it is used";
  const int id = *cache->NewSequence(LayoutOf(KvFormat::kF16), ledger.common());
  HeadCache& head = cache->head(id, 0, 0);
  ASSERT_TRUE(head.Extend(2 * kPageEntries));
  HeadCache& other = cache->head(id, 1, 0);
  const Status full = other.Extend(2 * kPageEntries);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, ErrorCode::kOutOfBudget);
  EXPECT_EQ(other.num_entries(), 0);
  EXPECT_EQ(ledger.used_bytes(MemoryTag::kPages), BytesOfPages(2));
  EXPECT_TRUE(cache->Verify());
}

TEST(KvCacheTest, ForkSharesUntilWritten) {
  Ledger ledger(size_t{64} << 10);
  const auto cache = KvCache::Create(&ledger, Layers());
  const int id = *cache->NewSequence(LayoutOf(KvFormat::kF16), ledger.common());
  for (int32_t p = 0; p < 40; ++p) ASSERT_TRUE(AppendOne(cache->head(id, 0, 0), {p, 0.5f, 0.25f, 1}));
  EXPECT_EQ(ledger.used_bytes(MemoryTag::kPages), BytesOfPages(2));
  const int fork = *cache->Fork(id, ledger.common());
  EXPECT_EQ(ledger.used_bytes(MemoryTag::kPages), BytesOfPages(2)) << "a fork copies nothing";
  ASSERT_TRUE(AppendOne(cache->head(fork, 0, 0), {40, 0.5f, 0.25f, 1}));
  EXPECT_EQ(ledger.used_bytes(MemoryTag::kPages), BytesOfPages(3)) << "only the page written to is copied";
  EXPECT_EQ(cache->head(id, 0, 0).num_entries(), 40);
}

// A full budget, in which heads shrink on as many threads at once: what a head frees pays for the copies and the
// regrouped pages that it needs, and nobody is refused, whoever is faster.
void ShrinkInAFullBudget(std::optional<PageFormat> low) {
  Ledger ledger(size_t{4} << 20);
  const auto rest = MemoryAccount::Open(&ledger, 0, ledger.limit_bytes());
  const auto cache = KvCache::Create(&ledger, {{4, kKeyDim, kValueDim, true}});
  const int id = *cache->NewSequence(LayoutOf(KvFormat::kF16, low), ledger.common());
  int32_t position = 0;
  const auto append = [&](int sequence, int count) {
    for (int i = 0; i < count; ++i, ++position) {
      for (HeadCache& head : cache->heads(sequence, 0)) ASSERT_TRUE(AppendOne(head, {position, 0.5F, 0.25F, 1}));
    }
  };
  append(id, 2 * kPageEntries);
  for (HeadCache& head : cache->heads(id, 0)) ASSERT_TRUE(head.Demote(0));
  const int fork = *cache->Fork(id, ledger.common());  // two pages are shared, four and a bit its own
  append(fork, 4 * kPageEntries + 7);
  for (HeadCache& head : cache->heads(fork, 0)) ASSERT_TRUE(head.Demote(kPageEntries));
  ASSERT_TRUE(rest->TryCharge(MemoryTag::kTokens, ledger.uncommitted_bytes()));
  std::vector<int32_t> kept;
  for (int32_t i = 0; i < 6 * kPageEntries + 7; i += 2) kept.push_back(i);
  std::array<Status, 4> statuses;
  std::vector<std::thread> threads;
  for (size_t h = 0; h < 4; ++h) {
    threads.emplace_back([&, h] { statuses[h] = cache->head(fork, 0, static_cast<int>(h)).Keep(kept); });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t h = 0; h < 4; ++h) {
    ASSERT_TRUE(statuses[h]) << statuses[h].error().message;
    EXPECT_EQ(cache->head(fork, 0, static_cast<int>(h)).num_entries(), static_cast<int>(kept.size()));
    EXPECT_EQ(cache->head(id, 0, static_cast<int>(h)).num_entries(), 2 * kPageEntries);
  }
  EXPECT_TRUE(cache->Verify());
  rest->Release(MemoryTag::kTokens, rest->used_bytes());
}

TEST(KvCacheTest, HeadsShrinkTogetherInAFullBudget) {
  for (int round = 0; round < 20; ++round) {
    ShrinkInAFullBudget(std::nullopt);
    ShrinkInAFullBudget(KvFormat::kQ4);
    if (HasFatalFailure()) return;
  }
}

// Demotion, eviction from low pages and another format at once in a budget without a byte to spare.
TEST(KvCacheTest, OnesOwnPagesChangeFormatInAFullBudget) {
  Ledger ledger(size_t{4} << 20);
  const auto account = MemoryAccount::Open(&ledger, 0, ledger.limit_bytes());
  const auto cache = KvCache::Create(&ledger, Layers());
  const int id = *cache->NewSequence(LayoutOf(KvFormat::kF16, KvFormat::kQ4), account.get());
  HeadCache& head = cache->head(id, 1, 1);
  NaiveHead naive;
  for (int32_t p = 0; p < 6 * kPageEntries + 3; ++p) {
    naive.push_back({p, static_cast<float>(p % 10) / 10, static_cast<float>(p % 7) / 7, static_cast<float>(p)});
    ASSERT_TRUE(AppendOne(head, naive.back()));
  }
  const auto fill = [&] { ASSERT_TRUE(account->SetLimits(0, account->used_bytes())); };
  fill();
  ASSERT_TRUE(head.Demote(0));
  ExpectEqual(head, naive, 0.13F);
  fill();
  ASSERT_TRUE(cache->SetLow(id, KvFormat::kQ2)) << "to another format, at the ceiling";
  EXPECT_EQ(head.num_low_entries(), 6 * kPageEntries);
  EXPECT_EQ(head.low_layout()->format, PageFormat(KvFormat::kQ2));
  ExpectEqual(head, naive, 0.6F);
  fill();
  const size_t used = account->used_bytes();
  const Status larger = cache->SetLow(id, KvFormat::kQ8);
  ASSERT_FALSE(larger);
  EXPECT_EQ(larger.error().code, ErrorCode::kOutOfBudget);
  EXPECT_EQ(cache->layout(id).low, PageFormat(KvFormat::kQ2));
  EXPECT_EQ(account->used_bytes(), used);
  ExpectEqual(head, naive, 0.6F);
  std::vector<int32_t> kept;
  NaiveHead left;
  for (int32_t i = 1; i < head.num_entries(); i += 2) kept.push_back(i), left.push_back(naive[static_cast<size_t>(i)]);
  ASSERT_TRUE(head.Keep(kept));
  ExpectEqual(head, left, 0.8F);
  ASSERT_TRUE(account->SetLimits(0, ledger.limit_bytes()));
  ASSERT_TRUE(cache->SetLow(id, KvFormat::kF16));
  EXPECT_EQ(head.num_low_entries(), 0);
  EXPECT_FALSE(cache->layout(id).low);
  ExpectEqual(head, left, 0.8F);
  EXPECT_TRUE(cache->Verify());
  cache->Free(id);
}

TEST(KvCacheTest, EightBitEntriesAreNotConverted) {
  Ledger ledger(size_t{1} << 20);
  const auto cache = KvCache::Create(&ledger, Layers());
  const auto made = cache->NewSequence(LayoutOf(KvFormat::kQ8, KvFormat::kQ4), ledger.common());
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().message, "a cache in q8 cannot be converted to q4");
  const int id = *cache->NewSequence(LayoutOf(KvFormat::kQ8), ledger.common());
  const Status set = cache->SetLow(id, KvFormat::kQ4);
  ASSERT_FALSE(set);
  EXPECT_EQ(set.error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(cache->SetLow(id, KvFormat::kQ8)) << "its own format changes nothing";
}

TEST(KvCacheTest, WhatASequenceWritesIsItsOwn) {
  Ledger ledger(size_t{1} << 20);
  const auto a = MemoryAccount::Open(&ledger, 100000, 200000);
  const auto b = MemoryAccount::Open(&ledger, 0, BytesOfPages(2) + 1024);
  const auto cache = KvCache::Create(&ledger, Layers());
  const int first = *cache->NewSequence(LayoutOf(KvFormat::kF16), a.get());
  for (int32_t p = 0; p < 3 * kPageEntries + 5; ++p) ASSERT_TRUE(AppendOne(cache->head(first, 0, 0), {p, 0, 0, 0}));
  const int fork = *cache->Fork(first, b.get());
  EXPECT_EQ(b->used_bytes(MemoryTag::kPages), 0U) << "a fork pays for nothing that it shares";
  HeadCache& head = cache->head(fork, 0, 0);
  EXPECT_EQ(head.PagesToExtend(1).num_pages, 1U);
  EXPECT_EQ(head.PagesToExtend(kPageEntries).num_pages, 2U);
  EXPECT_GE(head.PagesToExtend(kPageEntries).bytes, BytesOfPages(2));
  ASSERT_TRUE(head.Extend(1));
  EXPECT_EQ(b->used_bytes(MemoryTag::kPages), BytesOfPages(1)) << "the copy is the writer's";
  EXPECT_EQ(a->used_bytes(MemoryTag::kPages), BytesOfPages(4));
  const Status full = head.Extend(2 * kPageEntries);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, ErrorCode::kOutOfBudget);
  EXPECT_TRUE(cache->head(first, 0, 0).Extend(kPageEntries)) << "another's ceiling is not mine";
  cache->Free(first);
  EXPECT_EQ(a->used_bytes(), 0U);
  EXPECT_EQ(ledger.common()->used_bytes(MemoryTag::kPages), BytesOfPages(3)) << "pages that outlive their owner";
  EXPECT_TRUE(cache->Verify());
  cache->Free(fork);
  EXPECT_EQ(ledger.used_bytes(), 0U);
}

TEST(KvCacheTest, TruncationTakesBackTheNewest) {
  Ledger ledger(size_t{1} << 20);
  const auto cache = KvCache::Create(&ledger, Layers());
  const int id = *cache->NewSequence(LayoutOf(KvFormat::kF16, KvFormat::kQ4), ledger.common());
  HeadCache& head = cache->head(id, 0, 0);
  for (int32_t p = 0; p < 4 * kPageEntries; ++p) ASSERT_TRUE(AppendOne(head, {p, 0, 0, 0}));
  ASSERT_TRUE(head.Demote(kPageEntries));
  ASSERT_EQ(head.num_low_entries(), 3 * kPageEntries);
  const size_t used = ledger.used_bytes(MemoryTag::kPages);
  ASSERT_TRUE(head.Extend(kPageEntries + 1));
  ASSERT_TRUE(head.Truncate(head.num_entries()));
  EXPECT_EQ(ledger.used_bytes(MemoryTag::kPages), used) << "slots of a step that failed";
  ASSERT_TRUE(head.Truncate(3 * kPageEntries + 1));
  const Status within = head.Truncate(3 * kPageEntries - 1);
  ASSERT_FALSE(within);
  EXPECT_EQ(within.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(head.num_entries(), 3 * kPageEntries + 1);
  ASSERT_TRUE(head.Truncate(2 * kPageEntries));
  EXPECT_EQ(head.num_low_entries(), 2 * kPageEntries);
  EXPECT_TRUE(cache->Verify());
  ASSERT_TRUE(AppendOne(head, {3 * kPageEntries, 0, 0, 0}));
  EXPECT_TRUE(cache->Verify());
}

// Controls: Verify must see a cache that is wrong.
TEST(KvCacheTest, VerifySeesUnorderedPositions) {
  Ledger ledger(size_t{64} << 10);
  const auto cache = KvCache::Create(&ledger, Layers());
  const int id = *cache->NewSequence(LayoutOf(KvFormat::kF16), ledger.common());
  ASSERT_TRUE(AppendOne(cache->head(id, 0, 0), {5, 0, 0, 0}));
  ASSERT_TRUE(cache->Verify());
  ASSERT_TRUE(AppendOne(cache->head(id, 0, 0), {4, 0, 0, 0}));
  EXPECT_FALSE(cache->Verify());
}

TEST(KvCacheTest, VerifySeesBytesThatNoPageTakes) {
  Ledger ledger(size_t{64} << 10);
  const auto account = MemoryAccount::Open(&ledger, 0, ledger.limit_bytes());
  const auto cache = KvCache::Create(&ledger, Layers());
  const int id = *cache->NewSequence(LayoutOf(KvFormat::kF16), account.get());
  ASSERT_TRUE(AppendOne(cache->head(id, 0, 0), {5, 0, 0, 0}));
  ASSERT_TRUE(cache->Verify());
  ASSERT_TRUE(account->TryCharge(MemoryTag::kPages, 1));
  EXPECT_FALSE(cache->Verify());
  account->Release(MemoryTag::kPages, 1);
  account->Pass(MemoryTag::kPages, 1, ledger.common());
  EXPECT_FALSE(cache->Verify()) << "the sum is right, but another pays";
  ledger.common()->Pass(MemoryTag::kPages, 1, account.get());
  ASSERT_TRUE(cache->Verify());
  cache->Free(id);
}

TEST(KvCache, RewritesEntriesAndLeavesForksAlone) {
  Ledger ledger(size_t{256} << 10);
  const auto created = KvCache::Create(&ledger, Layers());
  KvCache& cache = *created;
  const int a = *cache.NewSequence(LayoutOf(KvFormat::kF16), ledger.common());
  NaiveHead naive;
  for (int i = 0; i < 70; ++i) {
    naive.push_back({i * 2, static_cast<float>(i) / 16, static_cast<float>(-i) / 16, static_cast<float>(i)});
    ASSERT_TRUE(AppendOne(cache.head(a, 0, 0), naive.back()));
  }
  const int b = *cache.Fork(a, ledger.common());
  const NaiveHead before = naive;
  std::vector<float> keys(70 * kKeyDim), values(70 * kValueDim);
  for (const int32_t entry : {0, 33, 69}) {
    naive[static_cast<size_t>(entry)].key = 7, naive[static_cast<size_t>(entry)].value = -7;
    std::fill_n(keys.begin() + entry * kKeyDim, kKeyDim, 7.0F);
    std::fill_n(values.begin() + entry * kValueDim, kValueDim, -7.0F);
  }
  ASSERT_TRUE(cache.head(b, 0, 0).Rewrite(std::vector<int32_t>{0, 33, 69}, keys.data(), values.data()));
  ExpectEqual(cache.head(b, 0, 0), naive, 1e-3F);
  ExpectEqual(cache.head(a, 0, 0), before, 1e-3F);
  EXPECT_TRUE(cache.Verify());
}

}  // namespace
}  // namespace pith
