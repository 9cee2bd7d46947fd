#include "base/text.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace pith {
namespace {

TEST(Text, Sizes) {
  EXPECT_EQ(*ParseSize("65536"), 65536u);
  EXPECT_EQ(*ParseSize("64MiB"), size_t{64} << 20);
  EXPECT_EQ(*ParseSize("64M"), size_t{64} << 20);
  EXPECT_EQ(*ParseSize(" 64 mib "), size_t{64} << 20);
  EXPECT_EQ(*ParseSize("1.5GiB"), size_t{3} << 29);
  EXPECT_EQ(*ParseSize("64MB"), 64000000u);
  EXPECT_EQ(*ParseSize("2k"), 2048u);
  EXPECT_EQ(*ParseSize("10B"), 10u);
  for (const char* bad : {"", "MiB", "64Q", "-1", "-64MiB", "64MiBx", "1e9", "inf", "nan", "0", "0MiB", "99999999TiB",
                          "9999999999GiB", "64 M B", "20%"}) {
    const auto size = ParseSize(bad);
    ASSERT_FALSE(size) << bad;
    EXPECT_EQ(size.error().code, ErrorCode::kInvalidArgument);
    EXPECT_FALSE(size.error().message.empty());
  }
}

TEST(Text, Shares) {
  EXPECT_DOUBLE_EQ(ParseSizeOrShare("20%")->share, 0.2);
  EXPECT_DOUBLE_EQ(ParseSizeOrShare(" 12.5 % ")->share, 0.125);
  EXPECT_EQ(ParseSizeOrShare("1MiB")->bytes, size_t{1} << 20);
  EXPECT_EQ(ParseSizeOrShare("1MiB")->share, 0);
  for (const char* bad : {"%", "0%", "-5%", "20%%", "20%x", "x%", "1001%", "nan%"}) {
    EXPECT_FALSE(ParseSizeOrShare(bad)) << bad;
  }
}

TEST(Text, NumbersForPeople) {
  EXPECT_EQ(FormatBytes(900), "900 bytes");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(size_t{64} << 20), "64.00 MiB");
  EXPECT_EQ(FormatBytes(size_t{3} << 29), "1.50 GiB");
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1000), "1,000");
  EXPECT_EQ(FormatCount(1234567), "1,234,567");
  EXPECT_EQ(FormatCount(-123), "-123");
  EXPECT_EQ(FormatCount(-1234), "-1,234");
}

TEST(Text, Lists) {
  EXPECT_EQ(*ParseNumbers("0.5, 0.2,1", "--keep", 0.001, 1), (std::vector<double>{0.5, 0.2, 1}));
  EXPECT_EQ(*ParseIntegers("512,1024", "--ctx", 1, 10000), (std::vector<int>{512, 1024}));
  for (const char* bad : {"", ",", "0.5,", "2", "x", "0.5;0.2", "0.5x"}) {
    EXPECT_FALSE(ParseNumbers(bad, "--keep", 0.001, 1)) << bad;
  }
  for (const char* bad : {"", "1.5", "0", "12,", "99999999999999999999", "1x"}) {
    EXPECT_FALSE(ParseIntegers(bad, "--ctx", 1, 10000)) << bad;
  }
}

TEST(Text, RecipeLists) {
  using List = std::vector<std::string>;
  EXPECT_EQ(SplitRecipes("snapkv,keydiff"), (List{"snapkv", "keydiff"}));
  EXPECT_EQ(SplitRecipes("snapkv:window=16,pool=7,keydiff"), (List{"snapkv:window=16,pool=7", "keydiff"}));
  EXPECT_EQ(SplitRecipes("a:x=1,y=2;b, c"), (List{"a:x=1,y=2", "b", "c"}));
  EXPECT_EQ(SplitRecipes("score=caote alloc=ada:alpha=0.2,score=tova"),
            (List{"score=caote alloc=ada:alpha=0.2", "score=tova"}));
  EXPECT_EQ(SplitRecipes("snapkv:window=16,pool=7 alloc=ada:alpha=0.2,floor=1"),
            (List{"snapkv:window=16,pool=7 alloc=ada:alpha=0.2,floor=1"}));
  EXPECT_EQ(SplitRecipes(" ;, "), List{});
  EXPECT_EQ(SplitRecipes("x=1"), List{"x=1"});  // nothing before it: the parser will say what is wrong
}

TEST(Text, InvalidUtf8IsFound) {
  EXPECT_EQ(FindInvalidUtf8("plain, na\xc3\xafve, \xe6\x97\xa5, \xf0\x9f\x98\x80"), std::string_view::npos);
  EXPECT_EQ(FindInvalidUtf8(""), std::string_view::npos);
  EXPECT_EQ(FindInvalidUtf8("ab\xff"), 2u);
  EXPECT_EQ(FindInvalidUtf8("a\xc3"), 1u);               // cut off
  EXPECT_EQ(FindInvalidUtf8("\xc0\x80"), 0u);            // overlong
  EXPECT_EQ(FindInvalidUtf8("\xe0\x80\x80"), 0u);        // overlong
  EXPECT_EQ(FindInvalidUtf8("\xed\xa0\x80"), 0u);        // surrogate
  EXPECT_EQ(FindInvalidUtf8("\xf4\x90\x80\x80"), 0u);    // above U+10FFFF
  EXPECT_EQ(RequireUtf8("ab\xff", "the prompt").error().message, "the prompt is not valid UTF-8: byte 2 is 0xff");
}

TEST(Text, Files) {
  EXPECT_EQ(ReadFile("/nonexistent/file").error().code, ErrorCode::kNotFound);
  EXPECT_NE(ReadFile("/tmp").error().message.find("is a folder"), std::string::npos);
  const std::string path = ::testing::TempDir() + "pith_text_test";
  ASSERT_TRUE(WriteFile(path, std::string("a\0b", 3)));
  EXPECT_EQ(*ReadFile(path), std::string("a\0b", 3));
  EXPECT_FALSE(WriteFile("/nonexistent/file", "x"));
}

}  // namespace
}  // namespace pith
