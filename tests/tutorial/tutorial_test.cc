// docs/tutorial-policy.md: its code is that of examples/policy, which is built here as anybody's policy folder is, with
// a registry of its own lines.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <string>

#include "policy/policy.h"
#include "policy/policy_test_util.h"
#include "policy/registry.h"

namespace pith {
namespace {

std::string Read(const std::string& path) {
  std::ifstream in(std::string(PITH_SOURCE_DIR) + "/" + path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

// The fenced blocks of a language, in order.
std::vector<std::string> Blocks(const std::string& page, const std::string& language) {
  std::vector<std::string> blocks;
  const std::string fence = "```" + language + "\n";
  for (size_t at = page.find(fence); at != std::string::npos; at = page.find(fence, at)) {
    at += fence.size();
    const size_t end = page.find("```", at);
    blocks.push_back(page.substr(at, end - at));
    at = end;
  }
  return blocks;
}

TEST(Tutorial, ShowsTheFilesAsTheyAre) {
  const std::vector<std::string> blocks = Blocks(Read("docs/tutorial-policy.md"), "cpp");
  ASSERT_EQ(blocks.size(), 2U);
  const std::string file = Read("examples/policy/vatp.cc");
  EXPECT_TRUE(blocks[0] == file) << "docs/tutorial-policy.md shows another examples/policy/vatp.cc";
  EXPECT_TRUE(blocks[1] == Read("examples/policy/registry.inc"));
  EXPECT_LT(std::count(file.begin(), file.end(), '\n'), 100);
  EXPECT_EQ(std::count(blocks[1].begin(), blocks[1].end(), '\n'), 1) << "one line registers it";
}

TEST(Tutorial, ShowsTheScorerOfTheExampleAsItIs) {
  const std::vector<std::string> blocks = Blocks(Read("docs/tutorial-policy.md"), "c++");
  ASSERT_EQ(blocks.size(), 1U);
  const std::string end = "\n};\n";
  const std::string scorer = blocks[0].substr(0, blocks[0].find(end) + end.size());
  EXPECT_NE(Read("examples/policy.cc").find(scorer), std::string::npos) << "examples/policy.cc has another scorer";
}

TEST(Tutorial, TheStageIsRegisteredBesideAllOthers) {
  ASSERT_NE(FindStage(StageKind::kScore, "vatp"), nullptr);
  EXPECT_NE(FindStage(StageKind::kScore, "snapkv"), nullptr);
  const Result<Recipe> recipe = ParseRecipe("score=vatp:window=4 agg=max alloc=ada:alpha=0.3");
  ASSERT_TRUE(recipe.has_value()) << recipe.error().message;
  const Result<Recipe> wrong = ParseRecipe("score=vatp:windw=4");
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().message, "score=vatp has no parameter 'windw'; did you mean 'window'?");
  const std::vector<StageListing> stages = ListStages();
  EXPECT_TRUE(std::any_of(stages.begin(), stages.end(), [](const StageListing& s) { return s.name == "vatp"; }));
}

TEST(Tutorial, AttentionToAShortValueCountsLess) {
  // One head, three entries before the last query's own; the first two are looked at equally.
  const std::vector<int32_t> positions = {0, 1, 2, 3};
  const std::vector<float> probs = {.3F, .3F, .2F, .2F};
  const std::vector<float> values = {.1F, -.1F, 2, -2, 1, 1, 0, 0};
  HeadInputs head;
  head.num_entries = 4;
  head.positions = positions;
  head.window_probs = probs.data();
  head.values = values.data();
  LayerInputs layer;
  layer.num_layers = 1;
  layer.value_dim = 2;
  layer.window = 1;
  layer.heads = {&head, 1};
  const Result<Recipe> recipe = ParseRecipe("score=vatp:window=1");
  LayerScores scores;
  recipe->policy->Score(layer, scores);
  EXPECT_NEAR(scores.heads[0][0], .06, 1e-6);
  EXPECT_NEAR(scores.heads[0][1], 1.2, 1e-6);
  EXPECT_NEAR(scores.heads[0][2], .4, 1e-6);
  Budget budget;
  budget.keep = 2;
  EXPECT_EQ(recipe->policy->Select(layer, scores, budget).value(), (KeptHeads{{1, 3}}));
}

TEST(Tutorial, TheBudgetHoldsOnRaggedHeads) {
  for (const char* text :
       {"score=vatp:window=4", "score=vatp:window=4 alloc=ada", "score=vatp:window=4 mod=criticalkv"}) {
    const Result<Recipe> recipe = ParseRecipe(text);
    ASSERT_TRUE(recipe.has_value()) << recipe.error().message;
    LayerShapeForTest shape;
    shape.entries = {40, 25, 9};
    shape.pinned = 2;
    const TestLayer layer(shape, *recipe->policy, 4);
    LayerScores scores;
    recipe->policy->Score(layer.inputs(), scores);
    Budget budget;
    budget.keep = 10;
    size_t kept = 0;
    const KeptHeads selected = recipe->policy->Select(layer.inputs(), scores, budget).value();
    for (const auto& indices : selected) kept += indices.size();
    EXPECT_LE(kept, 30U) << text;
    EXPECT_GE(kept, 29U) << text;
  }
}

}  // namespace
}  // namespace pith
