#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "policy/policy.h"

namespace pith {
namespace {

// Entries that stay of 4 heads of 17 at a share of 0.25: 4.25 of each.
size_t KeptOf(const std::string& recipe_text) {
  const auto recipe = ParseRecipe(recipe_text);
  EXPECT_TRUE(recipe) << recipe_text;
  constexpr int kHeads = 4, kEntries = 17;
  std::vector<int32_t> positions(kEntries);
  std::iota(positions.begin(), positions.end(), 0);
  std::vector<HeadInputs> heads(kHeads);
  LayerScores scores;
  std::mt19937 random(3);
  for (HeadInputs& head : heads) {
    head.num_entries = kEntries;
    head.positions = positions;
    std::vector<float> row(kEntries);
    for (float& score : row) score = static_cast<float>(random() % 1000);
    scores.heads.push_back(row);
  }
  LayerInputs inputs;
  inputs.num_layers = 1;
  inputs.group = 1;
  inputs.next_position = kEntries;
  inputs.heads = heads;
  const Budget budget{.keep = 4, .keep_fraction = 0.25, .keep_exact = 4.25};
  size_t kept = 0;
  const Result<KeptHeads> chosen = recipe->policy->Select(inputs, scores, budget);
  for (const auto& head : chosen.value()) kept += head.size();
  return kept;
}

// The authors' totals: Ada-KV's is the rounded budget of a head times the heads, DefensiveKV's is rounded once.
TEST(Ada, TotalsOfALayerAreTheMethods) {
  EXPECT_EQ(KeptOf("score=knorm alloc=ada"), 16U);
  EXPECT_EQ(KeptOf("score=knorm alloc=ada:alpha=0"), 16U);
  EXPECT_EQ(KeptOf("score=knorm alloc=ada:alpha=0,total=exact"), 17U);
}

}  // namespace
}  // namespace pith
