#include "policy/act/match.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include <gtest/gtest.h>

namespace pith {
namespace {

constexpr int kDim = 16, kEntries = 60, kKept = 12, kQueries = 200;

// A head whose queries have so much in common.
struct Head {
  std::vector<float> keys, values, queries;
  std::vector<int32_t> fixed, kept, dropped;

  Head(unsigned seed, float common) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (std::vector<float>* rows : {&keys, &values}) {
      rows->resize(kEntries * kDim);
      for (float& x : *rows) x = normal(random);
    }
    queries.resize(kQueries * kDim);
    for (size_t i = 0; i < queries.size(); ++i) queries[i] = normal(random) + (i % kDim < 2 ? common : 0);
    for (int32_t i = 0; i < kEntries; ++i) (i % (kEntries / kKept) == 1 ? kept : dropped).push_back(i);
  }

  ResidueInputs inputs() const {
    return {.key_dim = kDim,
            .value_dim = kDim,
            .keys = keys.data(),
            .values = values.data(),
            .fixed = fixed,
            .kept = kept,
            .dropped = dropped,
            .queries = ViewOf(queries.data(), queries.size() / kDim, kDim),
            .scale = 0.25F};
  }

  // Of a query with a key of the head, or another one.
  double Logit(size_t q, const float* key) const {
    double sum = 0;
    for (size_t d = 0; d < kDim; ++d) sum += static_cast<double>(queries[q * kDim + d]) * static_cast<double>(key[d]);
    return 0.25 * sum;
  }

  // Squares of what the kept keys' masses are off, biases added, over the queries; in units of the largest of each.
  double MassError(const std::vector<float>& kept_keys, const std::vector<double>& biases) const {
    double error = 0;
    for (size_t q = 0; q < queries.size() / kDim; ++q) {
      double most = -INFINITY, missing = 0;
      for (size_t j = 0; j < kEntries; ++j) most = std::max(most, Logit(q, keys.data() + j * kDim));
      for (size_t j = 0; j < kEntries; ++j) {
        if (std::ranges::binary_search(fixed, static_cast<int32_t>(j))) continue;
        missing += std::exp(Logit(q, keys.data() + j * kDim) - most);
      }
      for (size_t j = 0; j < kept.size(); ++j) {
        missing -= std::exp(Logit(q, kept_keys.data() + j * kDim) + biases[j] - most);
      }
      error += missing * missing;
    }
    return error;
  }

  std::vector<float> KeptKeys() const {
    std::vector<float> out;
    for (const int32_t entry : kept) {
      const float* key = keys.data() + static_cast<size_t>(entry) * kDim;
      out.insert(out.end(), key, key + kDim);
    }
    return out;
  }
};

TEST(Match, BiasesBringMassesNearer) {
  for (const bool authors : {false, true}) {
    SCOPED_TRACE(authors);
    const Head head(1, 3);
    const Matched made = MatchKeys({.steps = authors ? 2 : -1}, head.inputs());
    ASSERT_EQ(made.biases.size(), static_cast<size_t>(kKept));
    const std::vector<float> keys = head.KeptKeys();
    const double with = head.MassError(keys, made.biases),
                 without = head.MassError(keys, std::vector<double>(kKept, 0));
    EXPECT_LT(with, 0.3 * without);
    for (const double bias : made.biases) EXPECT_LE(std::abs(bias), 3.0 + 1e-9);
    // The keys that carry them do nearly as well.
    ASSERT_TRUE(made.in_keys);
    const double folded = head.MassError(made.keys, std::vector<double>(kKept, 0));
    EXPECT_LT(folded, 0.5 * without);
    EXPECT_NE(made.keys, keys) << "control";
  }
}

// The best in the bounds: to go on from there in any direction makes it no better.
TEST(Match, NoBetterBiasesAreNear) {
  const Head head(2, 3);
  const Matched made = MatchKeys({.ridge = 0}, head.inputs());
  const std::vector<float> keys = head.KeptKeys();
  const double best = head.MassError(keys, made.biases);
  int worse = 0;
  for (size_t j = 0; j < kKept; ++j) {
    for (const double step : {-0.05, 0.05}) {
      std::vector<double> other = made.biases;
      other[j] = std::clamp(other[j] + step, -3.0, 3.0);
      EXPECT_GE(head.MassError(keys, other), best * (1 - 1e-5));
      worse += head.MassError(keys, other) > best * (1 + 1e-5);
    }
  }
  EXPECT_GT(worse, kKept) << "control: other biases are other masses";
  const Matched still = MatchKeys({.ridge = 1e6}, head.inputs());
  for (const double bias : still.biases) EXPECT_NEAR(bias, 0, 1e-3);
}

TEST(Match, OrderAndDuplicatesOfQueriesDoNotMatter) {
  const Head head(3, 3);
  const std::vector<double> biases = MatchKeys({}, head.inputs()).biases;
  Head turned = head, twice = head;
  for (size_t q = 0; q < kQueries; ++q) {
    std::copy_n(head.queries.data() + q * kDim, kDim, turned.queries.data() + (kQueries - 1 - q) * kDim);
  }
  twice.queries.insert(twice.queries.end(), head.queries.begin(), head.queries.end());
  const std::vector<double> other = MatchKeys({}, turned.inputs()).biases, same = MatchKeys({}, twice.inputs()).biases;
  Head fewer = head;
  fewer.queries.resize(kQueries / 2 * kDim);
  const std::vector<double> half = MatchKeys({}, fewer.inputs()).biases;
  double difference = 0;
  for (size_t j = 0; j < kKept; ++j) {
    EXPECT_NEAR(other[j], biases[j], 1e-4);
    EXPECT_NEAR(same[j], biases[j], 1e-4);
    difference = std::max(difference, std::abs(half[j] - biases[j]));
  }
  EXPECT_GT(difference, 1e-3) << "control";
}

// Keys that a pursuit finds leave less missing than others; with all of them nothing is.
TEST(Match, PursuitFindsKeysThatLeaveLessMissing) {
  Head head(6, 3);
  head.fixed = {head.dropped[3]};
  std::erase(head.dropped, head.fixed[0]);
  const double scored = head.MassError(head.KeptKeys(), MatchKeys({}, head.inputs()).biases);
  for (const int at_once : {1, 4}) {
    std::vector<int32_t> found = PursueKeys({.pursuit = at_once}, kKept, head.inputs());
    ASSERT_LE(found.size(), static_cast<size_t>(kKept));
    Head other = head;
    other.kept = found;
    std::ranges::sort(other.kept);
    EXPECT_EQ(std::ranges::adjacent_find(other.kept), other.kept.end());
    other.dropped.clear();
    for (int32_t i = 0; i < kEntries; ++i) {
      const bool is_free = i != head.fixed[0] && !std::ranges::binary_search(other.kept, i);
      if (is_free) other.dropped.push_back(i);
    }
    EXPECT_EQ(other.dropped.size() + found.size() + 1, static_cast<size_t>(kEntries)) << "the fixed one is left alone";
    EXPECT_LT(other.MassError(other.KeptKeys(), MatchKeys({}, other.inputs()).biases), 0.7 * scored);
  }
}

// Queries that point everywhere share no direction along which a key could be raised for all of them.
TEST(Match, KeysStayWhereQueriesHaveNothingInCommon) {
  Head head(4, 0);
  for (size_t i = 0; i < head.queries.size() / 2; ++i) head.queries[head.queries.size() / 2 + i] = -head.queries[i];
  const Matched made = MatchKeys({}, head.inputs());
  EXPECT_EQ(made.keys, head.KeptKeys());
  EXPECT_FALSE(made.in_keys);
  EXPECT_LT(head.MassError(made.keys, made.biases), 0.5 * head.MassError(made.keys, std::vector<double>(kKept, 0)))
      << "there are biases all the same";
}

// What must stay as it is speaks for nothing else, and its attention is no part of what is missing.
TEST(Match, FixedEntriesAreNoPartOfIt) {
  Head head(5, 3);
  const std::vector<double> before = MatchKeys({}, head.inputs()).biases;
  head.fixed = {head.dropped[0], head.dropped[7], head.dropped[20]};
  std::erase_if(head.dropped, [&](int32_t entry) { return std::ranges::binary_search(head.fixed, entry); });
  const Matched made = MatchKeys({}, head.inputs());
  EXPECT_LT(std::accumulate(made.biases.begin(), made.biases.end(), 0.0),
            std::accumulate(before.begin(), before.end(), 0.0))
      << "less is missing";
  const std::vector<float> keys = head.KeptKeys();
  EXPECT_LT(head.MassError(keys, made.biases), 0.3 * head.MassError(keys, std::vector<double>(kKept, 0)));
}

// The specification's example: keys 1 and 2 of four speak for all.
TEST(Match, ExampleByHand) {
  // Logits of four queries over four keys, as keys in the basis of the queries.
  const std::vector<float> queries = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1},
                           keys = {2, 0, 1, 0, 1, 2, 0, 1, 0, 1, 2, 0, 0, 0, 1, 2}, values = {1, 0, 0, 1, 1, 1, -1, 0};
  const std::vector<int32_t> kept = {1, 2}, dropped = {0, 3};
  const ResidueInputs inputs{.key_dim = 4,
                             .value_dim = 2,
                             .keys = keys.data(),
                             .values = values.data(),
                             .fixed = {},
                             .kept = kept,
                             .dropped = dropped,
                             .queries = ViewOf(queries.data(), 4, 4)};
  const Matched made = MatchKeys({.ridge = 0}, inputs);
  EXPECT_NEAR(made.biases[0], 0.489293, 1e-5);
  EXPECT_NEAR(made.biases[1], 0.500982, 1e-5);
  const std::vector<float> outputs = {0.610296F, 0.30711F,  0.224515F,  0.834811F,
                                      0.534447F, 0.606776F, -0.445107F, 0.30711F};
  for (size_t i = 0; i < 8; ++i) EXPECT_NEAR(made.outputs[i], outputs[i], 1e-5);
  EXPECT_EQ(PursueKeys({.pursuit = 1}, 2, inputs), (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(PursueKeys({.pursuit = 4}, 2, inputs), (std::vector<int32_t>{1, 2})) << "both at once";
  const Matched stepped = MatchKeys({.steps = 2}, inputs);
  EXPECT_NEAR(stepped.biases[0], 0.489293, 1e-5);
  EXPECT_NEAR(stepped.biases[1], 0.500982, 1e-5);
}

// Attention with biases as a channel of its own, so that it is exact.
TEST(Match, ValuesOfTheExample) {
  const std::vector<float> queries = {1, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1, 1};
  const std::vector<float> keys = {1, 2, 0, 1, 0.489293F, 0, 1, 2, 0, 0.500982F};
  const std::vector<float> outputs = {0.610296F, 0.30711F,  0.224515F,  0.834811F,
                                      0.534447F, 0.606776F, -0.445107F, 0.30711F};
  const ResidueInputs inputs{
      .key_dim = 5, .value_dim = 2, .fixed = {}, .kept = {}, .dropped = {}, .queries = ViewOf(queries.data(), 4, 5)};
  std::vector<float> values = {0, 1, 1, 1};
  ASSERT_TRUE(RefitValues(0.1, inputs, ViewOf(keys.data(), 2, 5), 0, outputs, values));
  const std::vector<float> expected = {-0.068643F, 0.462329F, 0.668962F, 0.652138F};
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(values[i], expected[i], 1e-4);
}

}  // namespace
}  // namespace pith
