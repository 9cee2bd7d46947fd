#include "policy/page_division.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "policy/policy.h"
#include "policy/select.h"

namespace pith {
namespace {

constexpr int kPage = 32;
constexpr double kRestCost = 3.5;

int NoFirst(const LayerScores& layer, size_t head) { return static_cast<void>(layer), static_cast<int>(head * 0); }

double CostOf(int places) { return places - places % kPage + places % kPage * kRestCost; }

// Random heads, some with pinned entries.
std::vector<LayerScores> RandomLayers(std::mt19937& random) {
  std::uniform_real_distribution<float> uniform(0, 1);
  std::vector<LayerScores> layers(1 + random() % 3);
  for (LayerScores& layer : layers) {
    for (int h = 0; h < 4; ++h) {
      const size_t n = random() % 400;
      std::vector<float>& scores = layer.heads.emplace_back(n);
      for (float& score : scores) score = uniform(random);
      layer.pinned.emplace_back(n, uint8_t{0});
      std::fill_n(layer.pinned.back().begin(), std::min(n, static_cast<size_t>(random() % 50)), uint8_t{1});
    }
  }
  return layers;
}

Allocation EmptyFor(std::span<const LayerScores> layers) {
  Allocation out;
  for (const LayerScores& layer : layers) out.emplace_back(layer.heads.size());
  return out;
}

// What a head holds with the entries that stand in.
int HeldOf(const HeadBudget& head, const Budget& budget, size_t n) {
  return std::min(head.keep + budget.stand_ins, static_cast<int>(n));
}

TEST(DividePages, GivesWholePagesWithinTheBytes) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    const std::vector<LayerScores> layers = RandomLayers(random);
    const Budget budget{.keep = static_cast<int>(random() % 300),
                        .stand_ins = static_cast<int>(random() % 5),
                        .page_entries = kPage,
                        .rest_cost = kRestCost};
    Allocation budgets = EmptyFor(layers);
    DividePages(layers, budget, NoFirst, budgets);
    double cost = 0, least_cost = 0, least_next = std::numeric_limits<double>::infinity();
    size_t num_heads = 0;
    for (size_t l = 0; l < layers.size(); ++l) {
      for (size_t h = 0; h < budgets[l].size(); ++h) {
        const int n = static_cast<int>(layers[l].heads[h].size());
        const int pinned = CountPinned(PinnedOf(layers[l], h)), least = std::min(pinned + budget.stand_ins, n);
        const int held = HeldOf(budgets[l][h], budget, layers[l].heads[h].size());
        EXPECT_TRUE(held % kPage == 0 || held == least || held == n) << held << " of " << n;
        EXPECT_GE(budgets[l][h].keep, pinned);
        EXPECT_LE(budgets[l][h].keep, n);
        cost += CostOf(held), least_cost += CostOf(least), ++num_heads;
        const double next = CostOf(std::min((held / kPage + 1) * kPage, n)) - CostOf(held);
        if (held < n) least_next = std::min(least_next, next);
      }
    }
    const auto total = static_cast<double>(num_heads) * (budget.keep + budget.stand_ins);
    EXPECT_LE(cost, std::max(total, least_cost) + 1e-6);
    EXPECT_GT(least_next, total - cost - 1e-6) << "another page would have fitted";
    EXPECT_TRUE(AreInPages(layers, budget, budgets));
  }
}

// All that one head holds is looked at, a little less than what another one holds: by one threshold over all it would
// keep nothing of it.
TEST(DividePages, GoesByAllThatIsInAPage) {
  LayerScores layer;
  layer.heads = {std::vector<float>(320, 0.99F), std::vector<float>(320, 0.9F)};
  const std::vector<LayerScores> layers = {layer};
  Budget budget{.keep = 2 * kPage, .page_entries = kPage, .rest_cost = kRestCost};
  Allocation by_sum = EmptyFor(layers), by_count = EmptyFor(layers);
  DividePages(layers, budget, NoFirst, by_sum);
  EXPECT_EQ(by_sum[0][0].keep, 4 * kPage) << "pages that cost the same go where more is in them";
  // What stands in makes a head's first page cheaper than another's fifth.
  budget.stand_ins = 4;
  DividePages(layers, budget, NoFirst, by_sum);
  EXPECT_EQ(by_sum[0][0].keep + 4, 3 * kPage);
  EXPECT_EQ(by_sum[0][1].keep + 4, kPage);
  AllocatePooled(layers, TotalEntries(budget, 2), 0, by_count);
  EXPECT_EQ(RoundToPages(layers, budget, 2.0 * (budget.keep + 4), true, by_count), 0);
  EXPECT_LT(by_count[0][1].keep + 4, kPage) << "the other way";
}

TEST(DividePages, WhatIsInPagesIsKnownFromWhatIsNot) {
  LayerScores layer;
  layer.heads.assign(2, std::vector<float>(320, 0.5F));
  const std::vector<LayerScores> layers = {layer};
  const Budget budget{.keep = 40, .page_entries = kPage, .rest_cost = kRestCost};
  EXPECT_TRUE(AreInPages(layers, budget, {{{.keep = 64}, {.keep = 0}}}));
  EXPECT_FALSE(AreInPages(layers, budget, {{{.keep = 40}, {.keep = 0}}}));
  EXPECT_FALSE(AreInPages(layers, budget, {{{.keep = 64}, {.keep = 32}}})) << "more than there is";
}

// Four tokens that nobody looks at: sinks but for those that somebody pinned.
class BareHeads : public ::testing::Test {
 protected:
  static constexpr int kEntries = 320;

  // Of two heads, one of which is hardly looked at, what stays of places for two pages and some.
  static KeptHeads Kept(const std::string& words, int page_entries, int num_pinned = 0) {
    std::vector<int32_t> positions(kEntries);
    std::iota(positions.begin(), positions.end(), 0);
    std::vector<uint8_t> pinned(kEntries);
    std::fill_n(pinned.begin(), 4, kPinnedAsSink);
    std::fill_n(pinned.begin(), num_pinned, uint8_t{1});
    std::vector<float> looked_at(kEntries, 0.5F), hardly(kEntries, 0.01F);
    std::fill_n(looked_at.begin(), 4, 0.0F), std::fill_n(hardly.begin(), 4, 0.0F);
    float* const columns[] = {looked_at.data(), hardly.data()};
    std::vector<HeadInputs> heads;
    for (size_t h = 0; h < 2; ++h) {
      heads.push_back({.num_entries = kEntries, .positions = positions, .pinned = pinned, .columns = {&columns[h], 1}});
    }
    const Result<Recipe> recipe = ParseRecipe("score=kvzip alloc=global:" + words);
    EXPECT_TRUE(recipe) << recipe.error().message;
    std::vector<LayerScores> scores(1);
    recipe->policy->Score({.num_layers = 1, .heads = heads}, scores[0]);
    return recipe->policy->SelectAll(scores, {.keep = kPage + 8, .page_entries = page_entries, .rest_cost = kRestCost})
        ->front();
  }
  static bool HoldsFirst(const std::vector<int32_t>& head) {
    return std::ranges::includes(head, std::vector<int32_t>{0, 1, 2, 3});
  }
};

TEST_F(BareHeads, HoldFewerSinksThanPages) {
  for (const std::string pages : {"pages=count", "pages=sum"}) {
    const KeptHeads kept = Kept(pages + ",bare=1", kPage);
    EXPECT_EQ(kept[0].size(), size_t{2 * kPage}) << pages;
    EXPECT_TRUE(HoldsFirst(kept[0])) << pages;
    EXPECT_EQ(kept[1], std::vector<int32_t>{0}) << "others would take what several entries of a page take";
    EXPECT_EQ(Kept(pages, kPage)[1].size(), size_t{4}) << pages;
  }
}

TEST_F(BareHeads, HoldAllThatSomebodyPinned) {
  for (const std::string pages : {"pages=count", "pages=sum"}) {
    const KeptHeads kept = Kept(pages + ",bare=1", kPage, 3);
    EXPECT_EQ(kept[1], (std::vector<int32_t>{0, 1, 2})) << pages;
    EXPECT_TRUE(HoldsFirst(kept[0])) << pages;
  }
}

TEST_F(BareHeads, AreThereWithPagesAlone) {
  for (const char* words : {"bare=1", "pages=sum,bare=1"}) {
    const KeptHeads kept = Kept(words, 1);
    EXPECT_TRUE(HoldsFirst(kept[0]) && HoldsFirst(kept[1])) << "each takes one place";
  }
}

TEST(DividePages, IsAWordOfRecipes) {
  EXPECT_TRUE(ParseRecipe("score=kvzip alloc=global:pages=sum format=q4"));
  for (const char* text :
       {"score=kvzip alloc=global:pages=sum,alpha=0.1", "score=kvzip alloc=global:pages=sum,strict=1"}) {
    const Result<Recipe> recipe = ParseRecipe(text);
    ASSERT_FALSE(recipe) << text;
    EXPECT_NE(recipe.error().message.find("pages=sum"), std::string::npos) << recipe.error().message;
  }
}

}  // namespace
}  // namespace pith
