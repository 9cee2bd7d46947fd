#include "cli/markdown.h"

#include <regex>
#include <string>

#include <gtest/gtest.h>

namespace pith::cli {
namespace {

std::string Show(const std::string& text, size_t piece = std::string::npos) {
  MarkdownStream stream;
  std::string shown;
  for (size_t at = 0; at < text.size(); at += std::min(piece, text.size() - at)) {
    shown += stream.Push(text.substr(at, piece));
  }
  return shown + stream.Finish();
}

std::string WithoutColours(const std::string& shown) {
  return std::regex_replace(shown, std::regex("\x1b\\[[0-9;]*m"), "");
}

constexpr const char* kText =
    "# A title\n\nSome **bold words**, *emphasis* and `code * here`.\n- one\n12. two\n> said\n2 * 3 * 4\n"
    "```cpp\nint* a = **b;\n# no title\n```\nafter **open\nnext # line ***both***\n#hash - dash\n``not a fence``\n   "
    "\n*";

TEST(Markdown, EveryCharacterStays) {
  EXPECT_EQ(WithoutColours(Show(kText)), kText);
  for (size_t piece = 1; piece < 7; ++piece) EXPECT_EQ(Show(kText, piece), Show(kText)) << piece;
}

TEST(Markdown, Colours) {
  EXPECT_EQ(Show("# T\nx"), "\x1b[0m\x1b[1;34m# T\x1b[0m\nx");
  EXPECT_EQ(Show("a **b** c"), "a \x1b[0m\x1b[1m**b**\x1b[0m c");
  EXPECT_EQ(Show("a `b*c*` d"), "a \x1b[0m\x1b[36m`b*c*`\x1b[0m d");
  EXPECT_EQ(Show("- x"), "\x1b[1m-\x1b[0m x");
  EXPECT_EQ(Show("2 * 3 * 4"), "2 * 3 * 4") << "stars between blanks";
  EXPECT_EQ(Show("plain text"), "plain text");
}

TEST(Markdown, NothingOutlivesItsLine) {
  EXPECT_EQ(Show("**open\nx"), "\x1b[0m\x1b[1m**open\x1b[0m\nx");
  EXPECT_NE(Show("```\nx\ny\n```\nz").find("\x1b[36my"), std::string::npos) << "but a fenced block does";
  EXPECT_TRUE(Show("```\nx\n```\nz").ends_with("\nz"));
}

}  // namespace
}  // namespace pith::cli
