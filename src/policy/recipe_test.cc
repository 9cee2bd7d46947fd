#include <gtest/gtest.h>

#include <set>

#include "policy/policy.h"
#include "policy/registry.h"
#include "policy/words.h"

namespace pith {
namespace {

std::string ErrorOf(std::string_view text) {
  const Result<Recipe> recipe = ParseRecipe(text);
  return recipe ? "parsed: " + recipe->text : recipe.error().message;
}

std::string Normal(std::string_view text) {
  const Result<Recipe> recipe = ParseRecipe(text);
  return recipe ? recipe->text : "error: " + recipe.error().message;
}

TEST(Recipe, NamesParametersAndStages) {
  EXPECT_EQ(Normal("snapkv"), "snapkv");
  EXPECT_EQ(Normal("  snapkv\t:"), "error: there is no recipe ''; did you mean 'h2o'?");
  EXPECT_EQ(Normal("snapkv:window=64,pool=7"), "snapkv:window=64,pool=7");
  EXPECT_EQ(Normal("snapkv:window=64,window=16   alloc=ada:alpha=0.10"), "snapkv:window=16 alloc=ada:alpha=0.1");
  EXPECT_EQ(Normal("score=snapkv:window=64 agg=defensive alloc=ada:alpha=0.2 act=drop"),
            "score=snapkv:window=64 agg=defensive alloc=ada:alpha=0.2 act=drop");
  EXPECT_EQ(Normal("alloc=ada score=h2o"), "alloc=ada score=h2o");
  EXPECT_EQ(Normal("criticalkv mod=none mod=caote"), "criticalkv mod=none mod=caote");
  EXPECT_EQ(Normal("snapkv mod=caote mod=none"), "snapkv mod=none");
}

TEST(Recipe, NormalisedTextParsesToItself) {
  for (const char* text : {"snapkv:window=1e2", "tova:scope=head", "h2o:recent=0.25,sinks=8 mod=graphkv:form=literal",
                           "score=rkv:threshold=-0.5 sinks=0", "dbudgetkv:sinks=2,form=paper"}) {
    const std::string once = Normal(text);
    EXPECT_EQ(Normal(once), once) << text;
  }
}

TEST(Recipe, StagesReplaceThoseOfTheName) {
  const Result<Recipe> recipe = ParseRecipe("snapkv:window=16 alloc=global");
  ASSERT_TRUE(recipe.has_value());
  EXPECT_FALSE(recipe->policy->layer_local());
  EXPECT_EQ(recipe->policy->window(), 16);
  EXPECT_TRUE(ParseRecipe("layer_defensivekv alloc=uniform")->policy->layer_local());
}

TEST(Recipe, PrefillOptionGoesWithAnyRecipe) {
  EXPECT_FALSE(ParseRecipe("full")->prefill.has_value());
  const Result<Recipe> recipe =
      ParseRecipe("snapkv:window=16 prefill=criti:segment=256,block=64,budget=1024,fusion=off");
  ASSERT_TRUE(recipe.has_value()) << recipe.error().message;
  ASSERT_TRUE(recipe->prefill.has_value());
  EXPECT_EQ(recipe->prefill->segment, 256);
  EXPECT_EQ(recipe->prefill->block, 64);
  EXPECT_EQ(recipe->prefill->budget, 1024);
  EXPECT_EQ(recipe->prefill->threshold, 4096);
  EXPECT_FALSE(recipe->prefill->fusion);
  EXPECT_EQ(recipe->policy->window(), 16);
  EXPECT_EQ(Normal(recipe->text), recipe->text);
  EXPECT_EQ(ErrorOf("full prefill=criti:block=48"),
            "prefill=criti skips whole pages, so its block must be a multiple of 32, not 48");
  EXPECT_EQ(ErrorOf("full prefill=criti:block=64,segment=96"),
            "the segment of prefill=criti must be a multiple of its block, and 96 is none of 64");
  EXPECT_EQ(ErrorOf("full prefill=criti:block=64,budget=32"),
            "the budget of prefill=criti must hold one block: 32 is less than 64");
  EXPECT_EQ(ErrorOf("full prefill=crit"), "there is no prefill=crit; did you mean 'criti'?");
}

TEST(Recipe, ActionsSayWhatHappensToTheRest) {
  EXPECT_EQ(ParseRecipe("snapkv")->policy->merge(), nullptr);
  EXPECT_EQ(ParseRecipe("snapkv act=drop")->policy->merge(), nullptr);
  const Result<Recipe> merging = ParseRecipe("snapkv act=merge:alpha=0.75,beta=0.25,weights=paper");
  ASSERT_TRUE(merging.has_value()) << merging.error().message;
  ASSERT_NE(merging->policy->merge(), nullptr);
  EXPECT_EQ(merging->policy->merge()->alpha, 0.75);
  EXPECT_TRUE(merging->policy->merge()->weigh_exp);
  EXPECT_EQ(merging->num_sinks, 4);
  EXPECT_EQ(ParseRecipe("d2o sinks=2")->num_sinks, 2);
  EXPECT_EQ(ParseRecipe("d2o act=drop")->policy->merge(), nullptr);
}

TEST(Recipe, NeedsFollowFromTheStages) {
  EXPECT_EQ(ParseRecipe("full")->policy->needs(), 0U);
  EXPECT_TRUE(ParseRecipe("full")->policy->keeps_everything());
  EXPECT_EQ(ParseRecipe("keydiff")->policy->needs(), uint32_t{kNeedKeys});
  EXPECT_EQ(ParseRecipe("criticalkv")->policy->needs(), uint32_t{kNeedWindowProbs} | kNeedValueNorms);
  EXPECT_EQ(ParseRecipe("h2o")->policy->columns().size(), 1U);
  // An allocator that reads a window adopts the scorer's, or 32.
  EXPECT_EQ(ParseRecipe("score=knorm alloc=cake")->policy->window(), 32);
  EXPECT_EQ(ParseRecipe("score=snapkv:window=9 alloc=cake")->policy->window(), 9);
}

TEST(Recipe, SinksArePartOfTheRecipe) {
  EXPECT_EQ(ParseRecipe("streamingllm")->num_sinks, 4);
  EXPECT_EQ(ParseRecipe("streamingllm:sinks=2")->num_sinks, 2);
  EXPECT_EQ(ParseRecipe("score=streamingllm:sinks=3")->num_sinks, 3);
  EXPECT_EQ(ParseRecipe("window")->num_sinks, 0);
  EXPECT_EQ(ParseRecipe("snapkv")->num_sinks, -1) << "the engine decides";
  EXPECT_EQ(ParseRecipe("snapkv sinks=0")->num_sinks, 0);
  EXPECT_EQ(ParseRecipe("snapkv sinks=7")->num_sinks, 7);
  EXPECT_FALSE(ParseRecipe("snapkv")->format.has_value());
  EXPECT_EQ(ParseRecipe("pith")->text, "pith");
  EXPECT_EQ(ParseRecipe("pith format=q8")->text, "pith format=q8");
  EXPECT_EQ(ParseRecipe("snapkv format=q4_0")->format, PageFormat(KvFormat::kQ4));
  EXPECT_EQ(ParseRecipe("snapkv:window=16,format=q8/q4 sinks=2")->format, PageFormat(KvFormat::kQ8, KvFormat::kQ4));
  EXPECT_EQ(ParseRecipe("snapkv:window=16,format=q8/q4 sinks=2")->text, "snapkv:window=16 sinks=2 format=q8/q4");
}

TEST(Recipe, AutoNamesNoFormatYet) {
  EXPECT_EQ(ParseRecipe("snapkv format=auto")->auto_format, 0.95);
  EXPECT_FALSE(ParseRecipe("snapkv format=auto")->format.has_value());
  EXPECT_EQ(ParseRecipe("snapkv format=auto:0.50")->auto_format, 0.5);
  EXPECT_EQ(Normal("snapkv format=auto:0.50"), "snapkv format=auto:0.5");
  EXPECT_EQ(Normal("snapkv format=auto:0.95"), "snapkv format=auto");
  EXPECT_FALSE(ParseRecipe("pith format=q8")->auto_format.has_value());
  EXPECT_EQ(ParseRecipe("snapkv format=comp")->format, PageFormat(CodedFormat(17), CodedFormat(7)));
  EXPECT_EQ(ParseRecipe("snapkv format=comp:ev=0.1")->format, PageFormat(CodedFormat(17), CodedFormat(10)));
  EXPECT_EQ(Normal("snapkv format=comp:ek=0.0625,ev=1/5"), "snapkv format=comp:ek=1/16,ev=1/5");
  EXPECT_EQ(Normal("snapkv format=comp:ek=1/16,ev=1/5"), "snapkv format=comp:ek=1/16,ev=1/5");
  for (const char* shares :
       {"ek", "ek=", "ek=0.6", "ek=1/63", "ek=0", "ek=x", "ek=1/", "ek=0.1;ev=0.1", "e=0.1", "ek=nan"}) {
    EXPECT_EQ(ErrorOf(std::string("snapkv format=comp:") + shares),
              "format=comp:ek=F,ev=F takes shares of a range from 1/62 to 1/2, not '" + std::string(shares) + "'");
  }
  for (const char* share : {"0", "1.5", "x", "", "nan", "0.5x"}) {
    EXPECT_EQ(ErrorOf(std::string("snapkv format=auto:") + share),
              "format=auto takes a share of the entries from 0.01 to 1, not '" + std::string(share) + "'");
  }
}

TEST(Recipe, TheOtherAlternativeServesWhereThePromptIsNotWhole) {
  const Result<Recipe> recipe = ParseRecipe("kvzip:chunk=500 format=q4 or snapkv:window=16");
  ASSERT_TRUE(recipe) << recipe.error().message;
  EXPECT_EQ(recipe->text, "kvzip:chunk=500 format=q4 or snapkv:window=16");
  ASSERT_NE(recipe->while_partial, nullptr);
  EXPECT_EQ(AlternativeFor(*recipe, true).policy->repeat()->chunk, 500);
  EXPECT_EQ(AlternativeFor(*recipe, false).policy->window(), 16);
  EXPECT_FALSE(AlternativeFor(*recipe, false).format.has_value());
  EXPECT_EQ(recipe->while_partial->text, recipe->text);
  EXPECT_FALSE(NeedsWholePrompt(*recipe));
  EXPECT_TRUE(NeedsWholePrompt(*ParseRecipe("kvzip")));
  EXPECT_FALSE(NeedsWholePrompt(*ParseRecipe("kvzip:read=blocks")));
  EXPECT_FALSE(NeedsWholePrompt(*ParseRecipe("kvzip:read=blocks act=residue")));
  EXPECT_TRUE(NeedsWholePrompt(*ParseRecipe("kvzip:read=blocks act=match"))) << "what stays is fitted once";
  EXPECT_FALSE(NeedsWholePrompt(*ParseRecipe("kvzip:read=echo act=residue")));
  EXPECT_FALSE(NeedsWholePrompt(*ParseRecipe("snapkv")));

  EXPECT_EQ(ErrorOf("snapkv or h2o"),
            "'snapkv' works wherever 'h2o' does, so that 'or' has no meaning: choose one of them");
  EXPECT_EQ(ErrorOf("kvzip or kvzip_head"),
            "'kvzip_head' needs the whole prompt, too, so that it can't take the place of 'kvzip'");
  EXPECT_EQ(ErrorOf("kvzip or h2o or snapkv"), "a recipe has one 'or' at most");
  EXPECT_EQ(ErrorOf("kvzip or "), "the recipe is empty; name one, such as 'snapkv'");
  EXPECT_EQ(ErrorOf(" or h2o"), "the recipe is empty; name one, such as 'snapkv'");
}

TEST(Recipe, WhatStandsBesideANameGoesToBothOfItsAlternatives) {
  const Result<Recipe> recipe = ParseRecipe("pith:overlap=4,chunk=300 format=q8 sinks=2");
  ASSERT_TRUE(recipe) << recipe.error().message;
  EXPECT_EQ(recipe->text, "pith:overlap=4,chunk=300 sinks=2 format=q8");
  EXPECT_EQ(Normal(recipe->text), recipe->text);
  EXPECT_FALSE(recipe->policy->repeat()->by_blocks);
  EXPECT_TRUE(recipe->while_partial->policy->repeat()->by_blocks);
  for (const Recipe* one : {&*recipe, recipe->while_partial.get()}) {
    EXPECT_EQ(one->policy->repeat()->chunk, 300);
    EXPECT_EQ(one->policy->repeat()->overlap, 4);
    EXPECT_EQ(one->format, PageFormat(KvFormat::kQ8));
    EXPECT_EQ(one->num_sinks, 2);
    EXPECT_FALSE(one->auto_format.has_value());
  }
  EXPECT_EQ(ErrorOf("pith:chunk=x"), "chunk of 'pith' must be a whole number between 64 and 65536, not 'x'");
  EXPECT_EQ(ErrorOf("pith:chnk=3"), "'pith' has no parameter 'chnk'; did you mean 'chunk'?");
  EXPECT_TRUE(ParseRecipe("kvzip or pith")->while_partial->policy->repeat()->by_blocks);
}

TEST(Recipe, ErrorsNameTheWordAndTheNearestChoice) {
  EXPECT_EQ(ErrorOf("snapvk"), "there is no recipe 'snapvk'; did you mean 'snapkv'?");
  EXPECT_EQ(ErrorOf("SnapKV"), "there is no recipe 'SnapKV'; did you mean 'snapkv'?");
  EXPECT_EQ(ErrorOf("snapkv:windw=3"), "'snapkv' has no parameter 'windw'; did you mean 'window'?");
  EXPECT_EQ(ErrorOf("snapkv:window=x"), "window of 'snapkv' must be a whole number between 1 and 4096, not 'x'");
  EXPECT_EQ(ErrorOf("snapkv:window=2.5"), "window of 'snapkv' must be a whole number between 1 and 4096, not '2.5'");
  EXPECT_EQ(ErrorOf("snapkv:window=0"), "window=0 of 'snapkv' is out of range; the nearest valid value is 1");
  EXPECT_EQ(ErrorOf("adakv:alpha=nan"), "alpha of 'adakv' must be a number between 0 and 1, not 'nan'");
  EXPECT_EQ(ErrorOf("snapkv:pooling=mx"), "'mx' is no value for pooling of 'snapkv'; did you mean 'max'?");
  EXPECT_EQ(ErrorOf("snapkv:window"), "'window' after 'snapkv:' is not of the form name=value");
  EXPECT_EQ(ErrorOf("scor=knorm"), "there is no stage 'scor'; did you mean 'score'?");
  EXPECT_EQ(ErrorOf("snapkv alloc=adda"), "there is no alloc=adda; did you mean 'ada'?");
  EXPECT_EQ(ErrorOf("score=knorm:windw=3"), "score=knorm has no parameter 'windw'; did you mean 'recent'?");
  EXPECT_EQ(ErrorOf("alloc=uniform:x=1 score=h2o"), "alloc=uniform has no parameter 'x'; it has none");
  EXPECT_EQ(ErrorOf("snapkv format=q5"),
            "format=q5 is none of auto, comp, f16, bf16, q8, q4, q3 and q2 or two of the last 6 as in q8/q4");
  EXPECT_EQ(ErrorOf("snapkv sinks=-1"), "sinks must be a whole number between 0 and 4096, not '-1'");
  EXPECT_EQ(ErrorOf("snapkv h2o"), "the recipe 'h2o' must come first, alone or with stages after it");
  EXPECT_EQ(ErrorOf("score=snapkv score=h2o"), "score=snapkv and score=h2o exclude one another; name one of them");
  EXPECT_EQ(ErrorOf("alloc=ada"), "the recipe has no score stage; add one, such as 'score=snapkv'");
  EXPECT_EQ(ErrorOf(" \n"), "the recipe is empty; name one, such as 'snapkv'");
  EXPECT_EQ(ErrorOf(std::string(5000, 'x')), "a recipe has at most 4096 characters, this one has 5000");
}

TEST(Recipe, IllegalPairsAreRefused) {
  EXPECT_EQ(ErrorOf("score=knorm agg=max"),
            "score=knorm does not read a window of attention, so there is nothing for agg=max to aggregate");
  EXPECT_EQ(ErrorOf("snapkv mod=graphkv alloc=global"),
            "mod=graphkv needs the keys when budgets are known, but alloc=global knows them only after all layers; "
            "use alloc=uniform or alloc=ada");
}

TEST(Recipe, StrangeBytesGiveOneShortSentence) {
  std::string bytes;
  for (int c = 0; c < 256; ++c) {
    bytes += static_cast<char>(c);
    for (const std::string& text :
         {bytes, "snapkv:" + bytes, "score=" + bytes, bytes + "=1", "snapkv:window=" + bytes}) {
      const Result<Recipe> recipe = ParseRecipe(text);
      if (recipe) continue;
      EXPECT_LT(recipe.error().message.size(), 300U);
      for (char shown : recipe.error().message) EXPECT_TRUE(shown >= 0x20 && shown <= 0x7e);
    }
  }
}

TEST(Recipe, TheListIsCompleteAndFilledIn) {
  const std::vector<RecipeInfo> list = ListRecipes();
  EXPECT_EQ(list.size(), NamedRecipes().size());
  std::set<std::string> names;
  for (const RecipeInfo& info : list) {
    EXPECT_TRUE(names.insert(info.name).second) << info.name << " is there twice";
    EXPECT_TRUE(ParseRecipe(info.name).has_value()) << info.name;
    const Result<Recipe> spelled = ParseRecipe(info.stages);
    ASSERT_TRUE(spelled.has_value()) << info.stages;
    EXPECT_EQ(spelled->policy->needs(), ParseRecipe(info.name)->policy->needs()) << info.name;
    for (const std::string& text : {info.summary, info.needs, info.cost, info.when, info.good_for})
      EXPECT_FALSE(text.empty());
  }
}

TEST(Recipe, StageNamesAreUnique) {
  std::set<std::pair<StageKind, std::string_view>> names;
  for (const StageEntry* entry : Stages()) {
    EXPECT_TRUE(names.insert({entry->kind, entry->name}).second) << entry->name;
    EXPECT_FALSE(entry->summary.empty()) << entry->name;
    for (const ParamSpec& spec : entry->params) {
      EXPECT_FALSE(spec.help.empty()) << entry->name << " " << spec.name;
      EXPECT_LE(spec.min, spec.initial) << entry->name << " " << spec.name;
      EXPECT_GE(spec.max, spec.initial) << entry->name << " " << spec.name;
    }
  }
}

TEST(Words, NearestIgnoresCaseAndTakesTheFirstOfEquals) {
  EXPECT_EQ(Nearest("KEYDIF", {"knorm", "keydiff"}), "keydiff");
  EXPECT_EQ(Nearest("zzz", {"aaa", "bbb"}), "aaa");
  EXPECT_EQ(Nearest("x", {}), "");
}

}  // namespace
}  // namespace pith
