// Every recipe in a budget that holds a fraction of what is read: one test each, of which sanitized trees run a part.
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "engine/engine.h"
#include "tests/support/default_engine.h"
#include "tests/support/default_model.h"

namespace pith {
namespace {

std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const RecipeInfo& info : ListRecipes()) {
    // What reads a prompt again needs it whole: model_repeat_test.cc.
    if (info.name != "full" && !NeedsWholePrompt(*ParseRecipe(info.name))) names.push_back(info.name);
  }
  return names;
}

class ModelSmallBudget : public ::testing::TestWithParam<std::string> {};

TEST_P(ModelSmallBudget, Holds) {
  const bool latents = GetParam() == "deltakv";  // which leave the newest entries as they are
  const size_t budget = size_t{latents ? 9U : 7U} << 20;
  EngineOptions options;
  options.recipe = *ParseRecipe(latents ? "deltakv:recent=16" : GetParam());
  // In few bits.
  const bool keeps_all = options.recipe.policy->demote() != nullptr || options.recipe.policy->keeps_everything();
  options.num_ctx = keeps_all ? 600 : 4096;
  options.num_threads = testing::kThreads;
  options.budget_bytes = budget;
  options.block_tokens = 64;
  const std::unique_ptr<Engine> engine = testing::MakeDefaultEngine(options);
  ASSERT_NE(engine, nullptr);
  const SequenceId sequence = *engine->NewSequence();
  const std::vector<int32_t> tokens =
      testing::LedgerTokens(keeps_all || engine->stats().format == PageFormat() ? 420 : 1420);  // few bits hold more
  const size_t read = tokens.size() - 20;
  Status status = engine->Prefill(sequence, {tokens.data(), read});
  ASSERT_TRUE(status) << status.error().message;
  for (size_t i = read; i < tokens.size(); ++i) {
    status = engine->Decode(sequence, tokens[i]);
    ASSERT_TRUE(status) << status.error().message;
  }
  const KvStats stats = engine->stats();
  EXPECT_LE(stats.peak_bytes, budget);
  EXPECT_EQ(stats.kept_fraction == 1.0, keeps_all);
  EXPECT_LT(engine->KeptBytes(sequence), 0.75);
  for (const float logit : engine->logits(sequence)) ASSERT_TRUE(std::isfinite(logit));
}

INSTANTIATE_TEST_SUITE_P(Recipes, ModelSmallBudget, ::testing::ValuesIn(Names()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace pith
