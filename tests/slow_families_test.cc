// Every registered recipe on a random model of each kind of attention, under a small budget: the peak stays within it,
// logits are finite, and what can be dropped is.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "policy/act/demote.h"
#include "policy/policy.h"
#include "policy/registry.h"
#include "tests/support/model_parity.h"
#include "tests/support/random_model.h"

namespace pith::testing {
namespace {

constexpr int kThreads = 1;  // small models: a second one would mostly wait
constexpr int kTokens = 220;
constexpr int kDecoded = 40;
constexpr int kBlock = 33;
constexpr uint32_t kSeed = 13;

class SlowFamilies : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string architecture = GetParam();
    path_ = ::testing::TempDir() + fmt::format("pith_family_{}_{}.gguf", architecture, getpid());
    const Status made = MakeRandomModel(architecture, NeedsExperts(architecture), path_, kSeed);
    ASSERT_TRUE(made) << made.error().message;
    auto loaded = HostModel::Load(path_, HostModelOptions{});
    ASSERT_TRUE(loaded) << loaded.error().message;
    model_ = *loaded;
    for (const LayerShape& layer : model_->info().layers) {
      if (layer.kind != LayerKind::kGlobal) continue;
      has_global_ = true;
      turns_back_ = turns_back_ && layer.rotation.has_value();
    }
  }
  void TearDown() override { std::filesystem::remove(path_); }

  // The engine of the smallest budget, in steps of an eighth, that keeps at least two pages of entries per head.
  std::unique_ptr<Engine> SmallestEngine(const Recipe& recipe) {
    EngineOptions options;
    options.num_ctx = kTokens + kDecoded + 8;
    options.block_tokens = kBlock;
    options.num_threads = kThreads;
    options.recipe = recipe;
    for (options.budget_bytes = 20000; options.budget_bytes < (size_t{1} << 28);
         options.budget_bytes += options.budget_bytes / 8) {
      auto engine = Engine::Create(model_, options);
      if (engine && (*engine)->stats().keep_entries >= 2 * kPageEntries) return std::move(*engine);
      if (engine) continue;
      EXPECT_EQ(engine.error().code, ErrorCode::kOutOfBudget) << engine.error().message;
    }
    ADD_FAILURE() << "no budget is enough";
    return nullptr;
  }

  static void ExpectFinite(std::span<const float> logits) {
    for (const float logit : logits) {
      if (!std::isfinite(logit)) {
        ADD_FAILURE() << "a logit is " << logit;
        return;
      }
    }
  }

  // Uneven blocks, then token by token. False: the budget is full, as it may be for a recipe that drops nothing.
  static bool Read(Engine& engine) {
    const SequenceId sequence = *engine.NewSequence();
    std::vector<int32_t> tokens;
    for (int i = 0; i < kTokens + kDecoded; ++i) tokens.push_back((i * 29 + i / 11 * 3) % 100);
    std::span<const int32_t> left(tokens);
    for (const ReadingStep& step : UnevenBlocks(kTokens, kBlock)) {
      std::vector<float> logits;
      const Status status = engine.Prefill(sequence, left.first(static_cast<size_t>(step.count)), false, &logits);
      EXPECT_LE(engine.stats().peak_bytes, engine.stats().budget_bytes);
      if (!status) {
        EXPECT_EQ(status.error().code, ErrorCode::kOutOfBudget) << status.error().message;
        return false;
      }
      ExpectFinite(logits);
      left = left.subspan(static_cast<size_t>(step.count));
    }
    for (const int32_t token : left) {
      const Status status = engine.Decode(sequence, token);
      EXPECT_LE(engine.stats().peak_bytes, engine.stats().budget_bytes);
      if (!status) {
        EXPECT_EQ(status.error().code, ErrorCode::kOutOfBudget) << status.error().message;
        return false;
      }
      ExpectFinite(engine.logits(sequence));
    }
    return true;
  }

  std::string path_;
  std::shared_ptr<HostModel> model_;
  bool has_global_ = false;
  bool turns_back_ = true;  // what positions do to queries can be undone
};

TEST_P(SlowFamilies, EveryRecipeHoldsASmallBudget) {
  EXPECT_TRUE(has_global_) << "recipes have nothing to act on";
  int evicted = 0;
  for (const NamedRecipe& named : NamedRecipes()) {
    SCOPED_TRACE(named.name);
    const auto recipe = ParseRecipe(named.name);
    ASSERT_TRUE(recipe) << recipe.error().message;
    if (NeedsWholePrompt(*recipe)) continue;  // below
    const DemoteOptions* const demote = recipe->policy->demote();
    const bool turns_back =
        (recipe->policy->needs() & kNeedQueryMoments) != 0 || (demote != nullptr && demote->makes_latents());
    if (turns_back && !turns_back_) continue;  // refused: model_rotation_test.cc
    const auto engine = SmallestEngine(*recipe);
    ASSERT_NE(engine, nullptr);
    const bool keeps = recipe->policy->keeps_everything();
    const bool read = Read(*engine);
    const KvStats stats = engine->stats();
    EXPECT_LE(stats.peak_bytes, stats.budget_bytes);
    EXPECT_GT(stats.entries, 0);
    EXPECT_TRUE(read || keeps);
    // In few bits the smallest budget may hold the whole text.
    EXPECT_TRUE(keeps || recipe->format || recipe->auto_format || recipe->while_partial || recipe->policy->demote() ||
                stats.kept_fraction < 1);
    evicted += stats.kept_fraction < 1;
  }
  EXPECT_GT(evicted, 10) << "the budget was never short";
}

// Recipes that read a whole prompt again: recurrent state, windows and latents are afterwards as they were.
TEST_P(SlowFamilies, ASecondReadingServesThem) {
  EngineOptions options;
  options.num_ctx = 1024;  // with the instruction
  options.num_threads = kThreads;
  options.compress = CompressMode::kAfter;
  options.max_sequences = 2;
  for (const NamedRecipe& named : NamedRecipes()) {
    const auto recipe = ParseRecipe(named.name);
    if (recipe && recipe->policy->repeat() != nullptr) options.later_recipes.push_back(*recipe);
  }
  ASSERT_GE(options.later_recipes.size(), 4U);
  auto engine = Engine::Create(model_, options);
  ASSERT_TRUE(engine) << engine.error().message;
  std::vector<int32_t> tokens;
  for (int i = 0; i < kTokens; ++i) tokens.push_back((i * 29 + i / 11 * 3) % 100);
  const SequenceId base = *(*engine)->NewSequence();
  ASSERT_TRUE((*engine)->Prefill(base, tokens));
  std::vector<float> before;
  {
    const SequenceId fork = *(*engine)->Fork(base);
    ASSERT_TRUE((*engine)->Decode(fork, 7));
    before.assign((*engine)->logits(fork).begin(), (*engine)->logits(fork).end());
    (*engine)->Free(fork);
  }
  for (const Recipe& recipe : options.later_recipes) {
    SCOPED_TRACE(recipe.text);
    const SequenceId fork = *(*engine)->Fork(base);
    const CompressTarget target{fork, 0.2};
    const auto kept = (*engine)->CompressForks(base, recipe, {&target, 1});
    ASSERT_TRUE(kept) << kept.error().message;
    EXPECT_GT(kept->front(), 0.01);  // few heads: none may be whole
    EXPECT_TRUE(kept->front() < 1 || recipe.auto_format);
    ASSERT_TRUE((*engine)->Decode(fork, 7));
    ExpectFinite((*engine)->logits(fork));
    const std::span<const float> after = (*engine)->logits(fork);
    EXPECT_FALSE(std::equal(before.begin(), before.end(), after.begin())) << "control: what was dropped shows";
    (*engine)->Free(fork);
  }
  ASSERT_TRUE((*engine)->Decode(base, 7));
  const std::span<const float> after = (*engine)->logits(base);
  EXPECT_TRUE(std::equal(before.begin(), before.end(), after.begin())) << "the source is as it was";
  EXPECT_LE((*engine)->stats().peak_bytes, (*engine)->stats().budget_bytes);
}

INSTANTIATE_TEST_SUITE_P(Traits, SlowFamilies,
                         ::testing::Values("llama",          // global layers, grouped heads
                                           "deepseek2",      // latent attention (MLA), experts
                                           "gemma3",         // windows beside global layers
                                           "gemma2",         // soft-caps
                                           "llama4",         // chunks, experts
                                           "gemma4",         // layers that share a cache
                                           "bloom",          // ALiBi
                                           "gpt-oss",        // sinks, windows, experts
                                           "qwen3moe",       // experts
                                           "qwen35",         // linear attention beside attention
                                           "falcon-h1",      // Mamba-2 beside attention in every layer
                                           "granitehybrid",  // Mamba-2 layers
                                           "jamba"),         // Mamba layers, experts
                         [](const auto& test) {
                           std::string name = test.param;
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace pith::testing
