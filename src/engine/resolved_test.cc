#include "engine/resolved.h"

#include <gtest/gtest.h>

#include <string>

#include "engine/plan_test_util.h"
#include "policy/act/demote.h"
#include "policy/storage.h"

namespace pith {
namespace {

using testing::SmolInfo;

EngineOptions Options(const std::string& recipe, CompressMode compress = CompressMode::kBlock) {
  EngineOptions options;
  options.num_ctx = 8192;
  options.budget_bytes = size_t{60} << 20;
  options.compress = compress;
  const auto parsed = ParseRecipe(recipe);
  EXPECT_TRUE(parsed) << parsed.error().message;
  if (parsed) options.recipe = *parsed;
  return options;
}

std::string ErrorOf(const EngineOptions& options) {
  const auto resolved = Resolve(SmolInfo(), options);
  return resolved ? "" : resolved.error().message;
}

// What differs between two of them, in words; nothing if they run alike.
std::string Difference(const ResolvedSequence& a, const ResolvedSequence& b) {
  std::string text;
  const auto compare = [&text](const char* name, bool same) { text += same ? "" : std::string(name) + " "; };
  compare("policy", a.recipe.policy == b.recipe.policy);
  compare("sinks", a.recipe.num_running_sinks == b.recipe.num_running_sinks);
  compare("formats", a.formats == b.formats && a.turn_format == b.turn_format);
  compare("storage", a.recipe.storage.formats == b.recipe.storage.formats);
  compare("turns", a.recipe.turns.method == b.recipe.turns.method);
  compare("style", a.style.evicts == b.style.evicts && a.style.ragged == b.style.ragged);
  return text;
}

TEST(Resolve, NothingMeansFull) {
  const auto resolved = Resolve(SmolInfo(), EngineOptions());
  ASSERT_TRUE(resolved) << resolved.error().message;
  EXPECT_EQ(resolved->recipe.text, "full");
  EXPECT_TRUE(resolved->policy().keeps_everything());
  EXPECT_FALSE(resolved->style.evicts);
  EXPECT_FALSE(resolved->recipe.skips_attention());
  EXPECT_FALSE(resolved->recipe.has_turns());
  EXPECT_FALSE(resolved->converts_turns());
  EXPECT_FALSE(ResolveForCompress(Recipe())) << "what to compress with must be said";
}

TEST(Resolve, TakesTheAlternativeThatWorks) {
  const EngineOptions blocks = Options("kvzip or snapkv"), whole = Options("kvzip or snapkv", CompressMode::kAfter);
  const auto by_blocks = Resolve(SmolInfo(), blocks), at_once = Resolve(SmolInfo(), whole);
  ASSERT_TRUE(by_blocks && at_once);
  EXPECT_EQ(by_blocks->recipe.policy, blocks.recipe.while_partial->policy);
  EXPECT_EQ(at_once->recipe.policy, whole.recipe.policy);
  EXPECT_EQ(by_blocks->recipe.text, at_once->recipe.text) << "they are one recipe";
  EXPECT_TRUE(by_blocks->style.evicts);
  EXPECT_FALSE(at_once->style.evicts);
  EXPECT_EQ(ResolveForCompress(blocks.recipe)->policy, blocks.recipe.policy);
  EXPECT_NE(ErrorOf(Options("kvzip")).find("needs the whole prompt"), std::string::npos);
}

TEST(Resolve, SinksAreTheRecipesOrThoseOfStreams) {
  const auto sinks = [](const char* recipe) {
    const ResolvedSequence resolved = *Resolve(SmolInfo(), Options(recipe));
    return std::pair(resolved.recipe.num_sinks, resolved.recipe.num_running_sinks);
  };
  EXPECT_EQ(sinks("snapkv"), std::pair(0, 4));
  EXPECT_EQ(sinks("snapkv sinks=0"), std::pair(0, 0));
  EXPECT_EQ(sinks("snapkv sinks=7"), std::pair(7, 7));
  EXPECT_EQ(sinks("streamingllm"), std::pair(4, 4));
}

TEST(Resolve, FormatsAreSaidOnce) {
  const auto formats = [](const EngineOptions& options) { return Resolve(SmolInfo(), options)->formats; };
  EngineOptions types = Options("snapkv");
  types.format = KvFormat::kQ8;
  EXPECT_EQ(formats(types), formats(Options("snapkv format=q8")));
  EXPECT_EQ(formats(Options("snapkv format=q4")).converted, PageFormat(KvFormat::kQ4));
  EXPECT_EQ(formats(Options("snapkv")), CacheFormats());
  EngineOptions both = Options("snapkv format=q4");
  both.format = KvFormat::kQ8;
  EXPECT_NE(ErrorOf(both).find("give one of the two"), std::string::npos);
  EngineOptions demoting = Options("mikv");
  EXPECT_EQ(formats(demoting).chosen, Resolve(SmolInfo(), demoting)->policy().demote()->low);
  demoting.format = KvFormat::kQ8;
  EXPECT_NE(ErrorOf(demoting).find("says itself in which formats"), std::string::npos);
  EngineOptions later = Options("snapkv");
  later.later_recipes = {*ParseRecipe("keydiff format=q4")};
  EXPECT_EQ(ErrorOf(later), "");
  later.format = KvFormat::kQ8;
  EXPECT_NE(ErrorOf(later).find("converts an f16 cache"), std::string::npos);
}

// By blocks the budget says; where a prompt is compressed when it is whole, Compress() does.
TEST(Resolve, AutoIsChosenWhereBytesAreKnown) {
  const auto by_blocks = Resolve(SmolInfo(), Options("keydiff format=auto"));
  ASSERT_TRUE(by_blocks);
  EXPECT_EQ(by_blocks->formats.full().Name(), "q4");
  EXPECT_EQ(by_blocks->recipe.storage.formats.size(), 1U);
  const auto at_once = Resolve(SmolInfo(), Options("keydiff format=auto", CompressMode::kAfter));
  ASSERT_TRUE(at_once);
  EXPECT_EQ(at_once->formats, CacheFormats());
  const StorageRule& rule = at_once->recipe.storage;
  ASSERT_EQ(rule.formats.size(), kAutoFormats.size());
  EXPECT_EQ(rule.FormatFor(SmolInfo(), PageFormat(), 1000, 1).Name(), "f16");
  EXPECT_EQ(rule.FormatFor(SmolInfo(), PageFormat(), 1000, 0.99).Name(), "q8");
  EXPECT_EQ(rule.FormatFor(SmolInfo(), PageFormat(), 1000, 0.1).Name(), "q4/q2");
  // Four bits hold a third of the entries there.
  EXPECT_EQ(rule.FormatFor(SmolInfo(), PageFormat(), 1000, 0.1, 0.2).Name(), "q4") << "nobody looks at what goes";
  EXPECT_EQ(rule.FormatFor(SmolInfo(), PageFormat(), 1000, 0.1, 0.5).Name(), "q4/q2");
  EXPECT_EQ(rule.FormatFor(SmolInfo(), PageFormat(), 1000, 0.99, 0.01).Name(), "q8") << "nothing has to go";
  EXPECT_EQ(StorageRule().FormatFor(SmolInfo(), KvFormat::kQ8, 1000, 0.1).Name(), "q8") << "stays as it is";
}

// Compress() converts what stays of it, so that share and bytes are those of any format.
TEST(Resolve, WhatIsCompressedOnceIsReadAsItArrives) {
  for (const char* recipe :
       {"snapkv format=q4", "keydiff format=q8", "full format=q3", "kvcomp", "attentionmatching format=q4"}) {
    const auto resolved = Resolve(SmolInfo(), Options(recipe, CompressMode::kAfter));
    ASSERT_TRUE(resolved) << resolved.error().message;
    EXPECT_EQ(resolved->formats, CacheFormats()) << recipe;
    EXPECT_TRUE(resolved->recipe.storage.Converts(PageFormat())) << recipe;
  }
  EXPECT_EQ(Resolve(SmolInfo(), Options("snapkv format=q4"))->formats.full().Name(), "q4") << "control: by blocks";
  EngineOptions other = Options("snapkv format=q4", CompressMode::kAfter);
  other.format = KvFormat::kQ4;
  EXPECT_NE(ErrorOf(other).find("converts what stays of an f16 cache, and this one is q4"), std::string::npos);
  EngineOptions open = Options("snapkv format=auto", CompressMode::kAfter);
  open.format = KvFormat::kQ8;
  EXPECT_EQ(ErrorOf(open), "") << "the cache's types outweigh it";
  open.later_recipes = {*ParseRecipe("keydiff format=auto")};
  EXPECT_EQ(ErrorOf(open), "");
}

// Values that stand in for others can have more bits than those that speak for themselves, of the same bytes.
TEST(Resolve, AnActionMaySayWhatAutoTakesLast) {
  const auto last = [](const char* recipe, CompressMode mode) {
    const auto resolved = Resolve(SmolInfo(), Options(recipe, mode));
    if (!resolved) return resolved.error().message;
    return resolved->recipe.storage.FormatFor(SmolInfo(), PageFormat(), 1000, 0.02).Name();
  };
  EXPECT_EQ(last("kvzip act=residue:low=q3 format=auto:0.6", CompressMode::kAfter), "q3");
  EXPECT_EQ(last("kvzip act=residue format=auto:0.6", CompressMode::kAfter), "q4/q2") << "control";
  EXPECT_EQ(last("kvzip:read=blocks act=residue:low=q3 format=auto:0.6", CompressMode::kBlock), "q4")
      << "by blocks no fewer than four";
  EXPECT_EQ(TokenBytes(SmolInfo(), KvFormat::kQ3), TokenBytes(SmolInfo(), {KvFormat::kQ4, KvFormat::kQ2}));
}

TEST(Resolve, TurnsHaveAFormatAndAJudgeOfTheirOwn) {
  const auto turns = Resolve(SmolInfo(), Options("kvzip turns=flowkv format=q8"));
  ASSERT_TRUE(turns) << turns.error().message;
  EXPECT_EQ(turns->recipe.turns.method, TurnMethod::kFlowKv);
  EXPECT_EQ(turns->formats, CacheFormats()) << "until a turn is over";
  EXPECT_EQ(turns->turn_format.Name(), "q8");
  EXPECT_TRUE(turns->converts_turns());
  EXPECT_NE(turns->recipe.in_little_room, turns->recipe.policy);
  EXPECT_EQ(turns->recipe.in_little_room->repeat(), nullptr) << "reads nothing again";
  const auto plain = Resolve(SmolInfo(), Options("snapkv turns=flowkv"));
  ASSERT_TRUE(plain);
  EXPECT_EQ(plain->recipe.in_little_room, plain->recipe.policy);
  EXPECT_FALSE(plain->converts_turns());
}

// A sequence that is made from the options of another one runs as that one does, whatever bytes it has.
TEST(Resolve, WhatWasChosenStays) {
  for (const char* recipe : {"keydiff format=auto", "kvzip or snapkv format=q8", "snapkv turns=flowkv format=auto",
                             "pith", "mikv", "cake sinks=3"}) {
    SCOPED_TRACE(recipe);
    EngineOptions options = Options(recipe);
    const auto first = Resolve(SmolInfo(), options);
    ASSERT_TRUE(first) << first.error().message;
    static_cast<SequenceOptions&>(options) = first->options;
    options.budget_bytes = size_t{500} << 20;
    const auto second = Resolve(SmolInfo(), options);
    ASSERT_TRUE(second) << second.error().message;
    EXPECT_EQ(Difference(*first, *second), "");
  }
  EngineOptions roomy = Options("keydiff format=auto");
  roomy.budget_bytes = size_t{500} << 20;
  EXPECT_EQ(Difference(*Resolve(SmolInfo(), Options("keydiff format=auto")), *Resolve(SmolInfo(), roomy)),
            "policy formats storage ")
      << "control: other bytes give another format, another parse another policy";
}

}  // namespace
}  // namespace pith
