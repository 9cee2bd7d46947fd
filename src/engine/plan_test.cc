#include "engine/plan.h"

#include <array>

#include <gtest/gtest.h>

#include "engine/plan_test_util.h"

namespace pith {
namespace {

using testing::SmolInfo;

EngineOptions Options(size_t budget_bytes, int block_tokens = 0) {
  EngineOptions options;
  options.num_ctx = 8192;
  options.budget_bytes = budget_bytes;
  options.block_tokens = block_tokens;
  return options;
}

// Of a recipe that drops nothing, but with this style.
ResolvedSequence With(const ModelInfo& info, const EngineOptions& options, const EvictionStyle& style) {
  ResolvedSequence sequence = *Resolve(info, options);
  sequence.style = style;
  return sequence;
}

// Pages that a sequence needs right after an eviction, one decode slack later, with a block in flight.
size_t PagesAtWorst(const MemoryPlan& plan, const EvictionStyle& style, size_t heads, size_t layer_heads) {
  const size_t per_head =
      static_cast<size_t>((plan.keep_entries + plan.slack_entries + kPageEntries - 1) / kPageEntries);
  const size_t block = static_cast<size_t>((plan.block_tokens + kPageEntries - 1) / kPageEntries) + 1;
  return heads * (per_head + (style.ragged ? 1 : 0)) + (style.schedule->FinishesLayers() ? layer_heads : heads) * block;
}

TEST(PlanTest, WhatIsKeptFitsTheBudgetWithABlockInFlight) {
  const ModelInfo info = SmolInfo();
  for (const bool ragged : {false, true}) {
    for (const bool in_layer : {false, true}) {
      for (size_t mib = 4; mib <= 96; mib += 4) {
        const EngineOptions options = Options(mib << 20);
        const EvictionStyle style{.evicts = true,
                                  .schedule = in_layer ? EvictionSchedule::InLayer() : EvictionSchedule::AfterBlock(),
                                  .ragged = ragged};
        const auto plan = PlanMemory(info, With(info, options, style), options);
        if (!plan) {
          EXPECT_EQ(plan.error().code, ErrorCode::kOutOfBudget);
          continue;
        }
        EXPECT_LE(PagesAtWorst(*plan, style, 90, 3), plan->num_pages) << mib << " MiB";
        EXPECT_LE(plan->block_bytes + plan->num_pages * PageLayout::Make(KvFormat::kF16, 64, 64, 0).page_bytes,
                  options.budget_bytes);
        EXPECT_GT(plan->keep_entries, 0);
      }
    }
  }
}

TEST(PlanTest, RefusesABudgetBelowOneBlockAndNamesTheLeast) {
  const ModelInfo info = SmolInfo();
  const EngineOptions options = Options(64 << 10);
  const auto plan = PlanMemory(info, With(info, options, EvictionStyle{}), options);
  ASSERT_FALSE(plan);
  EXPECT_NE(plan.error().message.find("is the least that does"), std::string::npos);
}

TEST(PlanTest, MoreBudgetNeverKeepsLess) {
  const ModelInfo info = SmolInfo();
  int last = 0;
  for (size_t mib = 8; mib <= 64; mib += 8) {
    const EngineOptions options = Options(mib << 20, 64);
    const auto plan = PlanMemory(info, With(info, options, EvictionStyle{}), options);
    ASSERT_TRUE(plan);
    EXPECT_GE(plan->keep_entries, last);
    last = plan->keep_entries;
  }
}

TEST(PlanTest, LibllamasBlockCountsWhereItIsUsed) {
  ModelInfo info = SmolInfo();
  const size_t bypassed = BlockBytes(info, 256);
  for (LayerShape& layer : info.layers) layer.bypasses_block = false;
  EXPECT_EQ(BlockBytes(info, 256), 256 * FullTokenBytes(info));
  EXPECT_EQ(BlockBytes(info, 100), 256 * FullTokenBytes(info)) << "libllama pads to 256 cells";
  EXPECT_EQ(bypassed, 256 * FullTokenBytes(info) / 30) << "one layer's rows";
}

TEST(PlanTest, PartsOfABudgetAddUp) {
  ModelInfo info = SmolInfo();
  for (size_t layer = 0; layer < info.layers.size(); layer += 2) info.layers[layer].kind = LayerKind::kWindow;
  info.window = 100;
  info.recurrent_bytes = 5000;
  for (const size_t budget : {size_t{9} << 20, size_t{40} << 20}) {
    const auto split = SplitBudget(info, Options(budget));
    ASSERT_TRUE(split) << split.error().message;
    EXPECT_EQ(split->block_bytes + split->in_flight_bytes + split->recurrent_bytes + split->table_bytes +
                  split->window_bytes + split->global_bytes + split->unused_bytes,
              budget);
    const size_t page_bytes = PageLayout::Make(KvFormat::kF16, 64, 64, 0).page_bytes;
    EXPECT_LT(split->unused_bytes, 45 * (page_bytes + 100)) << "less than a page for each of the 45 global heads";
    EXPECT_EQ(split->window_bytes, 45 * 6 * page_bytes);  // 100 entries, one page that waits, one that enters
    EXPECT_EQ(split->recurrent_bytes, 2 * info.recurrent_bytes);
    EXPECT_GT(split->keep_entries, 0);
  }
  EXPECT_FALSE(SplitBudget(info, Options(1000)));
}

TEST(PlanTest, AModelThatIsRecurrentThroughoutTakesItsStateAlone) {
  ModelInfo info = SmolInfo();
  for (LayerShape& layer : info.layers) layer = {};
  info.hybrid = true;
  info.recurrent_bytes = 5000;
  const auto split = SplitBudget(info, Options(1 << 20));
  ASSERT_TRUE(split) << split.error().message;
  EXPECT_EQ(split->recurrent_bytes, 2 * info.recurrent_bytes);
  EXPECT_EQ(split->in_flight_bytes + split->window_bytes + split->global_bytes, 0u);
  EXPECT_LT(split->table_bytes, 4096u);
  EXPECT_FALSE(SplitBudget(info, Options(2 * info.recurrent_bytes - 1)));
  const auto unlimited = PlanMemory(info, *Resolve(info, Options(0)), Options(0));
  ASSERT_TRUE(unlimited) << unlimited.error().message;
  EXPECT_GT(unlimited->keep_entries, 0);
}

// The layers of a cascade do not hold their blocks all at once.
TEST(PlanTest, ACascadeLeavesMoreToWhatIsKept) {
  const ModelInfo info = SmolInfo();
  EngineOptions options = Options(size_t{20} << 20, 256);
  int keep[3] = {};
  for (int i = 0; i < 3; ++i) {
    options.recipe = *ParseRecipe(std::array{"snapkv", "cake", "pyramidkv"}[static_cast<size_t>(i)]);
    const ResolvedSequence sequence = *Resolve(info, options);
    const EvictionStyle& style = sequence.style;
    EXPECT_EQ(style.schedule->LayersInCascade(), i == 1 ? 3 : 0);
    EXPECT_EQ(style.schedule->FinishesLayers(), i < 2);
    EXPECT_EQ(style.schedule->EvictsLayers(), i == 0);
    EXPECT_EQ(style.schedule->EvictsAfterBlock(), i > 0);
    const MemoryPlan plan = *PlanMemory(info, sequence, options);
    EXPECT_LE(PagesAtWorst(plan, style, 90, 3 * static_cast<size_t>(std::max(style.schedule->LayersInCascade(), 1))),
              plan.num_pages);
    keep[i] = plan.keep_entries;
  }
  EXPECT_GE(keep[0], keep[1]);
  EXPECT_GT(3 * keep[1], 4 * keep[2]) << "whose blocks are all in flight";
  options.recipe = *ParseRecipe("cake format=q4");
  EXPECT_EQ(Resolve(info, options)->style.schedule->LayersInCascade(), 0);
  options.recipe = *ParseRecipe("cake");
  options.compress = CompressMode::kAfter;
  EXPECT_EQ(Resolve(info, options)->style.schedule->LayersInCascade(), 0);
}

TEST(PlanTest, MomentsOfQueriesAreCharged) {
  const ModelInfo info = SmolInfo();
  EngineOptions plain = Options(size_t{20} << 20), reading = plain, later = plain;
  plain.recipe = *ParseRecipe("keydiff");
  reading.recipe = *ParseRecipe("expectedattention");
  later.recipe = plain.recipe;
  later.later_recipes = {reading.recipe};
  const auto plan = [&](const EngineOptions& options) { return *PlanMemory(info, *Resolve(info, options), options); };
  // Means, sums and four rows that wait.
  const size_t bytes = size_t{30} * 9 * (64 + 64 * 65 / 2 + 4 * 64) * sizeof(float);
  EXPECT_EQ(plan(plain).moment_bytes, 0U);
  EXPECT_EQ(plan(reading).moment_bytes, bytes);
  EXPECT_EQ(plan(later).moment_bytes, bytes);
  EXPECT_LT(plan(reading).keep_entries, plan(plain).keep_entries) << "what they take is not there for entries";
  reading.max_sequences = 3;
  EXPECT_EQ(plan(reading).moment_bytes, 3 * bytes);
  const double more = static_cast<double>(SplitBudget(info, later)->table_bytes) -
                      static_cast<double>(SplitBudget(info, plain)->table_bytes);
  EXPECT_NEAR(more / static_cast<double>(bytes), 2, 0.04)
      << "moments and their copy, but for the tables of fewer pages";
}

// 8 MiB of these copies were nobody's.
TEST(PlanTest, CopiesOfStatisticsAreCharged) {
  const ModelInfo info = SmolInfo();
  EngineOptions options = Options(0);
  const auto share = [&](const char* recipe, size_t bytes) {
    options.recipe = *ParseRecipe(recipe);
    return PlanShare(info, *Resolve(info, options), bytes);
  };
  for (size_t mib = 8; mib <= 128; mib *= 2) {
    const size_t bytes = mib << 20;
    EXPECT_EQ(share("keydiff", bytes).undo_bytes, 0U);
    for (const char* recipe : {"h2o", "roco", "lazyeviction", "expectedattention"}) {
      const SharePlan plan = share(recipe, bytes);
      const auto entries = static_cast<size_t>(plan.keep_entries + plan.slack_entries);
      const bool every = (options.recipe.policy->needs() & kNeedEveryQuery) != 0;
      const size_t columns = every ? options.recipe.policy->columns().size() : 0;
      const size_t moments = every ? 0 : QueryMoments::Bytes(MomentsOf(info));
      EXPECT_GE(plan.undo_bytes, entries * columns * 90 * sizeof(float) + moments) << recipe;
      EXPECT_GE(plan.scratch_bytes, plan.undo_bytes) << recipe;
      EXPECT_GT(plan.undo_bytes, 0U) << recipe;
      const size_t pages = 90 * (entries / kPageEntries) * PageLayout::Make(KvFormat::kF16, 64, 64, 0).page_bytes;
      EXPECT_LE(pages + plan.fixed_bytes + plan.scratch_bytes, bytes) << recipe;
    }
  }
}

// q4 pages are a third of f16 ones, and pith info said the same for both.
TEST(PlanTest, ASplitIsThatOfItsFormat) {
  const ModelInfo info = SmolInfo();
  EngineOptions f16 = Options(size_t{40} << 20), q4 = f16, own = f16, columns = f16;
  q4.format = KvFormat::kQ4;
  f16.recipe = *ParseRecipe("keydiff");
  q4.recipe = f16.recipe;
  own.recipe = *ParseRecipe("keydiff format=q4");
  columns.recipe = *ParseRecipe("h2o");
  int keep[4] = {};
  for (int i = 0; i < 4; ++i) {
    const EngineOptions& options = *std::array{&f16, &q4, &own, &columns}[static_cast<size_t>(i)];
    const auto split = SplitBudget(info, options);
    ASSERT_TRUE(split) << split.error().message;
    EXPECT_EQ(split->block_bytes + split->in_flight_bytes + split->recurrent_bytes + split->table_bytes +
                  split->window_bytes + split->global_bytes + split->unused_bytes,
              options.budget_bytes);
    keep[i] = split->keep_entries;
  }
  EXPECT_GT(keep[1], 2 * keep[0]);
  EXPECT_EQ(keep[1], keep[2]);
  EXPECT_LT(keep[3], keep[0]) << "a column takes room";
  own.format = KvFormat::kQ8;
  EXPECT_FALSE(SplitBudget(info, own)) << "two formats";
}

// format=auto: no bits are given up for entries that fit anyway.
TEST(PlanTest, AutoTakesTheMostPreciseFormatThatHoldsEnough) {
  const ModelInfo info = SmolInfo();
  const auto format_in = [&](double share, const char* recipe) {
    EngineOptions options = Options(0);
    options.num_ctx = 8192;
    options.budget_bytes = static_cast<size_t>(share * 8192 * static_cast<double>(FullTokenBytes(info)));
    options.recipe = *ParseRecipe(recipe);
    const auto split = SplitBudget(info, options);
    return split ? split->format.Name() : split.error().message;
  };
  EXPECT_EQ(format_in(1.5, "keydiff format=auto"), "f16");
  EXPECT_EQ(format_in(0.9, "keydiff format=auto"), "q8");
  EXPECT_EQ(format_in(0.45, "keydiff format=auto"), "q4");
  EXPECT_EQ(format_in(0.2, "keydiff format=auto"), "q4/q2");
  EXPECT_EQ(format_in(0.2, "keydiff format=auto:0.5"), "q4");
  EXPECT_EQ(format_in(0.2, "pith"), "q4") << "its alternative for blocks";
  EXPECT_EQ(format_in(0.02, "pith"), "q4") << "entries stand in for what goes";
  EXPECT_EQ(format_in(0.02, "kvzip:read=blocks format=auto:0.6"), "q4/q2") << "control";
  EXPECT_EQ(format_in(0.2, "keydiff"), "f16");
  EngineOptions chosen = Options(size_t{40} << 20);
  chosen.recipe = *ParseRecipe("pith");
  chosen.format = KvFormat::kQ8;
  EXPECT_EQ(SplitBudget(info, chosen)->format.Name(), "q8") << "what the user says goes";
}

}  // namespace
}  // namespace pith
