// turns= in recipes, and the arithmetic of flowkv's cap.
#include <gtest/gtest.h>

#include "policy/policy.h"

namespace pith {
namespace {

TEST(Turns, AreAWordBesideAnyRecipe) {
  const Result<Recipe> named = ParseRecipe("flowkv");
  ASSERT_TRUE(named.has_value());
  ASSERT_TRUE(named->turns.has_value());
  EXPECT_EQ(named->turns->method, TurnMethod::kFlowKv);
  EXPECT_DOUBLE_EQ(named->turns->drop, 0.5);
  const Result<Recipe> host = ParseRecipe("pith turns=flowkv:drop=0.8,cap=0.25");
  ASSERT_TRUE(host.has_value()) << host.error().message;
  EXPECT_DOUBLE_EQ(host->turns->drop, 0.8);
  EXPECT_DOUBLE_EQ(host->turns->cap, 0.25);
  ASSERT_NE(host->while_partial, nullptr);
  EXPECT_FALSE(NeedsWholePrompt(*host)) << "a turn is whole when it is over";
  EXPECT_EQ(ParseRecipe(host->text)->text, host->text);
  EXPECT_FALSE(ParseRecipe("keydiff")->turns.has_value());
  const Result<Recipe> either = ParseRecipe("kvzip or keydiff turns=flowkv");
  ASSERT_TRUE(either.has_value());
  EXPECT_TRUE(either->turns.has_value());
}

TEST(Turns, EpisodesHaveParameters) {
  const Result<Recipe> recipe = ParseRecipe("epicache:episodes=2,block=128,match=cosine");
  ASSERT_TRUE(recipe.has_value()) << recipe.error().message;
  ASSERT_TRUE(recipe->turns.has_value());
  EXPECT_EQ(recipe->turns->method, TurnMethod::kEpiCache);
  EXPECT_EQ(recipe->turns->episodes, 2);
  EXPECT_EQ(recipe->turns->block, 128);
  EXPECT_TRUE(recipe->turns->cosine);
  EXPECT_TRUE(recipe->turns->embedder.empty());
  EXPECT_EQ(ParseRecipe("keydiff turns=epicache:minilm.gguf")->turns->embedder, "minilm.gguf");
  EXPECT_FALSE(ParseRecipe("flowkv:drop=2").has_value());
}

TEST(Turns, ATurnKeepsItsShareOfWholeEntries) {
  TurnOptions options;
  options.drop = 0.8;
  EXPECT_EQ(TurnKeep(options, 100, 0), 20);
  EXPECT_EQ(TurnKeep(options, 31, 32), 31) << "shorter than the window: all of it";
  EXPECT_EQ(TurnKeep(options, 3, 0), 3);
  EXPECT_EQ(TurnKeep(options, 10, 0), 4) << "never below the least";
}

TEST(Turns, TheCapBoundsWhatFrozenTurnsHold) {
  TurnOptions options;
  std::vector<double> frozen;
  double most = 0;
  for (int turn = 0; turn < 200; ++turn) {
    const CapPlan plan = PlanCap(options, frozen, 50, 200);
    frozen.erase(frozen.begin(), frozen.begin() + plan.num_dropped);
    frozen.push_back(plan.keep);
    double held = 0;
    for (const double one : frozen) held += one;
    EXPECT_LE(held, 200.0) << turn;
    most = std::max(most, held);
    if (turn < 4) {
      EXPECT_DOUBLE_EQ(plan.keep, 50) << "as long as there is room, nothing changes";
    }
  }
  EXPECT_GT(most, 180.0);
  EXPECT_GT(frozen.size(), 4U) << "more turns with less of each";
}

}  // namespace
}  // namespace pith
