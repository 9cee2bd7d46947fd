#include "policy/learn/less_fit.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace pith {
namespace {

// Queries and keys around a few directions, so that attention has a structure; values follow the keys, or nothing.
struct Text {
  Text(uint32_t seed, bool values_follow) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<std::vector<float>> themes(5, std::vector<float>(kDim));
    for (auto& theme : themes) {
      for (float& x : theme) x = normal(random);
    }
    const auto near = [&](std::vector<float>& rows, size_t count, float size) {
      for (size_t i = 0; i < count; ++i) {
        const std::vector<float>& theme = themes[random() % themes.size()];
        for (size_t d = 0; d < kDim; ++d) rows.push_back(1.2F * theme[d] + size * normal(random) + 0.5F);
      }
    };
    near(keys, kEntries, 0.5F);
    near(queries, 2 * kQueries, 0.5F);
    for (size_t i = 0; i < kEntries; ++i) {
      for (size_t c = 0; c < kDim; ++c) values.push_back(values_follow ? keys[i * kDim + c] : normal(random));
    }
  }

  LessSample sample() const {
    return {.group = 2,
            .dim = kDim,
            .value_dim = kDim,
            .num_queries = kQueries,
            .num_entries = kEntries,
            .queries = queries,
            .keys = keys,
            .values = values,
            .scale = 0.25F};
  }

  static constexpr size_t kDim = 16, kEntries = 300, kQueries = 120;
  std::vector<float> queries, keys, values;
};

TEST(LessFit, StatesStandForWhatIsGone) {
  for (const uint32_t seed : {1U, 2U, 3U}) {
    const Text text(seed, true);
    const auto fit = FitLess(text.sample(), {.rank = 8, .hidden = 64, .keep = 0.2});
    ASSERT_TRUE(fit) << fit.error().message;
    EXPECT_GT(fit->error_without, 0);
    EXPECT_LT(fit->error_with, 0.9 * fit->error_without) << seed;
    const auto maps = LessMaps::Make(8, {fit->maps});
    ASSERT_TRUE(maps) << maps.error().message;
    EXPECT_EQ((*maps)->layer(0).num_heads, 2);
    const auto again = FitLess(text.sample(), {.rank = 8, .hidden = 64, .keep = 0.2});
    EXPECT_EQ(again->maps.query_w2, fit->maps.query_w2) << "the same seed";
    const auto other = FitLess(text.sample(), {.rank = 8, .hidden = 64, .keep = 0.2, .seed = 7});
    EXPECT_NE(other->maps.query_w2, fit->maps.query_w2);
  }
}

// What cannot be foreseen is left alone.
TEST(LessFit, NoErrorGrows) {
  const Text text(4, false);
  for (const double keep : {0.2, 0.6}) {
    for (const int rank : {1, 4}) {
      const auto fit = FitLess(text.sample(), {.rank = rank, .hidden = 8, .keep = keep});
      ASSERT_TRUE(fit) << fit.error().message;
      EXPECT_LE(fit->error_with, fit->error_without);
    }
  }
}

TEST(LessFit, SaysWhatItCannotFit) {
  const Text text(5, true);
  LessSample sample = text.sample();
  EXPECT_FALSE(FitLess(sample, {.rank = 0}));
  EXPECT_FALSE(FitLess(sample, {.hidden = 5000}));
  sample.num_entries = 63;
  EXPECT_FALSE(FitLess(sample, {}));
}

TEST(LessFit, HeadsFollowEachOther) {
  const Text text(6, true);
  const auto one = FitLess(text.sample(), {.rank = 2, .hidden = 8}),
             two = FitLess(text.sample(), {.rank = 2, .hidden = 8, .seed = 3});
  LessLayer layer;
  AppendHead(one->maps, layer);
  AppendHead(two->maps, layer);
  const auto both = LessMaps::Make(2, {layer});
  const auto second = LessMaps::Make(2, {two->maps});
  ASSERT_TRUE(both && second);
  EXPECT_EQ((*both)->QueryMap(0, 3).w1[5], (*second)->QueryMap(0, 1).w1[5]);
  EXPECT_EQ((*both)->QueryMap(0, 3).w2[5], (*second)->QueryMap(0, 1).w2[5]);
  EXPECT_EQ((*both)->KeyMap(0, 1).w2[5], (*second)->KeyMap(0, 0).w2[5]);
}

}  // namespace
}  // namespace pith
