// What holds of any recipe on any model: small random ones, of layers that slide, are recurrent, share, rotate nothing.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "lab/budget_judge.h"
#include "lab/delta_fit.h"
#include "lab/less_maps.h"
#include "lab/perturbation.h"
#include "lab/sensitivity.h"
#include "tests/support/random_model.h"

namespace pith::testing {
namespace {

// What may happen to entries instead of being dropped.
constexpr const char* kActs[] = {"residue", "match", "demote:hi=q8", "delta:recent=16", "prune:recent=8", "merge"};

// Every named recipe, and those beside scorers of other kinds.
std::vector<std::string> Recipes() {
  std::vector<std::string> all;
  for (const RecipeInfo& info : ListRecipes()) all.push_back(info.name);
  for (const char* act : kActs) {
    all.push_back(fmt::format("snapkv:window=8 act={}", act));
    all.push_back(fmt::format("score=expectedattention alloc=ada act={}", act));
  }
  for (const char* more : {"keydiff format=q8", "keydiff format=q3", "h2o alloc=ada format=q4/q2", "full format=q4",
                           "kvzip:read=echo format=auto", "snapkv act=residue format=q4", "think format=q3",
                           "snapkv turns=flowkv format=q4", "pith turns=flowkv"}) {
    all.emplace_back(more);
  }
  return all;
}

class ModelRecipeDraws : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + fmt::format("pith_draws_{}_{}.gguf", GetParam(), getpid());
    const Status made = MakeRandomModel(GetParam(), NeedsExperts(GetParam()), path_, 3);
    ASSERT_TRUE(made) << made.error().message;
    auto model = HostModel::Load(path_, HostModelOptions{});
    ASSERT_TRUE(model) << model.error().message;
    model_ = *model;
  }
  void TearDown() override { std::filesystem::remove(path_); }

  static EngineOptions Options(const std::string& recipe, CompressMode compress) {
    EngineOptions options;
    options.num_ctx = 300;
    options.num_threads = 1;
    options.compress = compress;
    options.recipe = *ParseRecipe(recipe);
    return options;
  }
  static std::vector<int32_t> Tokens(int count) {
    std::vector<int32_t> tokens;
    for (int i = 0; i < count; ++i) tokens.push_back((i * 37 + i * i / 7) % 97 + 3);
    return tokens;
  }

  static void ExpectFull(const Error& error) { EXPECT_EQ(error.code, ErrorCode::kOutOfBudget) << error.message; }

  std::string path_;
  std::shared_ptr<HostModel> model_;
};

// Budgets below it are refused with a number of MiB, which does.
TEST_P(ModelRecipeDraws, TheLeastBudgetThatIsNamedDoes) {
  int named = 0;
  for (const std::string& recipe : Recipes()) {
    for (const CompressMode compress : {CompressMode::kBlock, CompressMode::kAfter}) {
      EngineOptions options = Options(recipe, compress);
      options.budget_bytes = 1000;
      options.block_tokens = 1 + named % 3 * 40;
      const auto refused = Engine::Create(model_, options);
      ASSERT_FALSE(refused) << recipe;
      const std::string& message = refused.error().message;
      const size_t to = message.find(" MiB is the least");
      if (to == std::string::npos) continue;  // refused for another reason
      const size_t from = message.rfind(' ', to - 1) + 1;
      options.budget_bytes = static_cast<size_t>(std::atof(message.substr(from, to - from).c_str()) * (1 << 20)) + 1;
      const auto engine = Engine::Create(model_, options);
      ASSERT_TRUE(engine) << recipe << ": " << engine.error().message;
      const auto sequence = (*engine)->NewSequence();
      ASSERT_TRUE(sequence) << recipe << ": " << sequence.error().message;
      ++named;
    }
  }
  EXPECT_GT(named, 60);
}

// `run` and `serve` name it when the engine is made, `eval` when it is used.
TEST_P(ModelRecipeDraws, AnEnginesOwnRecipeCompressesAsOneThatIsNamedLater) {
  const std::vector<int32_t> tokens = Tokens(150);
  int compressed = 0;
  for (const std::string& text : Recipes()) {
    SCOPED_TRACE(text);
    const EngineOptions own = Options(text, CompressMode::kAfter);
    if (own.recipe.turns) continue;
    EngineOptions later = Options("full", CompressMode::kAfter);
    later.later_recipes = {own.recipe};
    std::vector<std::vector<float>> logits;
    std::vector<double> bytes;
    std::vector<std::string> formats, refusals;
    for (const EngineOptions& options : {own, later}) {
      auto engine = Engine::Create(model_, options);
      Result<double> kept = 0.0;
      if (engine) {
        const SequenceId id = *(*engine)->NewSequence();
        ASSERT_TRUE((*engine)->Prefill(id, tokens));
        kept = (*engine)->Compress(id, own.recipe, 0.6);
        if (kept) {
          bytes.push_back((*engine)->KeptBytes(id));
          formats.push_back((*engine)->stats(id).format.Name());
          ASSERT_TRUE((*engine)->Decode(id, 7));
          logits.emplace_back((*engine)->logits(id).begin(), (*engine)->logits(id).end());
        }
      }
      refusals.push_back(!engine ? engine.error().message : !kept ? kept.error().message : "");
    }
    EXPECT_EQ(refusals[0], refusals[1]);
    if (!refusals[0].empty() || !refusals[1].empty()) continue;
    EXPECT_EQ(bytes[0], bytes[1]);
    EXPECT_EQ(formats[0], formats[1]);
    EXPECT_EQ(logits[0], logits[1]);
    ++compressed;
  }
  EXPECT_GT(compressed, 30);
}

// A text of any length in a budget from the least on: it fits, or is refused by a sentence; a copy, and what comes back
// from memory, go on as it does.
TEST_P(ModelRecipeDraws, GoesOnAlikeWithinItsBudget) {
  std::mt19937 random(static_cast<unsigned>(std::hash<std::string>()(GetParam())));
  const std::vector<std::string> recipes = Recipes();
  const std::vector<int32_t> tokens = Tokens(290);
  int read = 0;
  for (int draw = 0; draw < 50; ++draw) {
    const bool after = random() % 3 == 0;
    EngineOptions options =
        Options(recipes[random() % recipes.size()], after ? CompressMode::kAfter : CompressMode::kBlock);
    options.max_sequences = 3;
    const int blocks[] = {0, 1, 3, 32, 33, 64};
    options.block_tokens = blocks[random() % std::size(blocks)];
    const auto roomy = Engine::Create(model_, options);
    if (!roomy) continue;  // not with this model, or not by blocks
    options.budget_bytes = (*roomy)->stats().budget_bytes / 100 * (10 + random() % 100);
    const int lengths[] = {1, 2, 31, 32, 33, 100, 200, 270};
    const int length = lengths[random() % std::size(lengths)];
    SCOPED_TRACE(fmt::format("{} after={} -b {} budget={} tokens={}", options.recipe.text, after, options.block_tokens,
                             options.budget_bytes, length));
    const auto engine = Engine::Create(model_, options);
    if (!engine) {
      EXPECT_FALSE(engine.error().message.empty());
      continue;
    }
    const auto made = (*engine)->NewSequence();
    ASSERT_TRUE(made) << made.error().message;
    Status status = (*engine)->Prefill(*made, std::span(tokens).first(static_cast<size_t>(length)));
    if (status && after) {
      const double shares[] = {0.05, 0.3, 0.6, 1};
      const Result<double> kept = (*engine)->Compress(*made, options.recipe, shares[random() % 4]);
      if (!kept) status = tl::unexpected<Error>(kept.error());
    }
    if (status && options.recipe.turns) status = (*engine)->EndTurn(*made);
    EXPECT_LE((*engine)->stats().peak_bytes, options.budget_bytes);
    if (!status) {
      EXPECT_NE(status.error().code, ErrorCode::kCorrupt) << status.error().message;
      continue;
    }
    ++read;
    const auto saved = (*engine)->SaveToMemory(*made, {});
    ASSERT_TRUE(saved) << saved.error().message;
    EngineOptions otherwise = options;
    otherwise.compress = after ? CompressMode::kBlock : CompressMode::kAfter;
    if (const auto other = (*engine)->RestoreFromMemory(*saved, otherwise); !other) {
      EXPECT_NE(other.error().code, ErrorCode::kCorrupt) << other.error().message;
    } else {
      (*engine)->Free(other->sequence);
    }
    std::vector<SequenceId> alike = {*made};
    const auto fork = (*engine)->Fork(*made);
    const auto back = (*engine)->RestoreFromMemory(*saved, options);
    fork ? alike.push_back(*fork) : ExpectFull(fork.error());
    back ? alike.push_back(back->sequence) : ExpectFull(back.error());
    for (int i = 0; i < 12 && length + i < 290; ++i) {
      std::vector<float> first;
      for (const SequenceId id : alike) {
        const Status decoded = (*engine)->Decode(id, tokens[static_cast<size_t>(length + i)]);
        if (!decoded) {
          ExpectFull(decoded.error());
          i = 100;
          break;
        }
        const std::span<const float> logits = (*engine)->logits(id);
        for (const float logit : logits) ASSERT_TRUE(std::isfinite(logit));
        if (id == *made) first.assign(logits.begin(), logits.end());
        // With turns the oldest go to make room, and a copy does not pay for what it shares.
        if (options.recipe.turns) continue;
        ASSERT_TRUE(std::ranges::equal(first, logits)) << "token " << i << " of sequence " << id;
      }
    }
    EXPECT_LE((*engine)->stats().peak_bytes, options.budget_bytes);
  }
  EXPECT_GT(read, 3);
}

// Files that recipes read are of layers that recipes act on.
TEST_P(ModelRecipeDraws, WhatIsFittedToLayersNeedsOne) {
  if (CountLayers(model_->info(), LayerKind::kGlobal) > 0) return;
  const std::vector<int32_t> tokens = Tokens(290);
  const auto expect_refused = [](const auto& result) {
    ASSERT_FALSE(result);
    EXPECT_NE(result.error().message.find("whole attention, and this model has none"), std::string::npos);
  };
  expect_refused(FitMaps(model_, tokens, LessFitOptions(), 1, {}));
  expect_refused(FitDelta(model_, tokens, DeltaFitOptions(), 1, {}));
  expect_refused(MeasureSensitivity(model_, tokens, {.block = 100, .first = 4, .previous = 20}, {}));
  expect_refused(Perturbation::Create(model_, JudgeOptions()));
  expect_refused(BudgetJudge::Create(model_, JudgeOptions(), {}));
}

INSTANTIATE_TEST_SUITE_P(Models, ModelRecipeDraws,
                         ::testing::Values("llama", "gemma3", "gemma3n", "bloom", "deepseek2", "lfm2", "jamba",
                                           "mamba2"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace pith::testing
