// Random operations on sequences of different layouts and accounts against a naive model.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <iterator>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/byte_io.h"
#include "cache/kv_cache.h"
#include "cache/page_entries.h"
#include "kernels/coded_pages.h"

namespace pith {
namespace {

constexpr int kKeyDim = 8, kValueDim = 4;

// Of an entry's elements.
float SignOf(int channel) { return channel % 2 == 0 ? 1.0F : -1.0F; }

// Two global layers of two heads, and a window layer of one.
const std::vector<CacheLayer>& Layers() {
  static const std::vector<CacheLayer> layers = {
      {2, kKeyDim, kValueDim, true}, {0, 0, 0, false}, {1, kKeyDim, kValueDim, false}, {2, kKeyDim, kValueDim, true}};
  return layers;
}

// Those whose keys may lose channels: each alone, and as values beside keys of the one before it.
const std::vector<PageFormat> kPlainLowFormats = [] {
  std::vector<PageFormat> formats;
  for (size_t i = 0; i < kKvFormats.size(); ++i) {
    if (BitsOf(kKvFormats[i]) == 16) continue;
    formats.emplace_back(kKvFormats[i]);
    if (BitsOf(kKvFormats[i - 1]) < 16) formats.emplace_back(kKvFormats[i - 1], kKvFormats[i]);
  }
  return formats;
}();
const std::vector<PageFormat> kLowFormats = [] {
  std::vector<PageFormat> formats = kPlainLowFormats;
  formats.emplace_back(CodedFormat(16));
  formats.emplace_back(CodedFormat(30), CodedFormat(12));
  return formats;
}();

// Of 8, as ChannelsLeft() has it for this share.
constexpr double kPrunedShare = 0.4;
const std::vector<uint16_t> kChannels = {0, 2, 3, 6, 7};

struct Entry {
  int32_t position;
  float key, value, column;
  bool pruned = false;  // its key has only the channels of kChannels
};

struct NaiveSequence {
  SequenceLayout layout;
  std::vector<std::vector<Entry>> heads;
  int32_t next_position = 0;
  float tolerance = 1e-3F;  // what storing may have changed
  MemoryAccount* account = nullptr;
};

class Model {
 public:
  explicit Model(uint32_t seed) : rng_(seed), ledger_(size_t{70} << 10), cache_(KvCache::Create(&ledger_, Layers())) {
    for (size_t i = 0; i < 4; ++i) {
      accounts_.push_back(MemoryAccount::Open(&ledger_, (seed + i) % 3 * 8192, size_t{40 + 30 * (i % 3)} << 10));
      EXPECT_NE(accounts_.back(), nullptr);
    }
  }

  KvCache& cache() { return *cache_; }
  size_t num_refused() const { return num_refused_; }
  size_t num_done() const { return num_done_; }
  size_t num_lowered() const { return num_lowered_; }  // pages
  size_t num_pruned() const { return num_pruned_; }    // pages
  size_t num_coded() const { return num_coded_; }      // pages in codes, one each time that it is looked at

  void Step() {
    const auto action = rng_() % 31;
    if (naive_.empty() || action == 0) return New();
    if (action == 1) return Fork();
    if (action == 2) return Free();
    const int id = Pick();
    if (action == 3) return ChangeLow(id);
    if (action == 4) return SaveAndRestore(id);
    if (action == 5) return Limits(id);
    const int at = static_cast<int>(rng_() % naive_[id].heads.size());
    if (action < 13) return Append(id, at);
    if (action < 16) return Keep(id, at);
    if (action < 19) return Demote(id, at);
    if (action < 21) return Truncate(id, at);
    if (action == 21) return Drop(id, at);
    if (action < 24) return Write(id, at);
    if (action == 24) return ChangeLower(id);
    if (action > 27) return Prune(id, at);
    Lower(id, at);
  }

  void ExpectAgreement() {
    const Status verified = cache_->Verify();
    ASSERT_TRUE(verified) << verified.error().message;
    ASSERT_LE(ledger_.peak_bytes(), ledger_.limit_bytes());
    size_t used = ledger_.common()->used_bytes();
    for (const auto& account : accounts_) used += account->used_bytes();
    ASSERT_EQ(used, ledger_.used_bytes());
    for (const auto& [id, sequence] : naive_) {
      ASSERT_EQ(cache_->layout(id), sequence.layout);
      for (size_t i = 0; i < sequence.heads.size(); ++i) {
        ExpectEqual(HeadOf(id, static_cast<int>(i)), sequence.heads[i], sequence.tolerance);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }

  void FreeAll() {
    while (!naive_.empty()) Free();
    EXPECT_EQ(ledger_.used_bytes(), 0U);
  }

 private:
  // Errors of storing in a format; elements are within -1..1. Half a scale, of whichever grid, and again where pages
  // are regrouped.
  static float ErrorOf(PageFormat format) {
    if (format.coded()) return 2.0F / static_cast<float>(std::min(CodedSteps(format.key), CodedSteps(format.value)));
    const int bits = std::min(BitsOf(format.key), BitsOf(format.value));
    return bits == 16 ? 1e-3F : bits == 8 ? 2e-2F : 2.0F / static_cast<float>((1 << bits) - 1);
  }

  int Pick() { return std::next(naive_.begin(), static_cast<std::ptrdiff_t>(rng_() % naive_.size()))->first; }
  HeadCache& HeadOf(int id, int at) {
    constexpr std::array<std::pair<int, int>, 5> kPlaces = {{{0, 0}, {0, 1}, {2, 0}, {3, 0}, {3, 1}}};
    const auto [layer, head] = kPlaces[static_cast<size_t>(at)];
    return cache_->head(id, layer, head);
  }
  bool Done(const Status& status) {
    status ? ++num_done_ : ++num_refused_;
    EXPECT_TRUE(status || status.error().code == ErrorCode::kOutOfBudget) << status.error().message;
    return status.has_value();
  }
  MemoryAccount* AnyAccount() { return accounts_[rng_() % accounts_.size()].get(); }

  void New() {
    if (naive_.size() >= 6) return;
    NaiveSequence sequence;
    sequence.layout.num_columns = static_cast<int>(rng_() % 3);
    if (rng_() % 4 == 0) sequence.layout.entry = KvFormat::kQ8;
    if (rng_() % 2 == 0) sequence.layout.low = kLowFormats[rng_() % kLowFormats.size()];
    if (rng_() % 2 == 0) sequence.layout.lower = kLowFormats[rng_() % kLowFormats.size()];
    if (sequence.layout.entry == KvFormat::kQ8) sequence.layout.low = sequence.layout.lower = std::nullopt;
    sequence.tolerance = ErrorOf(sequence.layout.entry);
    if (sequence.layout.lower) sequence.tolerance += ErrorOf(*sequence.layout.lower);
    if (sequence.layout.low) sequence.tolerance += ErrorOf(*sequence.layout.low);
    sequence.account = AnyAccount();
    sequence.heads.resize(cache_->num_heads());
    const auto id = cache_->NewSequence(sequence.layout, sequence.account);
    if (id) naive_[*id] = sequence;
  }

  void Fork() {
    if (naive_.size() >= 6) return;
    const int from = Pick();
    MemoryAccount* account = AnyAccount();
    const auto id = cache_->Fork(from, account);
    if (!id) return;
    naive_[*id] = naive_[from];
    naive_[*id].account = account;
  }

  void Free() {
    const int id = Pick();
    cache_->Free(id);
    naive_.erase(id);
  }

  void Append(int id, int at) {
    NaiveSequence& sequence = naive_[id];
    HeadCache& head = HeadOf(id, at);
    const int count = static_cast<int>(rng_() % 70);
    const ExtensionCost cost = head.PagesToExtend(count);
    const size_t available = sequence.account->available_bytes();
    const size_t entries = sequence.heads[static_cast<size_t>(at)].size(), pages = head.pages().size();
    const Status extended = head.Extend(count);
    EXPECT_TRUE(extended || cost.bytes > available) << "what was foreseen to fit does not";
    if (!Done(extended)) {
      EXPECT_EQ(head.num_entries(), static_cast<int>(entries));
      EXPECT_EQ(head.pages().size(), pages);
      return;
    }
    if (rng_() % 8 == 0) {  // a step that fails: slots go back, uncommitted
      EXPECT_TRUE(head.Truncate(head.num_entries()));
      EXPECT_EQ(head.pages().size(), (entries + kP - 1) / kP);
      return;
    }
    for (int i = 0; i < count; ++i) {
      const Entry entry{sequence.next_position++, Random(), Random(), static_cast<float>(rng_() % 1000)};
      std::vector<float> key(kKeyDim, entry.key), value(kValueDim, entry.value);
      for (int c = 0; c < kKeyDim; ++c) key[static_cast<size_t>(c)] *= SignOf(c);
      for (int c = 0; c < kValueDim; ++c) value[static_cast<size_t>(c)] *= SignOf(c);
      const int slot = head.num_entries();
      kernels::WriteEntryF32(head.layout(), head.page_of(slot), slot % kP, key.data(), value.data(), entry.position);
      for (int c = 0; c < head.layout().num_columns; ++c) {
        head.layout().column(head.page_of(slot), c)[slot % kP] = entry.column + static_cast<float>(c);
      }
      head.Commit(1);
      sequence.heads[static_cast<size_t>(at)].push_back(entry);
    }
  }

  void Keep(int id, int at) {
    HeadCache& head = HeadOf(id, at);
    std::vector<Entry>& expected = naive_[id].heads[static_cast<size_t>(at)];
    const std::vector<int32_t> order = OrderOf(head);
    const auto of = 2 + rng_() % 5;
    std::vector<int32_t> kept;
    std::vector<Entry> left;
    for (size_t i = 0; i < expected.size(); ++i) {
      if (rng_() % of == 0) continue;
      kept.push_back(order[i]);
      left.push_back(expected[i]);
    }
    std::ranges::sort(kept);
    if (!Done(head.Keep(kept))) return;
    expected = left;
    NotePruned(id, head, expected);
  }

  // Whole pages of old entries lose channels, and entries with which such pages are filled when others have left.
  void NotePruned(int id, const HeadCache& head, std::vector<Entry>& expected) {
    const PrunedKeys pruned = naive_[id].layout.pruned;
    if (pruned.share == 0) return;
    const std::vector<int32_t> order = OrderOf(head);
    for (size_t i = 0; i < expected.size(); ++i) {
      if (order[i] >= head.num_lower_entries() || expected[i].pruned) continue;
      EXPECT_LE(i + static_cast<size_t>(pruned.recent), expected.size() - 1) << "one of the newest";
      expected[i].pruned = true;
    }
  }

  void Prune(int id, int at) {
    NaiveSequence& sequence = naive_[id];
    if (sequence.layout.pruned.share == 0) {
      if (sequence.layout.lower || sequence.layout.full().coded()) return;
      const PrunedKeys pruned{.share = kPrunedShare, .recent = static_cast<int>(rng_() % 50)};
      const PageFormat format = sequence.layout.full();
      if (!Done(cache_->SetLower(id, format, pruned))) return;
      sequence.layout.lower = format;
      sequence.layout.pruned = pruned;
      sequence.tolerance += ErrorOf(format);
    }
    HeadCache& head = HeadOf(id, at);
    if (at == 2) {  // of a layer with a window
      EXPECT_FALSE(head.prunes());
      return;
    }
    ASSERT_TRUE(head.prunes());
    if (head.key_channels().empty() && !Done(head.ChooseChannels(kChannels))) return;
    const int before = head.num_lower_entries();
    if (Done(head.Prune())) {
      EXPECT_LT(head.num_entries() - head.num_lower_entries(), kP + sequence.layout.pruned.recent);
    }
    num_pruned_ += static_cast<size_t>(head.num_lower_entries() - before) / kP;
    NotePruned(id, head, sequence.heads[static_cast<size_t>(at)]);
  }

  // Index of each entry in the order of time.
  static std::vector<int32_t> OrderOf(const HeadCache& head) {
    std::vector<int32_t> order = head.TimeOrder();
    if (!order.empty()) return order;
    order.resize(static_cast<size_t>(head.num_entries()));
    std::iota(order.begin(), order.end(), 0);
    return order;
  }

  void Lower(int id, int at) {
    if (!naive_[id].layout.lower || naive_[id].layout.pruned.share > 0) return;
    HeadCache& head = HeadOf(id, at);
    const auto of = 1 + rng_() % 4;
    std::vector<int32_t> chosen;
    for (int i = head.num_lower_entries(); i < head.num_entries(); ++i) {
      if (rng_() % of == 0) chosen.push_back(i);
    }
    const int before = head.num_lower_entries(), all = head.num_entries();
    if (Done(head.Lower(chosen))) {
      EXPECT_EQ(head.num_lower_entries(), before + static_cast<int>(chosen.size()) / kP * kP);
      num_lowered_ += chosen.size() / kP;
    } else {
      EXPECT_EQ(head.num_lower_entries(), before);
    }
    EXPECT_EQ(head.num_entries(), all);
  }

  void ChangeLower(int id) {
    NaiveSequence& sequence = naive_[id];
    if (sequence.layout.entry == KvFormat::kQ8 || sequence.layout.pruned.share > 0) return;
    const PageFormat format = kLowFormats[rng_() % kLowFormats.size()];
    if (!Done(cache_->SetLower(id, format))) return;
    sequence.layout.lower = format;
    sequence.tolerance += ErrorOf(format);
  }

  void Demote(int id, int at) {
    HeadCache& head = HeadOf(id, at);
    const int residual = static_cast<int>(rng_() % 40);
    if (Done(head.Demote(residual)) && head.low_layout() != nullptr) {
      EXPECT_LT(head.num_entries() - head.num_low_entries(), kP + residual);
    }
  }

  void Truncate(int id, int at) {
    HeadCache& head = HeadOf(id, at);
    std::vector<Entry>& expected = naive_[id].heads[static_cast<size_t>(at)];
    const int left = std::max(0, head.num_entries() - static_cast<int>(rng_() % 50));
    const std::vector<int32_t> order = OrderOf(head);
    const Status truncated = head.Truncate(left);
    EXPECT_EQ(truncated.has_value(), left >= head.num_low_entries() || left % kP == 0);
    if (!truncated) return;
    std::vector<Entry> rest;
    for (size_t i = 0; i < order.size(); ++i) {
      if (order[i] < left) rest.push_back(expected[i]);
    }
    expected = rest;
  }

  void Drop(int id, int at) {
    std::vector<Entry>& expected = naive_[id].heads[static_cast<size_t>(at)];
    if (expected.empty() || naive_[id].layout.lower) return;
    const int dropped = HeadOf(id, at).DropPagesBefore(expected[expected.size() / 2].position);
    expected.erase(expected.begin(), expected.begin() + dropped);
  }

  void Write(int id, int at) {
    HeadCache& head = HeadOf(id, at);
    std::vector<Entry>& expected = naive_[id].heads[static_cast<size_t>(at)];
    if (head.layout().num_columns == 0 || expected.empty()) return;
    const float number = static_cast<float>(rng_() % 1000);
    std::vector<float> column(expected.size(), number);
    if (!Done(head.WriteColumn(0, column))) head.ReadColumn(0, column);  // some pages may have been written
    const std::vector<int32_t> order = OrderOf(head);
    for (size_t i = 0; i < column.size(); ++i) expected[i].column = column[static_cast<size_t>(order[i])];
  }

  void ChangeLow(int id) {
    NaiveSequence& sequence = naive_[id];
    const bool lowers = sequence.layout.lower.has_value();  // then entries of low pages may not follow one another
    const PageFormat any = sequence.layout.pruned.share > 0 ? kPlainLowFormats[rng_() % kPlainLowFormats.size()]
                                                            : kLowFormats[rng_() % kLowFormats.size()];
    const PageFormat format = rng_() % 6 == 0 && !lowers ? sequence.layout.entry : any;
    // Pages are encoded from 16 bits.
    if (sequence.layout.entry == KvFormat::kQ8 && !(format == sequence.layout.entry)) return;
    const size_t used = sequence.account->used_bytes();
    if (!Done(cache_->SetLow(id, format))) {
      EXPECT_EQ(sequence.account->used_bytes(), used);
      return;
    }
    sequence.layout.low = format == sequence.layout.entry ? std::nullopt : std::optional(format);
    sequence.tolerance += ErrorOf(format);
  }

  void SaveAndRestore(int id) {
    MemoryWriter writer;
    cache_->Save(id, writer);
    MemoryAccount* account = AnyAccount();
    const auto copy = cache_->NewSequence(cache_->layout(id), account);
    if (!copy) return;
    MemoryReader reader(writer.bytes());
    if (!Done(cache_->Restore(*copy, reader, 1 << 30))) return cache_->Free(*copy);
    cache_->Free(id);
    naive_[*copy] = naive_[id];
    naive_[*copy].account = account;
    naive_.erase(id);
  }

  void Limits(int id) {
    MemoryAccount* account = naive_[id].account;
    const size_t floor = rng_() % 4 * 8192;
    (void)account->SetLimits(floor, floor + (rng_() % 8 << 14));
  }

  float Random() { return static_cast<float>(rng_() % 1000) / 1000; }

  void ExpectEqual(const HeadCache& head, const std::vector<Entry>& expected, float tolerance) {
    const size_t n = expected.size();
    for (int i = 0; i < head.num_low_entries(); i += kP) {
      const PageLayout& layout = head.layout_of(i);
      if (!layout.format.coded()) continue;
      num_coded_ += kernels::CodedPage(layout, head.page_of(i)).kind != kernels::CodedKind::kHalves;
    }
    ASSERT_EQ(head.num_entries(), static_cast<int>(n));
    const std::vector<int32_t> order = OrderOf(head);
    std::vector<int32_t> positions(n);
    std::vector<float> keys(n * kKeyDim), values(n * kValueDim), column(n);
    head.ReadPositions(positions);
    head.ReadKeys(keys.data());
    head.ReadValues(values.data());
    for (size_t i = 0; i < n; ++i) {
      const auto at = static_cast<size_t>(order[i]);
      ASSERT_EQ(positions[at], expected[i].position);
      for (int c = 0; c < kKeyDim; ++c) {
        const bool gone = expected[i].pruned && !std::ranges::binary_search(kChannels, static_cast<uint16_t>(c));
        ASSERT_NEAR(keys[at * kKeyDim + static_cast<size_t>(c)], gone ? 0 : expected[i].key * SignOf(c), tolerance);
      }
      ASSERT_NEAR(values[at * kValueDim + 1], expected[i].value * SignOf(1), tolerance);
    }
    if (head.layout().num_columns == 0) return;
    head.ReadColumn(0, column);
    for (size_t i = 0; i < n; ++i) ASSERT_EQ(column[static_cast<size_t>(order[i])], expected[i].column);
  }

  std::mt19937 rng_;
  Ledger ledger_;
  std::vector<std::unique_ptr<MemoryAccount>> accounts_;
  std::unique_ptr<KvCache> cache_;
  std::map<int, NaiveSequence> naive_;
  size_t num_done_ = 0, num_refused_ = 0, num_lowered_ = 0, num_pruned_ = 0, num_coded_ = 0;
};

TEST(CacheProperties, RandomOperationsAgreeWithANaiveModel) {
  size_t done = 0, refused = 0, lowered = 0, pruned = 0, coded = 0;
  for (uint32_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Model model(seed);
    for (int step = 0; step < 1300; ++step) {
      model.Step();
      model.ExpectAgreement();
      ASSERT_FALSE(testing::Test::HasFailure()) << "step " << step;
    }
    model.FreeAll();
    done += model.num_done();
    lowered += model.num_lowered();
    pruned += model.num_pruned();
    coded += model.num_coded();
    refused += model.num_refused();
  }
  // The control: the budget was met, and not all the time.
  EXPECT_GT(refused, done / 20);
  EXPECT_GT(done, refused);
  EXPECT_GT(lowered, 200U);
  EXPECT_GT(pruned, 200U);
  EXPECT_GT(coded, 2000U);
}

}  // namespace
}  // namespace pith
