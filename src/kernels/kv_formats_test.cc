// What files, recipes and flags count on in the table of formats.
#include "kernels/kv_formats.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "kernels/page_layout.h"

namespace pith {
namespace {

TEST(KvFormatsTest, NumbersInFilesStay) {
  constexpr std::pair<const char*, int> kNumbers[] = {{"f16", 0}, {"q8", 1}, {"bf16", 2},
                                                      {"q4", 3},  {"q2", 4}, {"q3", 5}};
  for (const auto& [name, number] : kNumbers) EXPECT_EQ(static_cast<int>(FindKvFormat(name).value()), number) << name;
  EXPECT_EQ(PageFormat(CodedFormat(16)).number(), 0x5050U);
}

TEST(KvFormatsTest, EachNameIsOneFormats) {
  for (const KvFormat format : kKvFormats) {
    const KvFormatInfo& info = InfoOf(format);
    for (const std::string_view name : {info.name, info.flag}) {
      EXPECT_FALSE(name.empty());
      EXPECT_EQ(FindKvFormat(name), format) << name;
    }
    if (!info.also.empty()) {
      EXPECT_EQ(FindKvFormat(info.also), format) << info.also;
    }
    EXPECT_EQ(PageFormat::FromNumber(PageFormat(format).number()), PageFormat(format)) << info.name;
  }
  for (const char* name : {"", "comp", "auto", "q5", "q40"}) EXPECT_EQ(FindKvFormat(name), std::nullopt) << name;
  EXPECT_EQ(PageFormat::FromNumber(kNumKvFormats), std::nullopt);
}

TEST(KvFormatsTest, TheMostPreciseComeFirst) {
  EXPECT_EQ(kKvFormats.front(), KvFormat::kF16);
  for (size_t i = 1; i < kKvFormats.size(); ++i) EXPECT_GE(BitsOf(kKvFormats[i - 1]), BitsOf(kKvFormats[i]));
}

// 32 codes share 16 bits beside their own.
TEST(KvFormatsTest, BytesFollowFromBits) {
  for (const KvFormat format : kKvFormats) {
    const double bits = PageLayout::Make(format, 64, 64, 0).entry_bytes() * 8 / 128;
    const double scales = HasEntryScales(format) ? 0.5 : IsGrouped(format) ? 0.5 : 0;
    EXPECT_DOUBLE_EQ(bits, BitsOf(format) + scales) << KvFormatName(format);
    EXPECT_EQ(IsGrouped(format), ZeroUnits(format) > 0) << KvFormatName(format);
  }
}

}  // namespace
}  // namespace pith
