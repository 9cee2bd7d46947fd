#include "host/grammar_guard.h"

#include <chrono>
#include <string>

#include <gtest/gtest.h>

namespace pith {
namespace {

// Characters of `text` that are accepted until there is no way on or it costs too much.
struct Way {
  size_t accepted = 0;
  bool too_much = false;
  size_t num_stacks = 0;
};

Way Go(const std::string& grammar, const std::string& text) {
  Way way;
  const std::unique_ptr<GrammarGuard> guard = GrammarGuard::Parse(grammar);
  if (guard == nullptr || !guard->Start()) {
    way.too_much = true;
    return way;
  }
  for (const char c : text) {
    if (!guard->Accept(std::string(1, c))) {
      way.too_much = true;
      break;
    }
    if (guard->num_stacks() == 0) break;
    ++way.accepted;
  }
  way.num_stacks = guard->num_stacks();
  return way;
}

TEST(GrammarGuard, FollowsWhatTheGrammarSays) {
  EXPECT_EQ(Go(R"(root ::= "ab" [0-9]{2,3} "!")", "ab123!").accepted, 6u);
  EXPECT_EQ(Go(R"(root ::= "ab" [0-9]{2,3} "!")", "ab1!").accepted, 3u);
  EXPECT_EQ(Go(R"(root ::= "ab" [0-9]{2,3} "!")", "ab1234").accepted, 5u);
  EXPECT_EQ(Go("root ::= (\"x\" | y)+ [^a]\n# a comment\ny ::= \"\\x41\" \"\\\"\" # another\n", "xA\"xb").accepted, 5u);
  EXPECT_EQ(Go("root ::= .? \"\xc3\xa9\"*", "\xc3\xa9\xc3\xa9").accepted, 4u);
  EXPECT_EQ(Go("root ::= a |\n  b\na ::= \"a\"\nb ::= \"b\" \"c\"", "bc").accepted, 2u);
}

TEST(GrammarGuard, NestingGoesDeepForLittle) {
  const std::string json = "root ::= \"[\" root \"]\" | \"1\"";
  const Way way = Go(json, std::string(3000, '[') + "1" + std::string(3000, ']'));
  EXPECT_EQ(way.accepted, 6001u);
  EXPECT_FALSE(way.too_much);
}

TEST(GrammarGuard, AmbiguousRecursionIsStoppedSoon) {
  for (const char* grammar :
       {"root ::= [a-z] x x x | [a-z]\nx ::= root | \"\"",
        "root ::= x x x x x x\nx ::= (\"a\" | \"aa\" | y)*\ny ::= \"a\" y y | \"\" \"a\""}) {
    const auto start = std::chrono::steady_clock::now();
    const Way way = Go(grammar, std::string(400, 'a'));
    EXPECT_TRUE(way.too_much) << grammar << ": " << way.accepted << " " << way.num_stacks;
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20)) << grammar;
  }
}

TEST(GrammarGuard, WhatIsNoGrammar) {
  for (const char* text : {"", "root", "root ::= (", "root ::= \"a", "root ::= [a", "root ::= missing", "a ::= \"a\"",
                           "root ::= *", "root ::= \"a\"{x}", "root ::= \"\\"}) {
    EXPECT_EQ(GrammarGuard::Parse(text), nullptr) << text;
  }
}

}  // namespace
}  // namespace pith
