#include "host/grammar_bounds.h"

#include <string>

#include <fmt/format.h>
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
  EXPECT_TRUE(CheckGrammarBounds(
      "root ::= item{2,5} [a-z{}]{3} \"{9,1}\" (x y){0,100}\nitem ::= [0-9]{1,}\nx ::= \"\\\"{7,2}\"\ny ::= x?"));
}

TEST(GrammarBounds, RepetitionsThatEndBeforeTheyBegin) {
  EXPECT_FALSE(CheckGrammarBounds("root ::= \"a\"{5,2}"));
  EXPECT_FALSE(CheckGrammarBounds("root ::= (\"a\" | \"b\"){ 3, 1}"));
}

TEST(GrammarBounds, RepetitionsOfRepetitions) {
  EXPECT_FALSE(CheckGrammarBounds("root ::= ((\"a\"{1000}){1000}){1000}"));
  EXPECT_FALSE(CheckGrammarBounds("root ::= \"a\"{100000}"));
  EXPECT_FALSE(CheckGrammarBounds("root ::= \"a\"{99999999999999999999}")) << "more than a number holds";
  EXPECT_FALSE(CheckGrammarBounds("root ::= \"a\"{,2001}"));
  EXPECT_TRUE(CheckGrammarBounds("root ::= \"a\"{,2000}"));
  std::string many = "root ::= ";
  for (int i = 0; i < 300; ++i) many += "[a-z]{1000} ";
  EXPECT_FALSE(CheckGrammarBounds(many));
  EXPECT_FALSE(CheckGrammarBounds("root ::= " + std::string(1000, '(') + "\"a\"" + std::string(1000, ')')));
  EXPECT_FALSE(CheckGrammarBounds(std::string(size_t{1} << 20, ' ')));
  std::string chain = "root ::= r0\n";
  for (int i = 0; i < 8; ++i) chain += fmt::format("r{} ::= \"[\" r{}{{1,50}} \"]\"\n", i, i + 1);
  EXPECT_FALSE(CheckGrammarBounds(chain + "r8 ::= [a-z]"));
  EXPECT_TRUE(CheckGrammarBounds("root ::= \"[\" a{1,100} \"]\"\na ::= b{1,100}\nb ::= c{1,100}\nc ::= [a-z]"));
}

// libllama holds every place where the text may be, and compares them with each other.
TEST(GrammarBounds, TextsThatMayBeInManyPlacesAtOnce) {
  for (const char* grammar : {"root ::= (([a-z]?){40}){40}", "root ::= ([a-z]? [a-z]?){500}",
                              "root ::= a{0,200}\na ::= b{0,200}\nb ::= [a-z ]?"}) {
    EXPECT_FALSE(CheckGrammarBounds(grammar)) << grammar;
  }
  std::string chain = "root ::= r0\n";
  for (int i = 0; i < 5000; ++i) chain += fmt::format("r{} ::= r{}\n", i, i + 1);
  EXPECT_FALSE(CheckGrammarBounds(chain + "r5000 ::= \"a\""));
  for (const char* grammar :
       {"root ::= ([a-z]?){40}", "root ::= [a-z]{0,1000}", "root ::= e\ne ::= [a-z] e? \"!\" e?",
        "n ::= \"{\" (\",\" n)? (\";\" n)? \"}\"\nroot ::= n n?", "list ::= \"a\" list |\nroot ::= list \".\"",
        "root ::= x x?\nx ::= \"(\" x* \")\" # {40}\n", "root ::= \"a\" | # ::= \n  \"b\"\n"}) {
    EXPECT_TRUE(CheckGrammarBounds(grammar)) << grammar;
  }
}

TEST(SchemaBounds, RequiredIsAListOfNames) {
  for (const char* const wrong : {R"("a")", "5", "[1]", R"(["a",{}])"}) {
    EXPECT_FALSE(CheckSchemaBounds(fmt::format(R"({{"type":"object","required":{}}})", wrong))) << wrong;
  }
  EXPECT_TRUE(
      CheckSchemaBounds(R"({"type":"object","properties":{"required":{"type":"string"}},"required":["required"]})"));
  EXPECT_TRUE(CheckSchemaBounds(R"({"type":"object","properties":{"a":{"type":"string","required":true}}})"));
}

TEST(SchemaBounds, OrdinarySchemasPass) {
  EXPECT_TRUE(CheckSchemaBounds("{}"));
  EXPECT_TRUE(CheckSchemaBounds(R"({"type":"object","properties":{"minItems":{"type":"integer","minimum":0,"maximum":9},
      "tags":{"type":"array","items":{"type":"string","maxLength":20},"minItems":1,"maxItems":3}},"required":["tags"]})"));
  // A tree that refers to itself has an end wherever its values do.
  EXPECT_TRUE(CheckSchemaBounds(
      R"({"$ref":"#/$defs/n","$defs":{"n":{"type":"object","properties":{"next":{"$ref":"#/$defs/n"}}}}})"));
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
  EXPECT_FALSE(
      CheckSchemaBounds(Nested(R"({"type":["array","object","string"],"items":)", R"({"type":"string"})", "}", 20)));
  std::string wide = R"({"type":"object","properties":{)";
  for (int i = 0; i < 1000; ++i) wide += (i == 0 ? "\"p" : ",\"p") + std::to_string(i) + R"(":{"type":"string"})";
  EXPECT_FALSE(CheckSchemaBounds(wide + "}}"));
  EXPECT_FALSE(CheckSchemaBounds(R"({"properties":{")" + std::string(100000, '!') + R"(":{}}})"));
  EXPECT_FALSE(CheckSchemaBounds(R"({"type":"array","items":{"type":"string"},"minItems":1000000})"));
}

TEST(SchemaBounds, RepetitionsOfRepetitions) {
  const std::string leaf = R"({"type":"string"})";
  const auto arrays = [&](const std::string& bounds, int depth) {
    return Nested(R"({"type":"array",)" + bounds + R"(,"items":)", leaf, "}", depth);
  };
  EXPECT_TRUE(CheckSchemaBounds(arrays(R"("minItems":50,"maxItems":50)", 2)));
  EXPECT_FALSE(CheckSchemaBounds(arrays(R"("minItems":50,"maxItems":50)", 30)));
  EXPECT_FALSE(CheckSchemaBounds(arrays(R"("minItems":50)", 3))) << "125,000 items in each answer";
  EXPECT_TRUE(CheckSchemaBounds(arrays(R"("maxItems":100)", 4)));
  EXPECT_FALSE(CheckSchemaBounds(arrays(R"("maxItems":100)", 5)));
  // Through references; a tree may go on.
  std::string chain = R"({"$ref":"#/$defs/r0","$defs":{)";
  for (int i = 0; i < 20; ++i) {
    chain += fmt::format(R"("r{}":{{"type":"array","minItems":5,"items":{{"$ref":"#/$defs/r{}"}}}},)", i, i + 1);
  }
  EXPECT_FALSE(CheckSchemaBounds(chain + R"("r20":{"type":"integer"}}})"));
  EXPECT_TRUE(CheckSchemaBounds(
      R"({"$ref":"#/$defs/n","$defs":{"n":{"type":"array","maxItems":9,"items":{"$ref":"#/$defs/n"}}}})"));
  // Members of these names are none of its bounds.
  EXPECT_TRUE(CheckSchemaBounds(
      R"({"properties":{"minItems":{"type":"integer"},"maxItems":{"const":5},"items":{"type":"string"}}})"));
}

TEST(SchemaBounds, PatternsThatRepeatRepetitions) {
  const auto check = [](const std::string& pattern) {
    return CheckSchemaBounds(R"({"type":"string","pattern":")" + pattern + "\"}").has_value();
  };
  EXPECT_FALSE(check("^(a{1,2000}){1,2000}$"));
  EXPECT_FALSE(check("^((a{0,100}b?){100}[c-z]{3}){100,}$"));
  EXPECT_TRUE(check("^[0-9]{1,2000}(, [0-9]{1,2000}){0,50}$"));
  EXPECT_TRUE(check("^([a-f{]{2}:){5}\\\\{2000[a-f]{2}$"));
  EXPECT_TRUE(check("^a{1,2000}b{1,2000}(c{1,2000}|d{1,2000})$"));
}

TEST(SchemaBounds, PatternsThatAreNone) {
  const Status status = CheckSchemaBounds(R"({"properties":{"a":{"type":"string","pattern":"("}}})");
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().message, "the JSON schema cannot be used: \"(\" is no regular expression: a '(' has no ')'");
  EXPECT_TRUE(CheckSchemaBounds(R"({"properties":{"pattern":{"type":"string","pattern":"a+"}}})")) << "control";
}

TEST(SchemaBounds, ReferencesInACircle) {
  EXPECT_FALSE(
      CheckSchemaBounds(R"({"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}})"));
  EXPECT_FALSE(CheckSchemaBounds(R"({"allOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"allOf":[{"$ref":"#/$defs/a"}]}}})"));
}

TEST(SchemaBounds, WhatIsNoSchema) {
  EXPECT_FALSE(CheckSchemaBounds("["));
  EXPECT_FALSE(CheckSchemaBounds("[]"));
  EXPECT_FALSE(CheckSchemaBounds(std::string(100000, '{')));
}

}  // namespace
}  // namespace pith
