// Pages whose keys lack channels hold what the whole ones hold of the others, bit by bit.
#include "kernels/key_channels.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/attention_test_util.h"
#include "kernels/group_codec.h"

namespace pith::kernels {
namespace {

constexpr int kDim = 40, kValueDim = 24, kP = kPageEntries;
const std::vector<uint16_t> kKept = {0, 1, 5, 6, 7, 12, 20, 21, 22, 30, 31, 33, 39};

class KeyChannelsTest : public testing::TestWithParam<KvFormat> {
 protected:
  KeyChannelsTest()
      : whole_(PageLayout::Make(GetParam(), kDim, kValueDim, 2)),
        pruned_(PageLayout::Make(GetParam(), static_cast<int>(kKept.size()), kValueDim, 2)),
        whole_page_(whole_.page_bytes),
        pruned_page_(pruned_.page_bytes) {
    const PageLayout wide = PageLayout::Make(PageFormat(), kDim, kValueDim, 2);
    const PoisonedBytes page(wide.page_bytes);
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::vector<float> key(kDim), value(kValueDim);
    for (int slot = 0; slot < kP; ++slot) {
      for (float& x : key) x = normal(random);
      for (float& x : value) x = normal(random);
      WriteEntryF32(wide, page.get(), slot, key.data(), value.data(), 3 * slot);
      for (int c = 0; c < 2; ++c) wide.column(page.get(), c)[slot] = normal(random);
    }
    ConvertPage(wide, page.get(), whole_, whole_page_.get());
  }

  // Its key must be that of the whole page's entry where it is kept, and 0 elsewhere; the rest is the same.
  void ExpectEntry(const PageLayout& layout, const std::byte* page, int slot, int from) const {
    std::vector<float> key(kDim), expected(kDim), value(kValueDim), expected_value(kValueDim);
    ReadWholeKey(layout, page, slot, kKept, kDim, key.data(), 1);
    ReadKey(whole_, whole_page_.get(), from, expected.data(), 1);
    size_t next = 0;
    for (int d = 0; d < kDim; ++d) {
      const bool kept = next < kKept.size() && kKept[next] == d;
      next += kept ? 1 : 0;
      EXPECT_EQ(key[static_cast<size_t>(d)], kept ? expected[static_cast<size_t>(d)] : 0.0F) << d;
    }
    ReadValue(layout, page, slot, value.data());
    ReadValue(whole_, whole_page_.get(), from, expected_value.data());
    EXPECT_EQ(value, expected_value);
    EXPECT_EQ(layout.positions(page)[slot], 3 * from);
    for (int c = 0; c < 2; ++c) EXPECT_EQ(layout.column(page, c)[slot], whole_.column(whole_page_.get(), c)[from]);
  }

  const PageLayout whole_, pruned_;
  PoisonedBytes whole_page_, pruned_page_;
};
INSTANTIATE_TEST_SUITE_P(Formats, KeyChannelsTest, testing::ValuesIn(kKvFormats),
                         [](const auto& format) { return std::string(KvFormatName(format.param)); });

TEST_P(KeyChannelsTest, PagesAndEntriesKeepTheirBits) {
  SelectChannels(whole_, whole_page_.get(), kKept, pruned_, pruned_page_.get());
  for (int slot = 0; slot < kP; ++slot) ExpectEntry(pruned_, pruned_page_.get(), slot, slot);
  std::vector<float> keys(kP * kDim), one(kDim);
  ReadKeys(pruned_, pruned_page_.get(), kP, keys.data());
  SpreadKeys(kKept, kP, kDim, keys.data());
  for (int slot = 0; slot < kP; ++slot) {
    ReadWholeKey(pruned_, pruned_page_.get(), slot, kKept, kDim, one.data(), 1);
    EXPECT_EQ(0, std::memcmp(one.data(), keys.data() + slot * kDim, sizeof(float) * kDim)) << slot;
  }
  if (pruned_.format.whole_pages()) return;
  // Single entries, there and back.
  const PoisonedBytes page(pruned_.page_bytes), spread(whole_.page_bytes);
  for (const auto& [to, from] : {std::pair(3, 0), std::pair(0, 31), std::pair(31, 17)}) {
    ConvertPrunedEntry(pruned_, page.get(), to, whole_, whole_page_.get(), from, kKept, kDim);
    ExpectEntry(pruned_, page.get(), to, from);
    ConvertPrunedEntry(whole_, spread.get(), to, pruned_, page.get(), to, kKept, kDim);
    std::vector<float> key(kDim), packed(kDim);
    ReadKey(whole_, spread.get(), to, key.data(), 1);
    ReadWholeKey(pruned_, page.get(), to, kKept, kDim, packed.data(), 1);
    EXPECT_EQ(key, packed);
  }
}

TEST(KeyChannels, CountsWhatIsLeft) {
  EXPECT_EQ(ChannelsLeft(64, 0.4), 39);
  EXPECT_EQ(ChannelsLeft(64, 0.5), 32);
  EXPECT_EQ(ChannelsLeft(10, 0.3), 7);
  EXPECT_EQ(ChannelsLeft(2, 0.4), 2);
  EXPECT_EQ(ChannelsLeft(64, 0), 64);
}

}  // namespace
}  // namespace pith::kernels
