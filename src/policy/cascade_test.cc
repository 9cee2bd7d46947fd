#include "policy/cascade.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "policy/policy_test_util.h"

namespace pith {
namespace {

constexpr int kLayers = 12, kEntries = 60, kKeep = 20, kSlack = 4;

struct Outcome {
  std::vector<KeptHeads> kept;  // indices into all entries
  int64_t most = 0;             // entries at once
};

int64_t CountOf(const std::vector<KeptHeads>& kept) {
  int64_t count = 0;
  for (const KeptHeads& layer : kept) {
    for (const auto& head : layer) count += static_cast<int64_t>(head.size());
  }
  return count;
}

// A block of kEntries beside what the layers hold already.
std::vector<std::unique_ptr<TestLayer>> Layers(const Policy& policy, uint32_t seed,
                                               const std::vector<KeptHeads>& held = {}) {
  std::vector<std::unique_ptr<TestLayer>> layers;
  for (int l = 0; l < kLayers; ++l) {
    // The last layers have a weak claim, so that the first ones may keep more than their part of the total.
    LayerShapeForTest shape{.entries = {kEntries, kEntries, kEntries},
                            .layer = l,
                            .num_layers = kLayers,
                            .pinned = 2,
                            .same_keys = l >= kLayers - 3};
    for (size_t h = 0; h < 3 && !held.empty(); ++h)
      shape.entries[h] += static_cast<int>(held[static_cast<size_t>(l)][h].size());
    layers.push_back(std::make_unique<TestLayer>(shape, policy, seed * 100 + static_cast<uint32_t>(l)));
  }
  return layers;
}

Budget FinalBudget() { return {.keep = kKeep, .keep_fraction = static_cast<double>(kKeep) / kEntries}; }

Outcome AtTheEnd(const Policy& policy, const std::vector<std::unique_ptr<TestLayer>>& layers) {
  std::vector<LayerScores> scores(layers.size());
  for (size_t l = 0; l < layers.size(); ++l) policy.Score(layers[l]->inputs(), scores[l]);
  return {policy.SelectAll(scores, FinalBudget()).value(), int64_t{kLayers} * 3 * kEntries};
}

// One block, no more than `in_flight` layers of it beyond the total. early: as if each layer so far
// had its part of the total, and no claim on what the layers to come leave. held: what is there before.
Outcome InACascade(const Policy& policy, const std::vector<std::unique_ptr<TestLayer>>& layers, int in_flight,
                   bool early, const std::vector<KeptHeads>& held = {}) {
  Outcome out;
  Cascade cascade;
  cascade.Begin(FinalBudget());
  int64_t later = CountOf(held);
  for (size_t l = 0; l < layers.size(); ++l) {
    LayerScores scores;
    policy.Score(layers[l]->inputs(), scores);
    cascade.Add(policy, std::move(scores));
    out.kept.emplace_back(3);
    for (size_t h = 0; h < 3; ++h) {
      out.kept[l][h].resize(static_cast<size_t>(layers[l]->head(h).num_entries));
      std::iota(out.kept[l][h].begin(), out.kept[l][h].end(), 0);
    }
    if (!held.empty()) later -= CountOf({held[l]});
    out.most = std::max(out.most, CountOf(out.kept) + later);
    const bool last = l + 1 == layers.size();
    const int64_t total = int64_t{kLayers} * 3 * (last ? kKeep : kKeep + kSlack);
    if (!last && CountOf(out.kept) + later <= total + (in_flight - 1) * 3 * kEntries) continue;
    const int64_t part = early && !last ? total * static_cast<int64_t>(l + 1) / kLayers : total - later;
    const std::vector<KeptHeads> kept = cascade.Shrink(policy, part).value();
    for (size_t i = 0; i <= l; ++i) {
      for (size_t h = 0; h < 3; ++h) {
        std::vector<int32_t> left;
        for (const int32_t k : kept[i][h]) left.push_back(out.kept[i][h][static_cast<size_t>(k)]);
        out.kept[i][h] = left;
      }
    }
  }
  return out;
}

TEST(Cascade, EndsWithWhatOneSelectionOverAllLayersKeeps) {
  for (const char* text : {"cake:window=4", "score=snapkv:window=4 alloc=cake", "score=keydiff alloc=global",
                           "score=snapkv:window=4 agg=defensive alloc=global:alpha=0.2", "layer_defensivekv:window=4",
                           "score=snapkv:window=4 mod=criticalkv alloc=cake"}) {
    const Recipe recipe = *ParseRecipe(text);
    ASSERT_TRUE(recipe.policy->cascades());
    int different_early = 0;
    for (uint32_t seed = 1; seed <= 20; ++seed) {
      const auto layers = Layers(*recipe.policy, seed);
      const Outcome expected = AtTheEnd(*recipe.policy, layers);
      EXPECT_LE(CountOf(expected.kept), int64_t{kLayers} * 3 * kKeep);
      EXPECT_LT(CountOf(expected.kept), expected.most);
      for (const int in_flight : {1, 3}) {
        const Outcome ours = InACascade(*recipe.policy, layers, in_flight, false);
        EXPECT_EQ(ours.kept, expected.kept) << text << " seed " << seed;
        EXPECT_LE(ours.most, int64_t{kLayers} * 3 * (kKeep + kSlack) + in_flight * 3 * kEntries);
      }
      different_early += InACascade(*recipe.policy, layers, 1, true).kept != expected.kept;
    }
    EXPECT_GE(different_early, 15) << "the control: shares of the layers so far alone";
  }
}

// Layers to come still hold what the block before left them, so that the first ones may grow by the slack alone.
TEST(Cascade, LaterBlocksStayWithinTheTotal) {
  for (const char* text : {"cake:window=4", "score=keydiff alloc=global", "layer_defensivekv:window=4"}) {
    const Recipe recipe = *ParseRecipe(text);
    int64_t all = 0, missing = 0;
    for (uint32_t seed = 1; seed <= 20; ++seed) {
      std::vector<KeptHeads> held;
      for (uint32_t block = 0; block < 4; ++block) {
        const auto layers = Layers(*recipe.policy, seed + 50 * block, held);
        const Outcome expected = AtTheEnd(*recipe.policy, layers),
                      ours = InACascade(*recipe.policy, layers, 1, false, held);
        EXPECT_EQ(CountOf(ours.kept), int64_t{kLayers} * 3 * kKeep);
        EXPECT_LE(ours.most, int64_t{kLayers} * 3 * (kKeep + kSlack) + 3 * kEntries);
        for (size_t l = 0; l < layers.size(); ++l) {
          for (size_t h = 0; h < 3; ++h) {
            for (const int32_t i : expected.kept[l][h]) missing += !std::ranges::binary_search(ours.kept[l][h], i);
          }
        }
        all += CountOf(expected.kept);
        held = ours.kept;
      }
    }
    EXPECT_LT(static_cast<double>(missing), 0.01 * static_cast<double>(all)) << text;
  }
}

TEST(Cascade, IsForRecipesThatCompareLayersOnly) {
  EXPECT_FALSE(ParseRecipe("snapkv")->policy->cascades());
  EXPECT_FALSE(ParseRecipe("pyramidkv")->policy->cascades()) << "its shares are known beforehand";
  EXPECT_FALSE(ParseRecipe("cake act=merge")->policy->cascades()) << "what is merged twice is another entry";
}

TEST(Cascade, TrimmedScoresAreThoseOfWhatStays) {
  LayerScores scores;
  scores.heads = {{1, 2, 3}, {4, 5, 6}};
  scores.ties = {{7, 8, 9}, {}};
  scores.NotesOf(nullptr).column = {{1, 2}, {3, 4}};  // of the entries before the window
  scores.NotesOf(nullptr).numbers = {5};
  TrimScores({{0, 2}, {1}}, scores);
  EXPECT_EQ(scores.heads, (std::vector<std::vector<float>>{{1, 3}, {5}}));
  EXPECT_EQ(scores.ties, (std::vector<std::vector<float>>{{7, 9}, {}}));
  EXPECT_EQ(scores.NotesOf(nullptr).column, (std::vector<std::vector<float>>{{1}, {4}}));
  EXPECT_EQ(scores.NotesOf(nullptr).numbers, std::vector<double>{5});
}

}  // namespace
}  // namespace pith
