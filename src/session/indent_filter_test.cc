#include "session/indent_filter.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace pith {
namespace {

// What is left of a text that comes in pieces of so many bytes.
std::string Filtered(const std::string& text, int least, size_t piece, bool* hit = nullptr) {
  IndentFilter filter(least);
  std::string out;
  for (size_t at = 0; at < text.size(); at += piece) out += filter.Push(text.substr(at, piece));
  out += filter.Flush();
  if (hit != nullptr) *hit = filter.hit();
  return out;
}

TEST(IndentFilter, WhereverPiecesEnd) {
  const struct {
    const char *text, *left;
    int least;
    bool hit;
  } cases[] = {
      {"a\n  b\n  c", "a\n  b\n  c", 2, false},
      {"a\n  b\n}\nc", "a\n  b\n", 2, true},
      {"a\n b", "a\n", 2, true},
      {"a\n\t\tb", "a\n\t\tb", 2, false},
      {"a\n\n  b", "a\n", 2, true},
      {"a\n   ", "a\n   ", 2, false},
      {"a\n", "a\n", 2, false},
      {"b\n}\n", "b\n}\n", 0, false},
      {"  \n  b", "  \n  b", 1, false},
      {"", "", 3, false},
  };
  for (const auto& one : cases) {
    for (const size_t piece : {1, 2, 3, 100}) {
      bool hit = false;
      EXPECT_EQ(Filtered(one.text, one.least, piece, &hit), one.left) << one.text << " by " << piece;
      EXPECT_EQ(hit, one.hit) << one.text << " by " << piece;
    }
  }
}

}  // namespace
}  // namespace pith
