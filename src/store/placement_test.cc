#include "store/placement.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include <gtest/gtest.h>

namespace pith::store {
namespace {

constexpr double kGb = 1e9;

struct Example {
  double bytes, frequency;
  std::vector<double> quality;
};
// The specification's example: tiers of 4 GB at 2 and 0.5 GB/s, and one without end.
const std::vector<Example> kExamples = {
    {4 * kGb, 3, {1, .97, .90}}, {3 * kGb, 1, {1, .60, .35}}, {2 * kGb, 2, {1, .92, .70}}};

PlacementOptions ExampleOptions(double alpha) {
  return {.alpha = alpha,
          .num_methods = 1,
          .ratios = {0, 0.5, 0.9},
          .tiers = {{2 * kGb, 4 * kGb}, {0.5 * kGb, 4 * kGb}, {0.125 * kGb, 0}}};
}

// Over all placements that fit.
double BestTotal(const PlacementOptions& options, const std::vector<Example>& contexts) {
  const size_t choices = options.ratios.size() * options.tiers.size();
  double best = -HUGE_VAL;
  size_t combinations = 1;
  for (size_t i = 0; i < contexts.size(); ++i) combinations *= choices;
  for (size_t number = 0; number < combinations; ++number) {
    std::vector<double> used(options.tiers.size(), 0);
    double total = 0;
    size_t rest = number;
    for (const Example& context : contexts) {
      const size_t ratio = rest % choices / options.tiers.size(), tier = rest % options.tiers.size();
      rest /= choices;
      const double bytes = context.bytes * (1 - options.ratios[ratio]);
      used[tier] += bytes;
      total += (options.alpha * context.quality[ratio] - bytes / options.tiers[tier].bandwidth) * context.frequency;
    }
    bool fits = true;
    for (size_t t = 0; t < used.size(); ++t) {
      fits = fits && (options.tiers[t].capacity <= 0 || used[t] <= options.tiers[t].capacity);
    }
    if (fits) best = std::max(best, total);
  }
  return best;
}

double GreedyTotal(const PlacementOptions& options, const std::vector<Example>& contexts, size_t* steps = nullptr) {
  Placement placement(options);
  std::vector<PlacementOperation> operations;
  for (const Example& context : contexts) {
    placement.Add(context.bytes, context.frequency, context.quality, operations);
    for (size_t t = 0; t + 1 < options.tiers.size(); ++t) {
      EXPECT_LE(placement.used(static_cast<int>(t)), options.tiers[t].capacity * (1 + 1e-12));
    }
  }
  for (const PlacementOperation& operation : operations) {
    EXPECT_TRUE(operation.to.tier > operation.from.tier || operation.to.ratio > operation.from.ratio);
  }
  if (steps != nullptr) *steps = operations.size();
  return placement.total_utility();
}

TEST(StorePlacement, WorkedExample) {
  const std::vector<double> totals = {3.5, 39.42, 105.9}, optima = {3.5, 39.42, 107.2};
  const std::vector<double> alphas = {1, 8, 20};
  for (size_t i = 0; i < alphas.size(); ++i) {
    size_t steps = 0;
    EXPECT_NEAR(GreedyTotal(ExampleOptions(alphas[i]), kExamples, &steps), totals[i], 1e-6);
    EXPECT_NEAR(BestTotal(ExampleOptions(alphas[i]), kExamples), optima[i], 1e-6);
    EXPECT_EQ(steps, i == 0 ? 0U : i == 1 ? 2U : 3U);
  }
}

TEST(StorePlacement, NearTheOptimumOfRandomInstances) {
  std::mt19937 random(1);  // NOLINT
  std::uniform_real_distribution<double> uniform(0, 1);
  for (const bool per_byte : {false, true}) {
    std::vector<double> shares;
    for (int instance = 0; instance < 150; ++instance) {
      std::vector<Example> contexts(static_cast<size_t>(3 + instance % 3));
      double all = 0;
      for (Example& context : contexts) {
        const double first = 0.5 + 0.5 * uniform(random);
        context = {(1 + 3 * uniform(random)) * kGb, std::floor(1 + 4 * uniform(random)),
                   {1, first, first * uniform(random)}};
        all += context.bytes;
      }
      PlacementOptions options = ExampleOptions(std::vector<double>{1, 4, 8, 20}[static_cast<size_t>(instance % 4)]);
      options.tiers[0].capacity = options.tiers[1].capacity = 0.35 * all;
      options.per_byte = per_byte;
      double worst = 0;
      for (const Example& context : contexts) {
        double least = HUGE_VAL;
        for (size_t r = 0; r < 3; ++r) {
          const double seconds = context.bytes * (1 - options.ratios[r]) / options.tiers[2].bandwidth;
          least = std::min(least, (options.alpha * context.quality[r] - seconds) * context.frequency);
        }
        worst += least;
      }
      const double best = BestTotal(options, contexts);
      shares.push_back((GreedyTotal(options, contexts) - worst) / (best - worst));
    }
    EXPECT_GE(std::accumulate(shares.begin(), shares.end(), 0.0) / static_cast<double>(shares.size()), 0.98);
    EXPECT_LE(*std::ranges::max_element(shares), 1 + 1e-9);
  }
}

// alpha without end: nothing is compressed that would lose by it. Near 0: all as much as can be.
TEST(StorePlacement, ExtremesOfAlpha) {
  for (const double alpha : {1e9, 1e-9}) {
    Placement placement(ExampleOptions(alpha));
    std::vector<PlacementOperation> operations;
    for (const Example& context : kExamples)
      placement.Add(context.bytes, context.frequency, context.quality, operations);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(placement.config(i).ratio, alpha > 1 ? 0 : 2);
  }
}

// One method, no ratio but 0: what is used least goes down.
TEST(StorePlacement, WithoutCompressionTheLeastUsedMoves) {
  PlacementOptions options = ExampleOptions(1);
  options.ratios = {0};
  Placement placement(options);
  std::vector<PlacementOperation> operations;
  for (const double frequency : {3.0, 1.0, 2.0}) placement.Add(2 * kGb, frequency, std::vector<double>{1}, operations);
  ASSERT_EQ(operations.size(), 1U);
  EXPECT_EQ(operations[0].context, 1);
  EXPECT_EQ(operations[0].to, (Configuration{-1, 0, 1}));
}

// What was used least is used most: it comes into memory, and what made room before goes down.
TEST(StorePlacement, UsesThatChangeMoveContexts) {
  PlacementOptions options = ExampleOptions(1);
  options.ratios = {0};
  const auto at = [](int tier) { return Configuration{-1, 0, tier}; };
  for (const bool changed : {false, true}) {
    Placement placement(options);
    std::vector<PlacementOperation> operations;
    const std::vector<double> frequencies = changed ? std::vector<double>{3, 9, 2} : std::vector<double>{3, 1, 2};
    for (size_t i = 0; i < 3; ++i) {
      placement.AddPlaced(2 * kGb, frequencies[i], std::vector<double>{1}, at(i == 1 ? 1 : 0), operations);
    }
    ASSERT_TRUE(operations.empty());
    const double before = placement.total_cost();
    placement.Rearrange(operations);
    EXPECT_EQ(operations.size(), changed ? 2U : 0U);
    if (!changed) continue;
    EXPECT_EQ(operations[0].context, 2) << "room comes first";
    EXPECT_EQ(operations[0].to, at(1));
    EXPECT_EQ(operations[1].context, 1);
    EXPECT_EQ(operations[1].to, at(0));
    EXPECT_LT(placement.total_cost(), before);
    EXPECT_LE(placement.used(0), options.tiers[0].capacity);
  }
}

// From any placement, with any uses: nothing is decompressed, tiers hold, and it costs no more than before.
TEST(StorePlacement, RearrangesRandomInstances) {
  std::mt19937 random(2);  // NOLINT
  std::uniform_real_distribution<double> uniform(0, 1);
  int better = 0;
  for (int instance = 0; instance < 200; ++instance) {
    PlacementOptions options = ExampleOptions(8);
    options.num_methods = 2;
    std::vector<Example> contexts(8);
    double all = 0;
    for (Example& context : contexts) {
      const double first = 0.5 + 0.5 * uniform(random);
      context = {(1 + 3 * uniform(random)) * kGb, 1, {1, first, first * uniform(random), 1, first * first, 0.1}};
      all += context.bytes;
    }
    options.tiers[0].capacity = options.tiers[1].capacity = 0.35 * all;
    std::vector<PlacementOperation> operations;
    Placement first(options);
    for (const Example& context : contexts) first.Add(context.bytes, 1, context.quality, operations);
    Placement second(options);
    operations.clear();
    for (int i = 0; i < 8; ++i) {
      const Example& context = contexts[static_cast<size_t>(i)];
      second.AddPlaced(context.bytes, std::floor(1 + 20 * uniform(random)), context.quality, first.config(i),
                       operations);
    }
    const double before = second.total_cost();
    second.Rearrange(operations);
    for (const PlacementOperation& operation : operations) {
      EXPECT_GE(operation.to.ratio, operation.from.ratio);
      if (operation.from.ratio > 0) {
        EXPECT_EQ(operation.to.method, operation.from.method);
      }
      EXPECT_EQ(operation.to, second.config(operation.context));
    }
    for (int t = 0; t < 2; ++t) {
      EXPECT_LE(second.used(t), options.tiers[static_cast<size_t>(t)].capacity * (1 + 1e-12));
    }
    better += second.total_cost() < before - 1e-9 ? 1 : 0;
  }
  EXPECT_GT(better, 100);
}

TEST(StorePlacement, QualityOfLogits) {
  const std::vector<float> full = {0, 1, 2, 0, 0, 3}, other = {2, 1, 0, 0, 0, 3};
  EXPECT_NEAR(MeanDivergence(full, full, 3), 0, 1e-12);
  EXPECT_EQ(SameTop(full, other, 3), 0.5);
  const double z = std::exp(0.0) + std::exp(1.0) + std::exp(2.0);
  EXPECT_NEAR(MeanDivergence(full, other, 3), (std::exp(2.0) * 2 - std::exp(0.0) * 2) / z / 2, 1e-12);
}

}  // namespace
}  // namespace pith::store
