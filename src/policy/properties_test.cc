// What must hold for every recipe and for every legal combination of stages, on random ragged layers.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <numeric>
#include <random>

#include "base/turn_test_util.h"
#include "kernels/attention_reference.h"
#include "policy/act/less.h"
#include "policy/policy.h"
#include "policy/policy_test_util.h"
#include "policy/registry.h"
#include "policy/select.h"

namespace pith {
namespace {

// A file for the allocators that read one number per layer; test layers are three.
const std::string& LayerFile() {
  static const std::string path = [] {
    std::string name = ::testing::TempDir() + fmt::format("pith_layers_{}.json", static_cast<int>(getpid()));
    std::ofstream(name) << R"({"layers": [3, 1, 2], "similarity": [0.9, 0.5, 0.99]})";
    return name;
  }();
  return path;
}

// "uniform", "file:/tmp/...": every allocator, with what it cannot do without.
std::vector<std::string> Allocators() {
  std::vector<std::string> all;
  for (std::string_view name : StageNames(StageKind::kAllocate)) {
    const StageEntry& entry = *FindStage(StageKind::kAllocate, name);
    const bool reads = !entry.params.empty() && entry.params.front().kind == ParamSpec::Kind::kText;
    all.push_back(reads ? fmt::format("{}:{}", name, LayerFile()) : std::string(name));
  }
  return all;
}

// Maps for the action that reads some; which, nothing here depends on.
const std::string& MapsFile() {
  static const std::string path = [] {
    const LessLayer layer{.num_heads = 1,
                          .num_kv_heads = 1,
                          .dim = 1,
                          .hidden = 1,
                          .query_w1 = {1},
                          .query_w2 = {1},
                          .key_w1 = {1},
                          .key_w2 = {1},
                          .key_w3 = {1},
                          .key_s1 = {1},
                          .key_s2 = {1}};
    std::string name = ::testing::TempDir() + fmt::format("pith_maps_{}.gguf", static_cast<int>(getpid()));
    std::ofstream(name, std::ios::binary) << (*LessMaps::Make(1, {layer}))->Bytes();
    return name;
  }();
  return path;
}

// "drop", "less:/tmp/...": every action, with what it cannot do without.
std::vector<std::string> Actions() {
  std::vector<std::string> all;
  for (std::string_view name : StageNames(StageKind::kAct)) {
    all.push_back(name == "less" ? fmt::format("{}:{}", name, MapsFile()) : std::string(name));
  }
  return all;
}

// Every scorer x aggregator x modifier x allocator x action that parses, and every named recipe.
// refused: the sentences of the others.
std::vector<std::string> AllRecipes(std::vector<std::string>* refused = nullptr) {
  std::vector<std::string> all;
  for (const NamedRecipe& recipe : NamedRecipes()) all.emplace_back(recipe.name);
  std::vector<std::string> aggregates = {""}, modifiers = {""};
  const std::vector<std::string> actions = Actions();
  for (std::string_view name : StageNames(StageKind::kAggregate)) aggregates.push_back(fmt::format(" agg={}", name));
  for (std::string_view name : StageNames(StageKind::kModify)) modifiers.push_back(fmt::format(" mod={}", name));
  for (std::string_view scorer : StageNames(StageKind::kScore)) {
    for (const std::string& aggregate : aggregates) {
      for (const std::string& modifier : modifiers) {
        for (const std::string& allocator : Allocators()) {
          for (const std::string& action : actions) {
            const std::string text =
                fmt::format("score={}{}{} alloc={} act={}", scorer, aggregate, modifier, allocator, action);
            const Result<Recipe> recipe = ParseRecipe(text);
            if (recipe) {
              all.push_back(text);
            } else if (refused != nullptr) {
              refused->push_back(recipe.error().message);
            }
          }
        }
      }
    }
  }
  return all;
}

// A small window, so that there is something beside it.
std::string WithSmallWindow(std::string text) {
  const Result<Recipe> smaller = ParseRecipe(text + ":window=4");
  return smaller ? text + ":window=4" : text;
}

struct Outcome {
  std::vector<KeptHeads> kept;
  std::vector<LayerScores> ranked;
};

Outcome Choose(const Policy& policy, const std::vector<std::unique_ptr<TestLayer>>& layers, const Budget& budget) {
  Outcome out;
  std::vector<LayerScores> scores(layers.size());
  for (size_t l = 0; l < layers.size(); ++l) {
    const LayerInputs inputs = layers[l]->inputs();
    policy.Score(inputs, scores[l]);
    if (!policy.layer_local()) continue;
    out.kept.push_back(policy.Select(inputs, scores[l], budget).value());
    out.ranked.push_back(policy.Rank(&inputs, {&scores[l], 1}, budget).front());
  }
  if (policy.layer_local()) return out;
  return {policy.SelectAll(scores, budget).value(), policy.Rank(nullptr, scores, budget)};
}

std::vector<std::unique_ptr<TestLayer>> MakeLayers(LayerShapeForTest shape, const Policy& policy, int count,
                                                   uint32_t seed) {
  std::vector<std::unique_ptr<TestLayer>> layers;
  shape.num_layers = count;
  for (int l = 0; l < count; ++l) {
    shape.layer = l;
    layers.push_back(std::make_unique<TestLayer>(shape, policy, seed + static_cast<uint32_t>(l)));
  }
  return layers;
}

int PinnedIn(const HeadInputs& head) {
  return static_cast<int>(std::count(head.pinned.begin(), head.pinned.end(), uint8_t{1}));
}

void CheckOutcome(const Outcome& out, const std::vector<std::unique_ptr<TestLayer>>& layers, const Policy& policy,
                  const Budget& budget, bool may_keep_fewer) {
  int64_t all_kept = 0, all_allowed = 0, all_owed = 0;
  ASSERT_EQ(out.kept.size(), layers.size());
  for (size_t l = 0; l < layers.size(); ++l) {
    int64_t kept = 0, allowed = 0, owed = 0, pinned = 0;
    for (size_t h = 0; h < out.kept[l].size(); ++h) {
      const HeadInputs& head = layers[l]->head(h);
      const std::vector<int32_t>& indices = out.kept[l][h];
      for (size_t i = 0; i < indices.size(); ++i) {
        ASSERT_GE(indices[i], 0);
        ASSERT_LT(indices[i], head.num_entries);
        ASSERT_TRUE(i == 0 || indices[i] > indices[i - 1]) << "not ascending";
      }
      for (int i = 0; i < head.num_entries && !head.pinned.empty(); ++i) {
        if (head.pinned[static_cast<size_t>(i)] == 0) continue;
        ASSERT_TRUE(std::binary_search(indices.begin(), indices.end(), i)) << "a pinned entry was dropped";
      }
      for (float score : out.ranked[l].heads[h]) ASSERT_TRUE(std::isfinite(score) || score == kProtected);
      kept += static_cast<int64_t>(indices.size());
      pinned += PinnedIn(head);
      allowed += budget.keep;
      owed += std::min(budget.keep, head.num_entries);
    }
    if (policy.layer_local() && !policy.keeps_everything()) {
      EXPECT_LE(kept, std::max(allowed, pinned));
    }
    all_kept += kept;
    all_allowed += std::max(allowed, pinned);
    all_owed += owed;
  }
  if (policy.keeps_everything()) return;
  EXPECT_LE(all_kept, all_allowed);
  if (!may_keep_fewer) {
    EXPECT_GE(all_kept, std::min(all_owed, all_allowed));
  }
}

void CheckRecipe(const std::string& text, const LayerShapeForTest& shape, int keep, uint32_t seed) {
  SCOPED_TRACE(fmt::format("{} keep={} seed={}", text, keep, seed));
  const Result<Recipe> recipe = ParseRecipe(text);
  ASSERT_TRUE(recipe.has_value()) << recipe.error().message;
  const Policy& policy = *recipe->policy;
  const auto layers = MakeLayers(shape, policy, 3, seed);
  Budget budget;
  budget.keep = keep;
  // A pyramid's, CAKE's and DBudgetKV's own shape may leave room; rounding too. Shares from a file are those of whole
  // layers: what a head shorter than its share leaves free is not handed to other layers.
  const bool fewer = text.find("pyramid") != std::string::npos || text.find("cake") != std::string::npos ||
                     text.find("dbudget") != std::string::npos || text.find("alloc=heads") != std::string::npos ||
                     text.find("kvzip_head") != std::string::npos || text.find("alloc=file") != std::string::npos;
  const Outcome out = Choose(policy, layers, budget);
  CheckOutcome(out, layers, policy, budget, fewer);
  EXPECT_EQ(out.kept, Choose(policy, layers, budget).kept) << "not deterministic";
}

void CheckIdentity(const std::string& text, const LayerShapeForTest& shape, uint32_t seed) {
  if (text.find("dbudget") != std::string::npos) return;  // keeps what it needs, not what it may
  SCOPED_TRACE(text);
  const Result<Recipe> recipe = ParseRecipe(text);
  const auto layers = MakeLayers(shape, *recipe->policy, 3, seed);
  Budget budget;
  budget.keep = *std::max_element(shape.entries.begin(), shape.entries.end());
  for (const KeptHeads& layer : Choose(*recipe->policy, layers, budget).kept) {
    for (size_t h = 0; h < layer.size(); ++h) {
      EXPECT_EQ(layer[h].size(), static_cast<size_t>(shape.entries[h])) << "budget for all, but not all stay";
    }
  }
}

TEST(PolicyProperties, EveryCombinationHoldsOnRaggedLayers) {
  std::vector<std::string> refused;
  const std::vector<std::string> all = AllRecipes(&refused);
  EXPECT_GT(all.size(), 500U);
  EXPECT_GT(refused.size(), 100U);
  for (const std::string& sentence : refused) {
    EXPECT_EQ(sentence.find('\n'), std::string::npos) << sentence;
    EXPECT_TRUE(sentence.find("score=") != std::string::npos || sentence.find("mod=") != std::string::npos) << sentence;
    EXPECT_LT(sentence.size(), 200U) << sentence;
  }
  uint32_t seed = 0;
  for (const std::string& text : all) {
    if (!IsMyTurn(++seed)) continue;
    LayerShapeForTest shape;
    shape.entries = {37, 20 + static_cast<int>(seed % 13), 9};
    shape.gaps = seed % 2 == 0;
    shape.pinned = seed % 3 == 0 ? 3 : 0;
    CheckRecipe(WithSmallWindow(text), shape, 12, seed);
    CheckIdentity(WithSmallWindow(text), shape, seed);
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(PolicyProperties, EveryNamedRecipeHoldsAtTheEdges) {
  for (const NamedRecipe& named : NamedRecipes()) {
    for (const std::string& text : {std::string(named.name), WithSmallWindow(std::string(named.name))}) {
      for (int keep : {0, 1, 2, 5, 31, 40}) {
        LayerShapeForTest shape;
        CheckRecipe(text, shape, keep, 11);
        shape.pinned = 8;
        CheckRecipe(text, shape, keep, 12);
        shape.same_keys = true;
        CheckRecipe(text, shape, keep, 13);
        shape.zero_values = true;
        CheckRecipe(text, shape, keep, 14);
        shape = {};
        shape.entries = {1, 0, 2};
        CheckRecipe(text, shape, keep, 15);
        shape.window = 0;
        CheckRecipe(text, shape, keep, 16);
        shape.window = 1;
        shape.entries = {30, 30, 30};
        CheckRecipe(text, shape, keep, 17);
      }
    }
  }
}

TEST(PolicyProperties, ScoresAreFiniteUnlessProtected) {
  for (const NamedRecipe& named : NamedRecipes()) {
    SCOPED_TRACE(named.name);
    const Result<Recipe> recipe = ParseRecipe(named.name);
    for (bool degenerate : {false, true}) {
      LayerShapeForTest shape;
      shape.same_keys = shape.zero_values = degenerate;
      shape.entries = {50, 1, 33};
      const TestLayer layer(shape, *recipe->policy, 3);
      LayerScores scores;
      recipe->policy->Score(layer.inputs(), scores);
      for (const auto& head : scores.heads) {
        for (float score : head) {
          EXPECT_FALSE(std::isnan(score));
          EXPECT_TRUE(std::isfinite(score) || score > 0);
        }
      }
    }
  }
}

TEST(PolicyProperties, PermutedEntriesHavePermutedScores) {
  // Recipes that look at neither places nor neighbours.
  for (const char* text : {"knorm", "keydiff", "tova:recent=0", "snapkv:pool=1,window=1", "caote", "h2o", "roco"}) {
    SCOPED_TRACE(text);
    const Result<Recipe> recipe = ParseRecipe(text);
    ASSERT_TRUE(recipe.has_value());
    LayerShapeForTest shape;
    shape.entries = {24};
    shape.window = 1;
    const TestLayer layer(shape, *recipe->policy, 5);
    LayerInputs inputs = layer.inputs();
    LayerScores before;
    recipe->policy->Score(inputs, before);

    std::vector<size_t> order(23);  // the newest, where a window would be, stays in place
    std::iota(order.begin(), order.end(), size_t{0});
    std::shuffle(order.begin(), order.end(), std::mt19937(9));
    order.push_back(23);
    const HeadInputs& from = layer.head(0);
    const auto dim = static_cast<size_t>(shape.dim);
    std::vector<float> keys, values, probs, column_data;
    std::vector<int32_t> positions;
    for (size_t i : order) {
      positions.push_back(from.positions[i]);
      keys.insert(keys.end(), from.keys + i * dim, from.keys + (i + 1) * dim);
      values.insert(values.end(), from.values + i * dim, from.values + (i + 1) * dim);
    }
    for (size_t g = 0; g < 2; ++g) {
      for (size_t i : order) probs.push_back(from.window_probs[g * 24 + i]);
    }
    std::vector<float*> columns;
    column_data.reserve(from.columns.size() * 24);
    for (float* column : from.columns) {
      for (size_t i : order) column_data.push_back(column[i]);
    }
    for (size_t c = 0; c < from.columns.size(); ++c) columns.push_back(column_data.data() + c * 24);
    HeadInputs to = from;
    to.positions = positions;
    to.keys = keys.data();
    to.values = values.data();
    to.window_probs = probs.data();
    to.columns = columns;
    inputs.heads = {&to, 1};
    LayerScores after;
    recipe->policy->Score(inputs, after);
    for (size_t i = 0; i < order.size(); ++i) {
      const float expected = before.heads[0][order[i]];
      if (!std::isfinite(expected)) continue;
      EXPECT_NEAR(after.heads[0][i], expected, 1e-5F + 1e-4F * std::abs(expected));
    }
  }
}

// An observation as the attention kernel makes it, and one that leaves the statistics to the policy.
TEST(PolicyProperties, StatisticsOfQueriesEqualTheirRows) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(0, 0.1F);
  int num_observers = 0;
  for (const NamedRecipe& named : NamedRecipes()) {
    const Recipe recipe = *ParseRecipe(named.name);
    const Policy& policy = *recipe.policy;
    if ((policy.needs() & (kNeedEveryQuery | kNeedRepeat)) == 0 || (policy.needs() & kNeedRows) != 0) continue;
    ++num_observers;
    for (const int queries : {1, 7}) {
      constexpr int kGroup = 3, kEntries = 40;
      std::vector<int32_t> positions(kEntries), query_positions(static_cast<size_t>(queries));
      std::iota(positions.begin(), positions.end(), 100);
      std::iota(query_positions.begin(), query_positions.end(), 140 - queries);
      std::vector<float> rows;
      for (int g = 0; g < kGroup; ++g) {
        for (const int32_t query : query_positions) {
          for (const int32_t position : positions) rows.push_back(position > query ? 0 : uniform(random));
        }
      }
      std::vector<float> stats(3 * kEntries);
      const kernels::EntryAttention to = {stats.data(), stats.data() + kEntries, stats.data() + 2 * kEntries};
      kernels::ReferenceEntryAttention(rows.data(), kGroup, queries, kEntries, to);
      const Observation by_rows{0, 0, kGroup, queries, kEntries, rows.data(), query_positions, positions};
      const Observation by_sums{0, 0, kGroup, queries, kEntries, nullptr, query_positions, positions, to.sum,
                                (policy.needs() & kNeedSquares) != 0 ? to.squares : nullptr,
                                (policy.needs() & (kNeedLargest | kNeedRepeat)) != 0 ? to.largest : nullptr};
      std::vector<std::vector<float>> columns[2];
      for (int i = 0; i < 2; ++i) {
        std::vector<float*> pointers;
        for (const ColumnSpec& spec : policy.columns()) columns[i].emplace_back(kEntries, spec.initial);
        for (auto& column : columns[i]) pointers.push_back(column.data());
        policy.Observe(i == 0 ? by_rows : by_sums, pointers);
      }
      for (size_t c = 0; c < columns[0].size(); ++c) {
        for (size_t j = 0; j < kEntries; ++j)
          ASSERT_NEAR(columns[0][c][j], columns[1][c][j], 1e-5) << named.name << c << ' ' << j;
      }
    }
  }
  EXPECT_GE(num_observers, 5);
}

// What goes to whole pages of fewer bits fills them, in as many heads and layers as there are.
TEST(PolicyProperties, WhatDoesNotStayFillsPages) {
  for (const char* text :
       {"knorm act=demote", "snapkv:window=4 alloc=ada act=demote", "knorm alloc=global act=demote", "deltakv"}) {
    for (uint32_t seed = 0; seed < 20; ++seed) {
      SCOPED_TRACE(fmt::format("{} {}", text, seed));
      const Result<Recipe> recipe = ParseRecipe(text);
      LayerShapeForTest shape;
      shape.entries = {200, 137, 90 + static_cast<int>(seed)};
      shape.pinned = seed % 2 == 0 ? 3 : 0;
      const auto layers = MakeLayers(shape, *recipe->policy, 3, seed);
      Budget budget;
      budget.keep = 20 + 3 * static_cast<int>(seed);
      budget.rest_page_entries = 32;
      int64_t total = 0;
      for (const KeptHeads& layer : Choose(*recipe->policy, layers, budget).kept) {
        for (size_t h = 0; h < layer.size(); ++h) {
          EXPECT_EQ((static_cast<size_t>(shape.entries[h]) - layer[h].size()) % 32, 0U);
          total += static_cast<int64_t>(layer[h].size());
        }
      }
      // A page less than there may be at most, in every head; more only where heads cannot hold less.
      EXPECT_GT(total, 9 * (budget.keep - 32));
      EXPECT_LE(total, 9 * std::max(budget.keep, 32 + 3));
    }
  }
}

TEST(PolicyProperties, TotalsAreExact) {
  LayerShapeForTest shape;
  shape.entries = {60, 60, 60};
  Budget budget;
  budget.keep = 17;
  for (const char* text : {"snapkv:window=4", "adakv:window=4", "defensivekv:window=4", "layer_defensivekv:window=4"}) {
    SCOPED_TRACE(text);
    const Result<Recipe> recipe = ParseRecipe(text);
    const auto layers = MakeLayers(shape, *recipe->policy, 4, 21);
    size_t total = 0;
    for (const KeptHeads& layer : Choose(*recipe->policy, layers, budget).kept) {
      for (const auto& head : layer) total += head.size();
    }
    EXPECT_EQ(total, 17U * 3 * 4);
  }
}

TEST(PolicyProperties, EveryHeadKeepsItsSafeguard) {
  const Result<Recipe> recipe = ParseRecipe("adakv:window=1,alpha=0.5");
  LayerShapeForTest shape;
  shape.entries = {60, 60, 60};
  Budget budget;
  budget.keep = 20;
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const auto layers = MakeLayers(shape, *recipe->policy, 1, seed);
    const Outcome out = Choose(*recipe->policy, layers, budget);
    for (const auto& head : out.kept.front()) EXPECT_GE(head.size(), 10U);
  }
}

TEST(PolicyProperties, TheWorstCaseIsNeverBelowTheMean) {
  LayerShapeForTest shape;
  for (uint32_t seed = 0; seed < 10; ++seed) {
    const Result<Recipe> mean = ParseRecipe("score=snapkv:window=6,pool=1 agg=mean");
    const TestLayer layer(shape, *mean->policy, seed);
    LayerScores lower;
    mean->policy->Score(layer.inputs(), lower);
    for (const char* aggregate : {"max", "defensive"}) {
      const Result<Recipe> worst = ParseRecipe(fmt::format("score=snapkv:window=6,pool=1 agg={}", aggregate));
      LayerScores upper;
      worst->policy->Score(layer.inputs(), upper);
      for (size_t h = 0; h < lower.heads.size(); ++h) {
        for (size_t i = 0; i < lower.heads[h].size(); ++i) EXPECT_GE(upper.heads[h][i], lower.heads[h][i] * 0.99999F);
      }
    }
  }
}

TEST(RoundToPages, GivesWholePagesOfNoLargerTotal) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<LayerScores> layers(1 + static_cast<size_t>(random() % 3));
    Allocation budgets(layers.size());
    int64_t before = 0, after = 0;
    for (size_t l = 0; l < layers.size(); ++l) {
      for (int h = 0; h < 4; ++h) {
        const int n = static_cast<int>(random() % 400);
        layers[l].heads.emplace_back(static_cast<size_t>(n), 0.0F);
        budgets[l].push_back({.keep = static_cast<int>(random() % static_cast<uint32_t>(n + 1))});
        before += budgets[l].back().keep;
      }
    }
    EXPECT_EQ(RoundToPages(layers, {.page_entries = 32}, static_cast<double>(before), false, budgets), 0);
    int64_t places = 0;
    for (size_t l = 0; l < layers.size(); ++l) {
      for (size_t h = 0; h < budgets[l].size(); ++h) {
        EXPECT_EQ(budgets[l][h].keep % 32, 0);
        EXPECT_LE(budgets[l][h].keep, static_cast<int>(layers[l].heads[h].size()));
        after += budgets[l][h].keep;
        places += (static_cast<int>(layers[l].heads[h].size()) - budgets[l][h].keep) / 32;
      }
    }
    EXPECT_LE(after, before);
    // Less than a page is left over, unless no head has room for one.
    EXPECT_TRUE(before - after < 32 || places == 0) << before << " " << after;
  }
}

TEST(RoundToPages, LeavesPinnedEntriesTheirPlace) {
  std::vector<LayerScores> layers(1);
  layers[0].heads.assign(2, std::vector<float>(100, 0.0F));
  layers[0].pinned.assign(2, std::vector<uint8_t>(100, 0));
  std::fill_n(layers[0].pinned[0].begin(), 40, 1);
  Allocation budgets = {{{.keep = 45}, {.keep = 45}}};
  EXPECT_EQ(RoundToPages(layers, {.page_entries = 32}, 90, false, budgets), 0);
  EXPECT_EQ(budgets[0][0].keep, 40) << "the pinned ones and no more";
  EXPECT_EQ(budgets[0][1].keep, 32);
}

// Entries that stand in for others take their places in pages, and what the smallest heads cost is not exceeded.
TEST(RoundToPages, MakesRoomForEntriesThatStandIn) {
  constexpr double kCost = 3.5;
  constexpr int kStandIns = 4;
  std::mt19937 random(4);
  for (int round = 0; round < 100; ++round) {
    std::vector<LayerScores> layers(1);
    Allocation budgets(1);
    double given = 0;
    for (int h = 0; h < 12; ++h) {
      const int n = 40 + static_cast<int>(random() % 400);
      layers[0].heads.emplace_back(static_cast<size_t>(n), 0.0F);
      layers[0].pinned.emplace_back(static_cast<size_t>(n), uint8_t{0});
      std::fill_n(layers[0].pinned.back().begin(), 4, uint8_t{1});
      const bool large = h % 3 == 0;
      budgets[0].push_back({.keep = large ? n / 2 : 24 + static_cast<int>(random() % 8)});
      given += budgets[0].back().keep + kStandIns;
    }
    const Budget budget{.stand_ins = kStandIns, .page_entries = 32, .rest_cost = kCost};
    EXPECT_EQ(RoundToPages(layers, budget, given, true, budgets), 0);
    double cost = 0;
    for (size_t h = 0; h < 12; ++h) {
      const int size = budgets[0][h].keep + kStandIns;
      EXPECT_GE(budgets[0][h].keep, 4);
      EXPECT_TRUE(size % 32 == 0 || size == 8) << size;
      cost += size + (kCost - 1) * (size % 32);
    }
    EXPECT_LE(cost, given);
    EXPECT_GT(cost, given - 32 * 2);
  }
}

// What is chosen and what stands in for the rest are within the budget together, whoever divides it.
TEST(PolicyProperties, EntriesThatStandInAreWithinTheBudget) {
  for (const std::string& allocator : Allocators()) {
    const Result<Recipe> recipe = ParseRecipe(fmt::format("score=kvzip alloc={} act=residue:r=4", allocator));
    ASSERT_TRUE(recipe) << recipe.error().message;
    if (recipe->policy->keeps_everything()) continue;
    SCOPED_TRACE(recipe->text);
    LayerShapeForTest shape;
    shape.entries = {61, 40, 33};
    const auto layers = MakeLayers(shape, *recipe->policy, 3, 5);
    const Budget budget{.keep = 20, .keep_fraction = 0.4};
    EXPECT_EQ(recipe->policy->StandIns(budget), 4);
    int64_t total = 0;
    for (const KeptHeads& layer : Choose(*recipe->policy, layers, budget).kept) {
      for (size_t h = 0; h < layer.size(); ++h) {
        const size_t n = static_cast<size_t>(shape.entries[h]);
        total += static_cast<int64_t>(std::min(layer[h].size() + 4, n));
      }
    }
    EXPECT_LE(total, 20 * 9);
    EXPECT_GT(total, 9 * 4);
  }
  const Recipe few = *ParseRecipe("score=kvzip act=residue:r=4");
  EXPECT_EQ(few.policy->StandIns({.keep = 20, .keep_fraction = 0.04}), 2) << "half where little stays";
  EXPECT_EQ(few.policy->StandIns({.keep = 8, .keep_fraction = 0.4}), 2) << "no more than a quarter of what stays";
  EXPECT_EQ(few.policy->StandIns({.keep = 28, .keep_fraction = 0.4, .rest_cost = 3.5}), 2) << "by what it costs";
  EXPECT_EQ(few.policy->StandIns({.keep = 20, .keep_fraction = 1}), 0);
  EXPECT_EQ(ParseRecipe("kvzip")->policy->StandIns({.keep = 20, .keep_fraction = 0.4}), 0);
  EXPECT_TRUE(ParseRecipe("snapkv act=residue")->policy->repeat() != nullptr) << "the action reads the prompt again";
  EXPECT_EQ(ParseRecipe("kvzip act=match")->policy->StandIns({.keep = 20, .keep_fraction = 0.4}), 0);
  EXPECT_TRUE(ParseRecipe("snapkv act=match")->policy->repeat() != nullptr);
}

// In f16 a head of four sinks took as much as a dozen 4-bit entries, and a share of bytes was exceeded.
TEST(RoundToPages, PaysForPinnedEntriesOutsidePages) {
  constexpr double kCost = 3.5;
  std::vector<LayerScores> layers(1);
  layers[0].heads.assign(8, std::vector<float>(400, 0.0F));
  layers[0].pinned.assign(8, std::vector<uint8_t>(400, 0));
  Allocation budgets(1);
  for (size_t h = 0; h < 8; ++h) {
    std::fill_n(layers[0].pinned[h].begin(), 4, 1);
    budgets[0].push_back({.keep = h < 5 ? 10 : 128});
  }
  const Allocation wanted = budgets;
  EXPECT_GT(RoundToPages(layers, {.page_entries = 32, .rest_cost = kCost}, 5 * 10 + 3 * 128, false, budgets), 0);
  EXPECT_EQ(budgets[0][7].keep, wanted[0][7].keep) << "nothing changes that does not fit";
  EXPECT_EQ(RoundToPages(layers, {.page_entries = 32, .rest_cost = kCost}, 5 * 10 + 3 * 128, true, budgets), 0);
  double cost = 0;
  for (const HeadBudget& head : budgets[0]) cost += head.keep + (kCost - 1) * (head.keep % 32);
  EXPECT_LE(cost, 5 * 10 + 3 * 128);
  EXPECT_GE(cost, 5 * 10 + 3 * 128 - 32);
  for (size_t h = 0; h < 5; ++h) EXPECT_EQ(budgets[0][h].keep, 4);
}

}  // namespace
}  // namespace pith
