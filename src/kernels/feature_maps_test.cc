#include "kernels/feature_maps.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/attention_reference.h"
#include "kernels/attention_test_util.h"
#include "kernels/targets_test_util.h"

namespace pith::kernels {
namespace {

using FeatureMapsTest = TargetTest;
INSTANTIATE_TEST_SUITE_P(Every, FeatureMapsTest, ::testing::ValuesIn(Targets()));

std::vector<float> Normals(std::mt19937& random, size_t count, float size) {
  std::normal_distribution<float> normal(0, size);
  std::vector<float> numbers(count);
  for (float& x : numbers) x = normal(random);
  return numbers;
}

TEST_P(FeatureMapsTest, EqualTheReference) {
  std::mt19937 random(5);
  struct Shape {
    int dim, hidden, rank;
  };
  double changed = 0;
  for (const auto& [dim, hidden, rank] :
       {Shape{1, 1, 1}, Shape{2, 3, 2}, Shape{64, 64, 8}, Shape{128, 130, 5}, Shape{80, 1024, 64}, Shape{65, 33, 32}}) {
    const auto d = static_cast<size_t>(dim), m = static_cast<size_t>(hidden), r = static_cast<size_t>(rank);
    const std::vector<float> w1 = Normals(random, d * m, 1 / std::sqrt(static_cast<float>(d))),
                             w2 = Normals(random, m * r, 1), w3 = Normals(random, r * r, 1), s1 = Normals(random, r, 1),
                             s2 = Normals(random, r, 1);
    constexpr size_t kRows = 5;
    const size_t stride = d + 2, feature_stride = r + 3;
    for (const float size : {0.1F, 1.0F, 12.0F}) {
      const std::vector<float> rows = Normals(random, kRows * stride, size);
      for (const bool keys : {false, true}) {
        FeatureMap map{.w1 = w1.data(), .w2 = w2.data(), .dim = dim, .hidden = hidden, .rank = rank};
        if (keys) map.w3 = w3.data(), map.s1 = s1.data(), map.s2 = s2.data();
        std::vector<float> features(kRows * feature_stride, -1);
        MapFeatures(map, rows.data(), stride, kRows, features.data(), feature_stride);
        for (size_t i = 0; i < kRows; ++i) {
          std::vector<double> expected(r);
          FeaturesReference(map, rows.data() + i * stride, expected.data());
          // Sums over hidden units round in float32, next to numbers that may be much larger than their sum.
          const double most = *std::ranges::max_element(expected);
          for (size_t f = 0; f < r; ++f) {
            const double ours = static_cast<double>(features[i * feature_stride + f]);
            ASSERT_NEAR(ours, expected[f], 2e-6 + 2e-5 * most) << dim << ' ' << hidden << ' ' << f << ' ' << size;
            changed = std::max(changed, std::abs(1.001 * ours - expected[f]) / (2e-6 + 2e-5 * most));
          }
          for (size_t f = r; f < feature_stride; ++f) ASSERT_EQ(features[i * feature_stride + f], -1);
        }
      }
    }
  }
  EXPECT_GT(changed, 10) << "control: a thousandth must be seen";
}

TEST_P(FeatureMapsTest, WorkedExample) {
  const std::vector<float> w1 = {1, .5F, 0, 0, 1, -1}, w2 = {1, 0, .5F, 1, 0, 2}, w3 = {0, 1, 1, 0};
  const std::vector<float> s1 = {.1F, .2F}, s2 = {.01F, .01F}, x = {1, -1};
  FeatureMap map{.w1 = w1.data(), .w2 = w2.data(), .dim = 2, .hidden = 3, .rank = 2};
  std::vector<float> features(2);
  MapFeatures(map, x.data(), 2, 1, features.data(), 2);
  EXPECT_NEAR(features[0], 0.594272F, 1e-6F);
  EXPECT_NEAR(features[1], 1.431818F, 2e-6F);
  map.w3 = w3.data(), map.s1 = s1.data(), map.s2 = s2.data();
  MapFeatures(map, x.data(), 2, 1, features.data(), 2);
  EXPECT_NEAR(features[0], 0.062291F, 1e-6F);
  EXPECT_NEAR(features[1], 0.286958F, 1e-6F);
}

TEST(EvictedState, WorkedExample) {
  std::vector<float> state(StateFloats(2, 2), 0);
  const std::vector<float> one = {.2F, .1F}, two = {.05F, .3F}, a = {1, 0}, b = {0, 2};
  AddToState(one, a, state.data());
  AddToState(two, b, state.data());
  const std::vector<float> expected = {.2F, .1F, .1F, .6F, .25F, .4F};
  for (size_t i = 0; i < state.size(); ++i) EXPECT_FLOAT_EQ(state[i], expected[i]) << i;
  std::vector<float> output = {1.162238F, 0.587673F};
  const std::vector<float> phi = {1.5F, .5F};
  JoinState(phi, state.data(), std::log(3.618065F), output);
  EXPECT_NEAR(output[0], 1.08633F, 2e-5F);
  EXPECT_NEAR(output[1], 0.614405F, 2e-5F);
}

TEST(EvictedState, AnyLogits) {
  std::vector<float> state(StateFloats(1, 2), 0);
  const std::vector<float> tiny = {1e-30F}, value = {4, -2}, huge = {1e30F};
  AddToState(tiny, value, state.data());
  for (const float logit : {-300.0F, 0.0F, 300.0F, -std::numeric_limits<float>::infinity()}) {
    const float share = 1 / (1 + std::exp(logit));  // features and mass make up 1
    std::vector<float> output = {1, 1};
    if (std::isinf(logit)) output = {0, 0};
    JoinState(huge, state.data(), logit, output);
    EXPECT_NEAR(output[0], (std::isinf(logit) ? 0 : 1 - share) + 4 * share, 1e-5F) << logit;
    EXPECT_NEAR(output[1], (std::isinf(logit) ? 0 : 1 - share) - 2 * share, 1e-5F) << logit;
  }
  std::vector<float> output = {1, 2};
  const std::vector<float> none = {0};
  JoinState(none, state.data(), 0, output);
  EXPECT_EQ(output, (std::vector<float>{1, 2}));
}

// Features that are exp(q.k) itself, one for each entry that is gone: then attention is what it was before it went.
struct ExactState {
  std::vector<std::vector<float>> states;
  std::vector<float> features;

  // Removes the first `count` entries of each head.
  ExactState(TestTask& test, int count, int value_dim) {
    AttentionTask& task = test.task;
    const int group = task.num_heads / task.num_kv_heads;
    const auto rank = static_cast<size_t>(count);
    features.resize(static_cast<size_t>(task.num_queries * task.num_heads) * rank);
    for (int h = 0; h < task.num_kv_heads; ++h) {
      std::vector<TestEntry>& entries = test.entries(h);
      std::vector<float>& state = states.emplace_back(StateFloats(count, value_dim), 0);
      for (size_t i = 0; i < rank; ++i) {
        std::vector<float> one(rank, 0);
        one[i] = 1;
        AddToState(one, entries[i].value, state.data());
        for (int t = 0; t < task.num_queries; ++t) {
          for (int g = 0; g < group; ++g) {
            const int head = h * group + g;
            const float* query = task.queries + static_cast<size_t>(t) * task.query_token_stride +
                                 static_cast<size_t>(head) * task.query_head_stride;
            double dot = 0;
            for (size_t d = 0; d < entries[i].key.size(); ++d)
              dot += static_cast<double>(query[d]) * static_cast<double>(entries[i].key[d]);
            features[static_cast<size_t>(t * task.num_heads + head) * rank + i] =
                static_cast<float>(std::exp(dot * static_cast<double>(task.scale)));
          }
        }
      }
      entries.erase(entries.begin(), entries.begin() + count);
    }
    test.Rebuild();
    for (size_t h = 0; h < states.size(); ++h) heads.push_back(task.heads[h]), heads[h].state = states[h].data();
    task.heads = heads.data();
    task.features = features.data();
    task.rank = count;
  }

  std::vector<HeadEntries> heads;
};

float DifferenceOf(const std::vector<float>& a, const std::vector<float>& b) {
  float most = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!std::isnan(a[i]) || !std::isnan(b[i])) most = std::max(most, std::abs(a[i] - b[i]));
  }
  return most;
}

TEST_P(FeatureMapsTest, ExactFeaturesGiveFullAttention) {
  for (const int queries : {1, 3, 40}) {
    for (const int threads : {1, 3}) {
      for (const float sink : {0.0F, 1.5F}) {
        const TestShape shape{.num_queries = queries,
                              .num_kv_heads = 2,
                              .group = 2,
                              .key_dim = 64,
                              .value_dim = 48,
                              .head_entries = {150, 81}};
        TestTask test(shape, 7);
        std::fill_n(const_cast<int32_t*>(test.task.query_positions), queries, 1000);  // all see everything
        const std::vector<float> sinks(4, sink);
        if (sink != 0) test.task.sinks = sinks.data();
        test.Run(1);
        const std::vector<float> full = test.output;
        ExactState state(test, 17, shape.value_dim);
        test.Run(threads);
        // Entries are stored in f16, and the state is not.
        EXPECT_LT(DifferenceOf(full, test.output), 2e-3F) << queries << ' ' << threads;
        const std::vector<float> joined = test.output, log_sum_exp = test.log_sum_exp;
        ReferenceAttention(test.task);
        EXPECT_LT(DifferenceOf(joined, test.output), 3e-5F) << queries << ' ' << threads;
        test.task.features = nullptr;
        test.Run(threads);
        EXPECT_GT(DifferenceOf(full, test.output), 0.05F) << "control: without the state";
        EXPECT_EQ(log_sum_exp, test.log_sum_exp) << "of the entries that are there";
      }
    }
  }
}

TEST(EvictedState, PartsFixTheBits) {
  const TestShape shape{.num_queries = 40, .num_kv_heads = 2, .group = 2, .head_entries = {500, 300}};
  TestTask test(shape, 9);
  ExactState state(test, 8, shape.value_dim);
  test.task.num_parts = 4;
  test.Run(1);
  const std::vector<float> alone = test.output;
  for (const int threads : {2, 4}) {
    test.Run(threads);
    for (size_t i = 0; i < alone.size(); ++i) {
      if (std::isnan(alone[i])) continue;
      ASSERT_EQ(alone[i], test.output[i]) << threads << ' ' << i;
    }
  }
}

}  // namespace
}  // namespace pith::kernels
