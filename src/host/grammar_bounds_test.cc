#include "host/grammar_bounds.h"

#include <string>

#include <gtest/gtest.h>

namespace pith {
namespace {

std::string Nested(const std::string& open, const std::string& inside, const std::string& close, int depth) {
  std::string text = inside;
  for (int i = 0; i < depth; ++i) text = open + text + close;
  return text;
}

TEST(GrammarBounds, OrdinaryGrammarsPass) {
  EXPECT_TRUE(CheckGrammarBounds("root ::= \"yes\" | \"no\"\n# a comment {9,1}\n"));
  EXPECT_TRUE(CheckGrammarBounds("root ::= item{2,5} [a-z{}]{3} \"{9,1}\" (x y){0,100}\nitem ::= [0-9]{1,}\nx ::= \"\\\"{7,2}\"\ny ::= x?"));
}

TEST(GrammarBounds, RepetitionsThatEndBeforeTheyBegin) {
  EXPECT_FALSE(CheckGrammarBounds("root ::= \"a\"{5,2}"));
  EXPECT_FALSE(CheckGrammarBounds("root ::= (\"a\" | \"b\"){ 3, 1}"));
}

TEST(GrammarBounds, RepetitionsOfRepetitions) {
  EXPECT_FALSE(CheckGrammarBounds("root ::= ((\"a\"{1000}){1000}){1000}"));
  EXPECT_FALSE(CheckGrammarBounds("root ::= \"a\"{100000}"));
  std::string many = "root ::= ";
  for (int i = 0; i < 100; ++i) many += "[a-z]{1000} ";
  EXPECT_FALSE(CheckGrammarBounds(many));
  EXPECT_FALSE(CheckGrammarBounds("root ::= " + std::string(1000, '(') + "\"a\"" + std::string(1000, ')')));
  EXPECT_FALSE(CheckGrammarBounds(std::string(size_t{1} << 20, ' ')));
}

TEST(SchemaBounds, OrdinarySchemasPass) {
  EXPECT_TRUE(CheckSchemaBounds("{}"));
  EXPECT_TRUE(CheckSchemaBounds(R"({"type":"object","properties":{"minItems":{"type":"integer","minimum":0,"maximum":9},
      "tags":{"type":"array","items":{"type":"string","maxLength":20},"minItems":1,"maxItems":3}},"required":["tags"]})"));
  // A tree that refers to itself has an end wherever its values do.
  EXPECT_TRUE(CheckSchemaBounds(R"({"$ref":"#/$defs/n","$defs":{"n":{"type":"object","properties":{"next":{"$ref":"#/$defs/n"}}}}})"));
}

TEST(SchemaBounds, BoundsThatNoValueMeets) {
  EXPECT_FALSE(CheckSchemaBounds(R"({"type":"array","items":{"type":"string"},"minItems":5,"maxItems":2})"));
  EXPECT_FALSE(CheckSchemaBounds(R"({"properties":{"a":{"type":"string","minLength":3,"maxLength":1}}})"));
  EXPECT_FALSE(CheckSchemaBounds(R"({"type":"integer","minimum":3,"maximum":1})"));
  EXPECT_FALSE(CheckSchemaBounds(R"({"type":"integer","minimum":1e300})"));
}

TEST(SchemaBounds, SizeAndDepth) {
  EXPECT_FALSE(CheckSchemaBounds(Nested(R"({"type":"array","items":)", R"({"type":"string"})", "}", 80)));
  // Each level's alternatives are written out for each of the level above.
  EXPECT_FALSE(CheckSchemaBounds(Nested(R"({"type":["array","object","string"],"items":)", R"({"type":"string"})", "}", 20)));
  std::string wide = R"({"type":"object","properties":{)";
  for (int i = 0; i < 1000; ++i) wide += (i == 0 ? "\"p" : ",\"p") + std::to_string(i) + R"(":{"type":"string"})";
  EXPECT_FALSE(CheckSchemaBounds(wide + "}}"));
  EXPECT_FALSE(CheckSchemaBounds(R"({"properties":{")" + std::string(100000, '!') + R"(":{}}})"));
  EXPECT_FALSE(CheckSchemaBounds(R"({"type":"array","items":{"type":"string"},"minItems":1000000})"));
}

TEST(SchemaBounds, ReferencesInACircle) {
  EXPECT_FALSE(CheckSchemaBounds(R"({"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}})"));
  EXPECT_FALSE(CheckSchemaBounds(R"({"allOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"allOf":[{"$ref":"#/$defs/a"}]}}})"));
}

TEST(SchemaBounds, WhatIsNoSchema) {
  EXPECT_FALSE(CheckSchemaBounds("["));
  EXPECT_FALSE(CheckSchemaBounds("[]"));
  EXPECT_FALSE(CheckSchemaBounds(std::string(100000, '{')));
}

}  // namespace
}  // namespace pith
