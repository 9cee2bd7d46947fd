#include "host/pattern_syntax.h"

#include <string>
#include <string_view>

#include <gtest/gtest.h>

namespace pith {
namespace {

using namespace std::string_view_literals;

TEST(PatternSyntax, WhatIsOnePasses) {
  for (const std::string_view pattern : {"",
                                         "^$",
                                         "^[0-9]{3}-[0-9]{4}$",
                                         "a|b",
                                         "|",
                                         "()",
                                         "(a|b)*",
                                         "a*?b+?c??",
                                         "a{2}?",
                                         "a{2,}",
                                         "a{,2}",
                                         "a{2,3}",
                                         "[]a]",
                                         "[^]",
                                         "[a-]",
                                         "[-a]",
                                         "[a-z-9]",
                                         "[\\]a]",
                                         "[\\d-z]",
                                         "\\(",
                                         "\\[",
                                         "\\{",
                                         "\\\\",
                                         "}",
                                         "]",
                                         "a}b",
                                         "(?:a)+",
                                         "(?=a)b",
                                         "(?!a)b",
                                         "(?<=a)b",
                                         "(?<!a)b",
                                         "(?<name>a)+",
                                         "(?P<name>a)",
                                         "(?i)a",
                                         "[(*{]",
                                         "\\bword\\b",
                                         "^[ä-ü]+$",
                                         "[\\u0041-\\u005A]",
                                         "^(([a-z]{1,3}[0-9]?)+,)*$",
                                         "$?",
                                         "(a)(?:b)?"})
    EXPECT_TRUE(CheckPatternSyntax(pattern)) << pattern << ": " << CheckPatternSyntax(pattern).error().message;
}

TEST(PatternSyntax, WhatIsNoneSaysWhy) {
  const struct {
    std::string_view pattern, says;
  } kWrong[] = {
      {"(", "'(' has no ')'"},
      {")", "')' has no '('"},
      {"^(a|b$", "'(' has no ')'"},
      {"(()", "'(' has no ')'"},
      {"a)b", "')' has no '('"},
      {"[", "'[' has no ']'"},
      {"^[a-z$", "'[' has no ']'"},
      {"[a\\]", "'[' has no ']'"},
      {"([)]", "'(' has no ')'"},
      {"{", "'{' has no '}'"},
      {"a{2", "'{' has no '}'"},
      {"a{b}", "{b} is no repetition"},
      {"a{}", "{} is no repetition"},
      {"a{,}", "{,} is no repetition"},
      {"a{1,2,3}", "is no repetition"},
      {"a{-1}", "is no repetition"},
      {"a{5,2}", "ends before"},
      {"a{99999999999999999999,3}", "ends before"},
      {"*", "'*' repeats nothing"},
      {"+a", "'+' repeats nothing"},
      {"?", "'?' repeats nothing"},
      {"{3}", "'{' repeats nothing"},
      {"(*a)", "'*' repeats nothing"},
      {"a|*", "'*' repeats nothing"},
      {"^*", "'*' repeats nothing"},
      {"a**", "'*' repeats nothing"},
      {"a*+", "'+' repeats nothing"},
      {"a*??", "'?' repeats nothing"},
      {"a{2}{3}", "'{' repeats nothing"},
      {"(?:+)", "'+' repeats nothing"},
      {"(?", "begins no group"},
      {"(?)", "begins no group"},
      {"(?*a)", "begins no group"},
      {"(?<name", "name has no end"},
      {"[z-a]", "range"},
      {"[ü-ä]", "range"},
      {"\\", "backslash"},
      {"[\\", "backslash"},
      {"a\\", "backslash"},
  };
  for (const auto& [pattern, says] : kWrong) {
    const Status status = CheckPatternSyntax(pattern);
    ASSERT_FALSE(status) << pattern;
    EXPECT_NE(status.error().message.find(says), std::string::npos) << pattern << ": " << status.error().message;
  }
}

TEST(PatternSyntax, AnyBytes) {
  // Every text of up to four of these ends within its bytes (ASan) and, where it is said to be one, is balanced.
  constexpr std::string_view kLetters = "([{)]}\\?*,1-^<P\xC3"sv;
  std::string text;
  int passed = 0, refused = 0;
  const auto go = [&](const auto& self, size_t depth) -> void {
    (CheckPatternSyntax(text) ? passed : refused) += 1;
    for (size_t i = 0; depth > 0 && i < kLetters.size(); ++i) {
      text += kLetters[i];
      self(self, depth - 1);
      text.pop_back();
    }
  };
  go(go, 4);
  EXPECT_GT(passed, 1000);
  EXPECT_GT(refused, 10000);
}

}  // namespace
}  // namespace pith
