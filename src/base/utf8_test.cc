#include "base/utf8.h"

#include <string>
#include <string_view>

#include <gtest/gtest.h>

namespace pith {
namespace {

TEST(Utf8, StreamsWholeCharacters) {
  const std::string text = "na\xc3\xafve \xe6\x97\xa5\xf0\x9f\x98\x80!";
  // Cut at every pair of places.
  for (size_t a = 0; a <= text.size(); ++a) {
    for (size_t b = a; b <= text.size(); ++b) {
      Utf8Stream stream;
      std::string out;
      for (const auto& part : {text.substr(0, a), text.substr(a, b - a), text.substr(b)}) {
        const std::string piece = stream.Push(part);
        EXPECT_EQ(FindInvalidUtf8(piece), std::string_view::npos);
        out += piece;
      }
      out += stream.Flush();
      EXPECT_EQ(out, text);
    }
  }
}

TEST(Utf8, StreamReplacesWhatIsNoUtf8) {
  Utf8Stream stream;
  EXPECT_EQ(stream.Push("a\xff" "b"), "a\xef\xbf\xbd" "b");
  EXPECT_EQ(stream.Push("\xe6\x97"), "");
  EXPECT_EQ(stream.Push("x"), "\xef\xbf\xbd\xef\xbf\xbdx");
  EXPECT_EQ(stream.Push("\xf0\x9f"), "");
  EXPECT_EQ(stream.Flush(), "\xef\xbf\xbd");
  EXPECT_EQ(stream.Flush(), "");
}

}  // namespace
}  // namespace pith
