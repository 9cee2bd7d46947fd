#include "cache/coded_entries.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/half.h"
#include "cache/kv_cache.h"
#include "cache/page_entries.h"
#include "kernels/attention.h"

namespace pith {
namespace {

constexpr int kKeyDim = 24, kValueDim = 16, kHeads = 2;

// A cache of one layer, with a sequence whose heads are filled with numbers that look like keys and values.
class Filled {
 public:
  explicit Filled(PageFormat format, int num_entries) : ledger_(size_t{1} << 24), num_entries_(num_entries) {
    cache_ = KvCache::Create(&ledger_,
                             {{.num_kv_heads = kHeads, .key_dim = kKeyDim, .value_dim = kValueDim, .global = true}});
    layout_ = {format, 2};
    sequence_ = *cache_->NewSequence(layout_, ledger_.common());
    std::mt19937 random(7);
    std::normal_distribution<float> draw;
    std::vector<float> key(kKeyDim), value(kValueDim);
    for (int h = 0; h < kHeads; ++h) {
      HeadCache& head = cache_->head(sequence_, 0, h);
      for (int i = 0; i < num_entries; ++i) {
        for (int d = 0; d < kKeyDim; ++d) {
          key[static_cast<size_t>(d)] = draw(random) * static_cast<float>(1 + d % 3) + static_cast<float>(d % 5);
        }
        for (float& number : value) number = draw(random);
        EXPECT_TRUE(head.Extend(1));
        std::byte* page = head.page_of(i);
        kernels::WriteEntryF32(head.layout(), page, i % kP, key.data(), value.data(), 3 * i + h);
        for (int c = 0; c < 2; ++c) head.layout().column(page, c)[i % kP] = draw(random);
        head.Commit(1);
      }
    }
  }
  ~Filled() { cache_->Free(sequence_); }
  Filled(const Filled&) = delete;
  Filled& operator=(const Filled&) = delete;

  HeadCache& head(int h) { return cache_->head(sequence_, 0, h); }
  std::vector<std::byte> Save(const std::optional<CodedForm>& form) const {
    MemoryWriter writer;
    cache_->Save(sequence_, writer, form);
    return std::move(writer.bytes());
  }
  // Into a new sequence, which `look` sees.
  Status Restore(std::span<const std::byte> bytes, const std::optional<CodedForm>& form,
                 const std::function<void(int h, const HeadCache&)>& look = {},
                 std::vector<std::byte>* saved_again = nullptr) {
    const int sequence = *cache_->NewSequence(layout_, ledger_.common());
    MemoryReader reader(bytes);
    Status status = cache_->Restore(sequence, reader, 3 * num_entries_ + kHeads, form);
    if (status && reader.left() != 0) status = Corrupt("bytes are left");
    EXPECT_TRUE(!status || cache_->Verify());
    for (int h = 0; h < kHeads && status && look; ++h) look(h, cache_->head(sequence, 0, h));
    if (saved_again != nullptr) {
      MemoryWriter writer;
      cache_->Save(sequence, writer, form);
      *saved_again = std::move(writer.bytes());
    }
    cache_->Free(sequence);
    EXPECT_TRUE(cache_->Verify());
    return status;
  }

 private:
  Ledger ledger_;
  const int num_entries_;
  SequenceLayout layout_;
  std::unique_ptr<KvCache> cache_;
  int sequence_ = 0;
};

struct Rows {
  explicit Rows(const HeadCache& head)
      : keys(static_cast<size_t>(head.num_entries()) * kKeyDim),
        values(static_cast<size_t>(head.num_entries()) * kValueDim),
        positions(static_cast<size_t>(head.num_entries())) {
    head.ReadKeys(keys.data());
    head.ReadValues(values.data());
    head.ReadPositions(positions);
    for (int c = 0; c < 2; ++c) {
      columns.emplace_back(positions.size());
      head.ReadColumn(c, columns.back());
    }
  }
  std::vector<float> keys, values;
  std::vector<int32_t> positions;
  std::vector<std::vector<float>> columns;
};

// What the format of a page adds to the error of a number.
double Rounding(KvFormat format, double largest) {
  return largest * (format == KvFormat::kF16 ? 1.0 / 2048 : format == KvFormat::kBf16 ? 1.0 / 256 : 0.5 / 127);
}

// The largest error of coded rows [num_coded, dim], over what is allowed: half a step, and the page's rounding.
double WorstError(const kernels::ErrorBound& bound, KvFormat format, std::span<const float> before,
                  std::span<const float> after, int dim) {
  double worst = 0;
  const auto size = static_cast<size_t>(dim);
  for (size_t block = 0; block < before.size() / size; block += kCodedBlock) {
    const std::span<const float> was = before.subspan(block * size, kCodedBlock * size),
                                 is = after.subspan(block * size, kCodedBlock * size);
    std::vector<double> least(kCodedBlock * size, 1e300), greatest(least.size(), -1e300);
    const auto unit_of = [&](size_t i) { return kernels::UnitOf(bound, 1, size, 0, i / size, i % size); };
    for (size_t i = 0; i < was.size(); ++i) {
      least[unit_of(i)] = std::min(least[unit_of(i)], static_cast<double>(was[i]));
      greatest[unit_of(i)] = std::max(greatest[unit_of(i)], static_cast<double>(was[i]));
    }
    double largest = 0;
    for (const float number : was) largest = std::max(largest, std::abs(static_cast<double>(number)));
    for (size_t i = 0; i < was.size(); ++i) {
      const double step = RoundToHalf((greatest[unit_of(i)] - least[unit_of(i)]) * bound.share);
      const double error = std::abs(static_cast<double>(was[i]) - static_cast<double>(is[i]));
      worst = std::max(worst, error / (step / 2 + Rounding(format, largest + step) + 1e-9));
    }
  }
  return worst;
}

CodedForm Form(const std::string& text) { return **ParseCodedForm(text); }

TEST(CodedEntriesTest, EveryElementComesBackWithinItsBound) {
  for (const PageFormat format : {PageFormat(), PageFormat(KvFormat::kBf16), PageFormat(KvFormat::kQ8),
                                  PageFormat(KvFormat::kF16, KvFormat::kQ8)}) {
    for (const char* text : {"comp", "comp:ek=0.25,ev=0.1", "comp:ek=0.05,unit=head", "comp:recent=100,ev=0.004"}) {
      const CodedForm form = Form(text);
      Filled filled(format, 200);
      const int num_coded = form.key.CutOf(200);
      ASSERT_GT(num_coded, 0);
      double worst_key = 0, worst_value = 0;
      const auto compare = [&](int h, const HeadCache& head) {
        const Rows before(filled.head(h)), after(head);
        EXPECT_EQ(before.positions, after.positions);
        EXPECT_EQ(before.columns, after.columns);
        const auto keys = static_cast<size_t>(num_coded) * kKeyDim, values = static_cast<size_t>(num_coded) * kValueDim;
        worst_key = std::max(worst_key, WorstError(form.key, format.key, std::span(before.keys).first(keys),
                                                   std::span(after.keys).first(keys), kKeyDim));
        worst_value = std::max(worst_value, WorstError(form.value, format.value, std::span(before.values).first(values),
                                                       std::span(after.values).first(values), kValueDim));
        // The newest ones do not move.
        EXPECT_TRUE(std::ranges::equal(std::span(before.keys).subspan(keys), std::span(after.keys).subspan(keys)));
        EXPECT_TRUE(
            std::ranges::equal(std::span(before.values).subspan(values), std::span(after.values).subspan(values)));
      };
      const Status status = filled.Restore(filled.Save(form), form, compare);
      ASSERT_TRUE(status) << text << ": " << status.error().message;
      EXPECT_LE(worst_key, 1) << text << " " << format.Name();
      EXPECT_LE(worst_value, 1) << text << " " << format.Name();
      // Something moves: what is compared is not what was not coded.
      EXPECT_GT(worst_key, 0.3) << text;
      EXPECT_GT(worst_value, 0.1) << text;
    }
  }
}

// What came back is coded as it was: a sequence that is saved and restored again and again does not drift away.
TEST(CodedEntriesTest, CodedAgainIsTheSame) {
  for (const char* text : {"comp", "comp:ek=0.25,ev=0.1", "comp:unit=head"}) {
    Filled filled(PageFormat(), 200);
    std::vector<std::byte> once, twice, thrice;
    const CodedForm form = Form(text);
    ASSERT_TRUE(filled.Restore(filled.Save(form), form, {}, &once));
    ASSERT_TRUE(filled.Restore(once, form, {}, &twice));
    ASSERT_TRUE(filled.Restore(twice, form, {}, &thrice));
    EXPECT_NE(filled.Save({}), once);
    // The first round may still move a number that float16 rounds the other way.
    EXPECT_EQ(once.size(), twice.size()) << text;
    EXPECT_EQ(twice, thrice) << text;
  }
}

// Beside ones that are: an infinite key, a constant channel, a number far from all others.
TEST(CodedEntriesTest, NumbersWithoutACodeComeBackExactly) {
  Filled filled(PageFormat(), 130);
  HeadCache& head = filled.head(0);
  const auto set = [&](int entry, int channel, float number) {
    std::vector<float> key(static_cast<size_t>(kP) * kKeyDim), value(static_cast<size_t>(kP) * kValueDim);
    std::byte* page = head.page_of(entry);
    kernels::ReadKeys(head.layout(), page, kP, key.data());
    kernels::ReadValues(head.layout(), page, kP, value.data());
    const auto slot = static_cast<size_t>(entry % kP);
    key[slot * kKeyDim + static_cast<size_t>(channel)] = number;
    kernels::WriteEntryF32(head.layout(), page, entry % kP, &key[slot * kKeyDim], &value[slot * kValueDim], 3 * entry);
  };
  set(5, 3, std::numeric_limits<float>::infinity());
  for (int i = 0; i < 64; ++i) set(i, 4, 0.75F), set(i, 5, i == 9 ? 3000.5F : 3000);
  const CodedForm form = Form("comp:ek=0.004");
  const auto compare = [&](int h, const HeadCache& restored) {
    if (h != 0) return;
    const Rows before(filled.head(0)), after(restored);
    for (int i = 0; i < 64; ++i) {
      for (const int channel : {3, 4, 5}) {
        const auto at = static_cast<size_t>(i * kKeyDim + channel);
        EXPECT_EQ(before.keys[at], after.keys[at]) << i << " " << channel;
      }
    }
  };
  const Status status = filled.Restore(filled.Save(form), form, compare);
  ASSERT_TRUE(status) << status.error().message;
}

TEST(CodedEntriesTest, CodesTakeFewerBytes) {
  Filled filled(PageFormat(), 512 + 64);
  const double exact = static_cast<double>(filled.Save({}).size());
  EXPECT_LT(static_cast<double>(filled.Save(Form("comp:ek=0.25,ev=0.1")).size()), 0.4 * exact);
  EXPECT_LT(filled.Save(Form("comp:ek=0.25,ev=0.1")).size(), filled.Save(Form("comp:ek=0.05,ev=0.05")).size());
  // Groups of few bits are shorter as they are, and move no more than they have.
  EXPECT_EQ(Form("comp").CodedEntries(PageLayout::Make(KvFormat::kQ4, 64, 64, 0), 1000), 0);
}

TEST(CodedEntriesTest, FewEntriesStayAsTheyAre) {
  Filled filled(PageFormat(), 63);
  const CodedForm form = Form("comp");
  const auto compare = [&](int h, const HeadCache& head) {
    EXPECT_EQ(Rows(filled.head(h)).keys, Rows(head).keys);
    EXPECT_EQ(Rows(filled.head(h)).values, Rows(head).values);
  };
  ASSERT_TRUE(filled.Restore(filled.Save(form), form, compare));
}

// Whatever is done to the bytes: a sentence or a cache that is whole, and no page is lost.
TEST(CodedEntriesTest, DamageIsRefusedOrHarmless) {
  Filled filled(PageFormat(), 80);
  const CodedForm form = Form("comp:ek=0.25,ev=0.1");
  const std::vector<std::byte> bytes = filled.Save(form);
  for (size_t length = 0; length < bytes.size(); length += length < 300 ? 1 : 13) {
    EXPECT_FALSE(filled.Restore(std::span(bytes).first(length), form)) << length;
  }
  size_t refused = 0;
  std::mt19937 random(11);
  constexpr size_t kRounds = 3000;
  for (size_t round = 0; round < kRounds; ++round) {
    std::vector<std::byte> damaged = bytes;
    damaged[random() % (bytes.size() / 2)] ^= static_cast<std::byte>(1 << random() % 8);
    const Status status = filled.Restore(damaged, form);
    if (status) continue;
    ++refused;
    EXPECT_FALSE(status.error().message.empty());
  }
  EXPECT_GT(refused, kRounds / 60);
  EXPECT_LT(refused, kRounds) << "codes of a symbol for those of another are none that could be told";
}

TEST(CodedEntriesTest, FormsAreReadAsTheyAreNamed) {
  EXPECT_FALSE(*ParseCodedForm("exact"));
  EXPECT_EQ(Form("comp"), CodedForm());
  for (const char* text : {"comp", "comp:ek=0.25,ev=0.1", "comp:unit=head,recent=128"}) {
    const CodedForm form = Form(text);
    EXPECT_EQ(Form(form.Name()), form);
    MemoryWriter writer;
    form.Save(writer);
    MemoryReader reader(writer.bytes());
    const Result<CodedForm> read = CodedForm::Read(reader);
    ASSERT_TRUE(read);
    EXPECT_EQ(*read, form);
    std::vector<std::byte> damaged = writer.bytes();
    damaged[0] = std::byte{9};
    MemoryReader other(damaged);
    EXPECT_FALSE(CodedForm::Read(other));
  }
  EXPECT_EQ(Form("comp:ek=0.25").key.share, 0.25);
  EXPECT_EQ(Form("comp:unit=head").key.unit, kernels::ErrorUnit::kBlockPerHead);
  for (const char* text :
       {"", "com", "comp:ek", "comp:ek=", "comp:ek=x", "comp:ek=0.6", "comp:ev=0.001", "comp:unit=token",
        "comp:recent=63", "comp:recent=1e99", "comp:ek=nan", "comp:foo=1", "comp:ek=0.1;ev=0.1", "exact:ek=0.1"}) {
    const auto form = ParseCodedForm(text);
    ASSERT_FALSE(form) << text;
    EXPECT_NE(form.error().message.find("no form"), std::string::npos);
  }
}

}  // namespace
}  // namespace pith
