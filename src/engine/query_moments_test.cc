// Running moments of queries that were turned by their positions, and the recipe that reads them, against the formula
// of kvpress' ExpectedAttentionPress in double precision from the queries before RoPE.
#include "engine/query_moments.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/triangles.h"
#include "policy/policy.h"

namespace pith {
namespace {

constexpr int kTokens = 150, kHeads = 2, kDim = 16, kFuture = 512, kSinks = 4;
using Matrix = std::vector<std::vector<double>>;

struct Sample {
  Rotation rotation;
  std::vector<Matrix> queries;  // [heads][tokens][dim], before RoPE
  Matrix keys, values;
};

Sample MakeSample() {
  Sample sample;
  std::mt19937 random(9);
  std::normal_distribution<double> normal;
  // Pairs as halves, the way of transformers.
  for (int p = 0; p < kDim / 2; ++p)
    sample.rotation.pairs.push_back({p, p + kDim / 2, std::pow(10000.0, -2.0 * p / kDim)});
  for (int h = 0; h < kHeads; ++h) {
    std::vector<double> centre(kDim), spread(kDim);
    for (int d = 0; d < kDim; ++d) centre[d] = 2 * normal(random), spread[d] = std::abs(normal(random));
    Matrix& rows = sample.queries.emplace_back();
    for (int t = 0; t < kTokens; ++t) {
      std::vector<double>& row = rows.emplace_back();
      const double common = normal(random), outlier = t < kSinks ? 20 : 1;
      for (int d = 0; d < kDim; ++d) row.push_back(outlier * (centre[d] + spread[d] * normal(random) + 0.3 * common));
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (Matrix* rows : {&sample.keys, &sample.values}) {
      std::vector<double>& row = rows->emplace_back();
      for (int d = 0; d < kDim; ++d) row.push_back(normal(random));
    }
  }
  return sample;
}

// A row of a query as attention sees it.
std::vector<float> Turned(const Sample& sample, int head, int position, bool turn) {
  const std::vector<double>& row = sample.queries[static_cast<size_t>(head)][static_cast<size_t>(position)];
  std::vector<float> out(row.begin(), row.end());
  for (const RotatedPair& pair : sample.rotation.pairs) {
    if (!turn) break;
    const double c = std::cos(pair.angle * position), s = std::sin(pair.angle * position);
    out[pair.real] = static_cast<float>(c * row[pair.real] - s * row[pair.imaginary]);
    out[pair.imaginary] = static_cast<float>(s * row[pair.real] + c * row[pair.imaginary]);
  }
  return out;
}

// Mean rotation over the positions to come, as a matrix.
Matrix MeanRotation(const Sample& sample) {
  Matrix r(kDim, std::vector<double>(kDim));
  for (int i = 0; i < kFuture; ++i) {
    for (const RotatedPair& pair : sample.rotation.pairs) {
      const double c = std::cos(pair.angle * (kTokens + i)) / kFuture,
                   s = std::sin(pair.angle * (kTokens + i)) / kFuture;
      r[pair.real][pair.real] += c, r[pair.imaginary][pair.imaginary] += c;
      r[pair.real][pair.imaginary] -= s, r[pair.imaginary][pair.real] += s;
    }
  }
  return r;
}

std::vector<double> Times(const Matrix& matrix, const std::vector<double>& x) {
  std::vector<double> y(kDim);
  for (int i = 0; i < kDim; ++i) {
    for (int k = 0; k < kDim; ++k) y[i] += matrix[i][k] * x[k];
  }
  return y;
}

// Scores of the entries after the sinks.
std::vector<double> Reference(const Sample& sample, bool covariance, bool value_norm, double epsilon) {
  const Matrix r = MeanRotation(sample);
  Matrix transposed = r;
  for (int i = 0; i < kDim; ++i) {
    for (int k = 0; k < kDim; ++k) transposed[i][k] = r[k][i];
  }
  std::vector<double> scores(kTokens - kSinks);
  for (const Matrix& rows : sample.queries) {
    const double n = kTokens - kSinks;
    std::vector<double> mean(kDim);
    for (int t = kSinks; t < kTokens; ++t) {
      for (int d = 0; d < kDim; ++d) mean[d] += rows[t][d] / n;
    }
    Matrix cov(kDim, std::vector<double>(kDim));
    for (int t = kSinks; t < kTokens; ++t) {
      for (int i = 0; i < kDim; ++i) {
        for (int k = 0; k < kDim; ++k) cov[i][k] += (rows[t][i] - mean[i]) * (rows[t][k] - mean[k]) / n;
      }
    }
    const std::vector<double> future = Times(r, mean);
    std::vector<double> logits;
    for (int t = kSinks; t < kTokens; ++t) {
      const std::vector<double> back = Times(transposed, sample.keys[t]), spread = Times(cov, back);
      double linear = 0, square = 0;
      for (int d = 0; d < kDim; ++d) linear += future[d] * sample.keys[t][d], square += back[d] * spread[d];
      logits.push_back(linear / std::sqrt(kDim) + (covariance ? square / kDim / 2 : 0));
    }
    const double most = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const double logit : logits) sum += std::exp(logit - most);
    for (size_t j = 0; j < logits.size(); ++j) scores[j] += std::exp(logits[j] - most) / sum / kHeads;
  }
  for (size_t j = 0; j < scores.size() && value_norm; ++j) {
    double length = 0;
    for (const double x : sample.values[j + kSinks]) length += x * x;
    scores[j] = (scores[j] + epsilon) * std::sqrt(length);
  }
  return scores;
}

// What the recipe makes of moments that were gathered in blocks.
std::vector<float> Ours(const Sample& sample, const std::string& recipe, int block, bool turn, bool unturn) {
  QueryMoments moments({.num_layers = 2, .num_heads = kHeads, .key_dim = kDim});
  std::vector<float> means, covariances, factors(kDim), keys, values;
  for (int h = 0; h < kHeads; ++h) {
    for (int from = kUncountedQueries; from < kTokens; from += block) {
      std::vector<float> rows;
      for (int t = from; t < std::min(from + block, kTokens); ++t) {
        std::vector<float> row = Turned(sample, h, t, turn);
        sample.rotation.Unturn(t, factors);
        if (unturn) sample.rotation.Apply(factors, row.data());
        rows.insert(rows.end(), row.begin(), row.end());
      }
      moments.Add(1, h, from - kUncountedQueries, rows.data(), static_cast<int>(rows.size()) / kDim, kDim);
    }
    means.insert(means.end(), moments.mean(1, h), moments.mean(1, h) + kDim);
    covariances.resize(covariances.size() + kernels::TriangleSize(kDim));
    moments.Covariance(1, h, kTokens - kUncountedQueries, kDim, &covariances.back() + 1 - kernels::TriangleSize(kDim));
  }
  std::vector<int32_t> positions;
  for (int t = 0; t < kTokens; ++t) {
    positions.push_back(t);
    keys.insert(keys.end(), sample.keys[t].begin(), sample.keys[t].end());
    values.insert(values.end(), sample.values[t].begin(), sample.values[t].end());
  }
  HeadInputs head;
  head.num_entries = kTokens;
  head.positions = positions;
  head.keys = keys.data(), head.values = values.data();
  head.query_means = means.data(), head.query_covariances = covariances.data();
  LayerInputs layer;
  layer.num_layers = 1;
  layer.group = kHeads;
  layer.key_dim = layer.value_dim = kDim;
  layer.next_position = kTokens;
  layer.attention_scale = 1 / std::sqrt(static_cast<float>(kDim));
  layer.rotation = &sample.rotation;
  layer.heads = {&head, 1};
  LayerScores scores;
  ParseRecipe(recipe)->policy->Score(layer, scores);
  return scores.heads.front();
}

// Largest relative difference after the sinks.
double Difference(const std::vector<float>& ours, const std::vector<double>& reference) {
  double most = 0;
  for (size_t j = 0; j < reference.size(); ++j) {
    most = std::max(most, std::abs(ours[j + kSinks] - reference[j]) / reference[j]);
  }
  return most;
}

TEST(QueryMoments, ExpectedAttentionIsTheAuthorsFormula) {
  const Sample sample = MakeSample();
  const std::vector<double> reference = Reference(sample, true, true, 0);
  for (const int block : {1, 7, 32, kTokens}) {
    const std::vector<float> ours = Ours(sample, "expectedattention", block, true, true);
    EXPECT_LT(Difference(ours, reference), 2e-4) << block;
    for (int t = 0; t < kSinks; ++t) EXPECT_TRUE(std::isinf(ours[static_cast<size_t>(t)]));
  }
  EXPECT_LT(
      Difference(Ours(sample, "expectedattention:covariance=0", 32, true, true), Reference(sample, false, true, 0)),
      2e-4);
  EXPECT_LT(Difference(Ours(sample, "expectedattention:vnorm=0", 32, true, true), Reference(sample, true, false, 0)),
            2e-4);
  EXPECT_LT(
      Difference(Ours(sample, "expectedattention:epsilon=0.02", 32, true, true), Reference(sample, true, true, 0.02)),
      2e-4);
}

TEST(QueryMoments, TheDifferenceTells) {
  const Sample sample = MakeSample();
  const std::vector<double> reference = Reference(sample, true, true, 0);
  EXPECT_GT(Difference(Ours(sample, "expectedattention", 32, true, false), reference), 0.1)
      << "queries left as they were turned";
  EXPECT_GT(Difference(Ours(sample, "expectedattention:future=1", 32, true, true), reference), 0.1);
  EXPECT_GT(Difference(Ours(sample, "expectedattention:covariance=0", 32, true, true), reference), 0.1);
  EXPECT_GT(Difference(Ours(sample, "expectedattention:vnorm=0", 32, true, true), reference), 0.1);
}

// Means far larger than the spread are where sums of squares would lose it.
TEST(QueryMoments, KeepTheSpreadOfQueriesFarFromZero) {
  QueryMoments moments({.num_layers = 1, .num_heads = 1, .key_dim = 1});
  for (int t = 0; t < 4000; ++t) {
    float row = 1000 + static_cast<float>(t % 2 == 0 ? 1 : -1);
    moments.Add(0, 0, t, &row, 1, 1);
  }
  float variance = 0;
  moments.Covariance(0, 0, 4000, 1, &variance);
  EXPECT_NEAR(variance, 1, 0.01);
  EXPECT_NEAR(*moments.mean(0, 0), 1000, 0.01);
}

}  // namespace
}  // namespace pith
