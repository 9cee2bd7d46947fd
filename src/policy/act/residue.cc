#include "policy/act/residue.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/triangles.h"
#include "policy/act/references.h"
#include "policy/stage.h"

namespace pith {
namespace {

// Least weight of a query in a cluster's regression, as a share of its attention.
constexpr double kLeastShare = 1e-6;
// Added to the covariance of queries.
constexpr double kMetricRidge = 1e-3;

// First pass over the queries: what all entries give, and how much each dropped one gets.
struct Whole {
  std::vector<float> log_sums;  // [N]
  std::vector<float> outputs;   // [N, Dv]
  std::vector<double> weights;  // [dropped] mean over queries of the attention
};

Whole AttendWhole(const References& references, const ResidueInputs& inputs) {
  Whole whole;
  whole.weights.assign(inputs.dropped.size(), 0);
  whole.outputs = AttendAll(references, inputs, [&](const AttentionTile& tile) {
    whole.log_sums.insert(whole.log_sums.end(), tile.log_sums.begin(), tile.log_sums.end());
    for (size_t q = 0; q < tile.count; ++q) {
      const float* row = tile.row(q) + tile.width - inputs.dropped.size();
      for (size_t j = 0; j < inputs.dropped.size(); ++j) whole.weights[j] += static_cast<double>(row[j]);
    }
  });
  for (double& weight : whole.weights) weight /= static_cast<double>(std::max<size_t>(references.size(), 1));
  return whole;
}

// Points whose squared distances are the variances over queries of the differences of keys' logits: L' k with LL' the
// covariance of queries. [rows, D]
std::vector<double> InMetric(const MatrixView& queries, const MatrixView& keys) {
  const size_t dim = queries.columns;
  std::vector<double> mean(dim, 0);
  for (size_t q = 0; q < queries.rows; ++q) {
    for (size_t d = 0; d < dim; ++d)
      mean[d] += static_cast<double>(queries.row(q)[d]) / static_cast<double>(queries.rows);
  }
  std::vector<float> centred(queries.rows * dim), triangle(kernels::TriangleSize(static_cast<int>(dim)), 0.0F);
  for (size_t q = 0; q < queries.rows; ++q) {
    for (size_t d = 0; d < dim; ++d)
      centred[q * dim + d] = static_cast<float>(static_cast<double>(queries.row(q)[d]) - mean[d]);
  }
  kernels::AddOuterProducts(centred.data(), static_cast<int>(queries.rows), static_cast<int>(dim), triangle.data());
  std::vector<double> factor(dim * dim, 0);
  for (size_t i = 0; i < dim; ++i) {
    for (size_t j = 0; j <= i; ++j) {
      factor[i * dim + j] = static_cast<double>(triangle[kernels::TriangleSize(static_cast<int>(i)) + j]) /
                            static_cast<double>(queries.rows);
    }
    factor[i * dim + i] += kMetricRidge;
  }
  std::vector<double> points(keys.rows * dim, 0);
  if (!FactorSmall(factor, dim)) std::fill(factor.begin(), factor.end(), 0.0);  // all keys are alike then
  for (size_t k = 0; k < keys.rows; ++k) {
    double* point = points.data() + k * dim;
    for (size_t i = 0; i < dim; ++i) {
      const auto x = static_cast<double>(keys.row(k)[i]);
      for (size_t j = 0; j <= i; ++j) point[j] += factor[i * dim + j] * x;
    }
  }
  return points;
}

double SquaredDistance(const double* a, const double* b, size_t dim) {
  double sum = 0;
  for (size_t d = 0; d < dim; ++d) sum += (a[d] - b[d]) * (a[d] - b[d]);
  return sum;
}

// Labels of points [n, dim], from the heaviest ones as first centres.
std::vector<int32_t> Cluster(const std::vector<double>& points, size_t dim, const std::vector<double>& weights,
                             size_t count, int rounds) {
  std::vector<int32_t> heaviest(weights.size());
  std::iota(heaviest.begin(), heaviest.end(), 0);
  std::stable_sort(heaviest.begin(), heaviest.end(), [&](int32_t a, int32_t b) {
    return weights[static_cast<size_t>(a)] > weights[static_cast<size_t>(b)];
  });
  std::vector<double> centres;
  for (size_t c = 0; c < count; ++c) {
    const double* point = points.data() + static_cast<size_t>(heaviest[c]) * dim;
    centres.insert(centres.end(), point, point + dim);
  }
  std::vector<int32_t> labels(weights.size(), 0);
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < labels.size(); ++i) {
      double nearest = std::numeric_limits<double>::infinity();
      for (size_t c = 0; c < count; ++c) {
        const double distance = SquaredDistance(points.data() + i * dim, centres.data() + c * dim, dim);
        if (distance < nearest) nearest = distance, labels[i] = static_cast<int32_t>(c);
      }
    }
    std::vector<double> sums(count * dim, 0), totals(count, 0);
    for (size_t i = 0; i < labels.size(); ++i) {
      const auto c = static_cast<size_t>(labels[i]);
      totals[c] += weights[i];
      for (size_t d = 0; d < dim; ++d) sums[c * dim + d] += weights[i] * points[i * dim + d];
    }
    for (size_t c = 0; c < count; ++c) {
      for (size_t d = 0; d < dim && totals[c] > 0; ++d) centres[c * dim + d] = sums[c * dim + d] / totals[c];
    }
  }
  return labels;
}

// The regression of one cluster's key, and the sums for its value.
struct ClusterSums {
  std::vector<float> triangle;  // sum of rho q q'
  std::vector<double> right;    // sum of rho q times the logit that it shall have
  double share = 0;             // sum of rho times the cluster's share of attention
};

// Second pass over the queries, and what it gathers of the clusters.
class ClusterFit {
 public:
  ClusterFit(const ResidueInputs& inputs, const std::vector<int32_t>& labels, size_t count)
      : inputs_(inputs),
        labels_(labels),
        dim_(static_cast<size_t>(inputs.key_dim)),
        keys_(RowsOf(inputs.keys, inputs.key_dim, inputs.dropped)),
        sums_(count),
        entry_sums_(labels.size(), 0) {
    for (ClusterSums& sums : sums_) {
      sums.triangle.assign(kernels::TriangleSize(inputs.key_dim), 0.0F);
      sums.right.assign(dim_, 0);
    }
  }

  void Run(const References& references, const std::vector<float>& log_sums) {
    for (size_t from = 0; from < references.size(); from += kReferenceTile) {
      RunTile(references, std::min(kReferenceTile, references.size() - from), from, log_sums);
    }
  }

  // The cluster's key to `key` and value to `value`. False: its regression has no solution.
  bool Solve(const ResidueOptions& options, size_t c, float* key, float* value) const {
    const ClusterSums& sums = sums_[c];
    std::vector<double> right = sums.right;
    if (!SolveTriangle(sums.triangle, dim_, options.key_ridge, right)) return false;
    for (size_t d = 0; d < dim_; ++d) key[d] = static_cast<float>(right[d]);
    const auto value_dim = static_cast<size_t>(inputs_.value_dim);
    std::vector<double> mean(value_dim, 0);
    for (size_t j = 0; j < labels_.size(); ++j) {
      if (static_cast<size_t>(labels_[j]) != c) continue;
      const float* own = inputs_.values + static_cast<size_t>(inputs_.dropped[j]) * value_dim;
      for (size_t d = 0; d < value_dim; ++d) mean[d] += entry_sums_[j] * static_cast<double>(own[d]);
    }
    for (size_t d = 0; d < value_dim; ++d) value[d] = static_cast<float>(mean[d] / sums.share);
    return sums.share > 0;
  }

 private:
  void RunTile(const References& references, size_t count, size_t from, const std::vector<float>& log_sums) {
    const size_t n = labels_.size(), clusters = sums_.size();
    references.Logits(from, count, ViewOf(keys_.data(), n, dim_), weights_);
    // Where a share is too small for a number, its largest term tells how small.
    largest_.assign(count * clusters, -std::numeric_limits<float>::infinity());
    for (size_t q = 0; q < count; ++q) {
      for (size_t j = 0; j < n; ++j) {
        float& largest = largest_[q * clusters + static_cast<size_t>(labels_[j])];
        largest = std::max(largest, weights_[q * n + j]);
      }
    }
    References::Softmax(weights_, count, dropped_log_sums_);
    shares_.assign(count * clusters, 0);
    for (size_t q = 0; q < count; ++q) {
      const double factor =
          std::exp2(static_cast<double>(dropped_log_sums_[q]) - static_cast<double>(log_sums[from + q]));
      double* shares = shares_.data() + q * clusters;
      const float* row = weights_.data() + q * n;
      for (size_t j = 0; j < n; ++j) shares[labels_[j]] += factor * static_cast<double>(row[j]);
      for (size_t j = 0; j < n; ++j) {
        entry_sums_[j] += std::max(shares[labels_[j]], kLeastShare) * factor * static_cast<double>(row[j]);
      }
    }
    for (size_t c = 0; c < clusters; ++c) AddToRegression(references, count, from, log_sums, c);
  }

  void AddToRegression(const References& references, size_t count, size_t from, const std::vector<float>& log_sums,
                       size_t c) {
    const MatrixView queries = references.scaled(from, count);
    ClusterSums& sums = sums_[c];
    rows_.resize(count * dim_);
    for (size_t q = 0; q < count; ++q) {
      const double share = shares_[q * sums_.size() + c], weight = std::max(share, kLeastShare);
      const double logit = std::max(std::log2(share) + static_cast<double>(log_sums[from + q]),
                                    static_cast<double>(largest_[q * sums_.size() + c]));
      const double wanted = std::isfinite(logit) ? references.Uncapped(logit) : 0;
      const auto root = static_cast<float>(std::isfinite(logit) ? std::sqrt(weight) : 0);
      sums.share += weight * share;
      for (size_t d = 0; d < dim_; ++d) {
        rows_[q * dim_ + d] = root * queries.row(q)[d];
        sums.right[d] += weight * wanted * static_cast<double>(queries.row(q)[d]);
      }
    }
    kernels::AddOuterProducts(rows_.data(), static_cast<int>(count), inputs_.key_dim, sums.triangle.data());
  }

  const ResidueInputs& inputs_;
  const std::vector<int32_t>& labels_;
  const size_t dim_;
  const std::vector<float> keys_;  // [dropped, D]
  std::vector<ClusterSums> sums_;
  std::vector<double> entry_sums_;  // [dropped] sum over queries of rho times its attention
  std::vector<float> weights_, dropped_log_sums_, largest_, rows_;
  std::vector<double> shares_;  // [tile, clusters] of a query's attention over all entries
};

bool AllFinite(std::span<const float> numbers) {
  return std::ranges::all_of(numbers, [](float x) { return std::isfinite(x); });
}

class Residue final : public Action {
 public:
  explicit Residue(const ResidueOptions& options) : options_(options) {}
  const ResidueOptions* residue() const override { return &options_; }

 private:
  ResidueOptions options_;
};

}  // namespace

Residues MakeResidues(const ResidueOptions& options, int count, const ResidueInputs& inputs) {
  const References references(inputs.queries, inputs.scale, inputs.soft_cap);
  Whole whole = AttendWhole(references, inputs);
  const auto key_dim = static_cast<size_t>(inputs.key_dim), value_dim = static_cast<size_t>(inputs.value_dim);
  const size_t clusters = std::min(static_cast<size_t>(std::max(count, 0)), inputs.dropped.size());
  Residues made;
  made.outputs = std::move(whole.outputs);
  made.weights = whole.weights;
  if (clusters == 0) return made;
  const std::vector<float> keys = RowsOf(inputs.keys, inputs.key_dim, inputs.dropped);
  made.labels = Cluster(InMetric(inputs.queries, ViewOf(keys.data(), inputs.dropped.size(), key_dim)), key_dim,
                        whole.weights, clusters, options.rounds);
  ClusterFit fit(inputs, made.labels, clusters);
  fit.Run(references, whole.log_sums);
  std::vector<float> key(key_dim), value(value_dim);
  for (size_t c = 0; c < clusters; ++c) {
    int32_t heaviest = -1;
    for (size_t j = 0; j < made.labels.size(); ++j) {
      if (static_cast<size_t>(made.labels[j]) != c) continue;
      if (heaviest < 0 || whole.weights[j] > whole.weights[static_cast<size_t>(heaviest)])
        heaviest = static_cast<int32_t>(j);
    }
    if (heaviest < 0 || !fit.Solve(options, c, key.data(), value.data()) || !AllFinite(key) || !AllFinite(value))
      continue;
    made.members.push_back(inputs.dropped[static_cast<size_t>(heaviest)]);
    made.keys.insert(made.keys.end(), key.begin(), key.end());
    made.values.insert(made.values.end(), value.begin(), value.end());
  }
  return made;
}

bool RefitValues(double ridge, const ResidueInputs& inputs, const MatrixView& keys, size_t num_fixed,
                 const std::vector<float>& outputs, std::span<float> values) {
  const References references(inputs.queries, inputs.scale, inputs.soft_cap);
  const size_t n = references.size(), u = keys.rows, value_dim = static_cast<size_t>(inputs.value_dim);
  if (n == 0 || u <= num_fixed) return false;
  std::vector<float> weights(n * u), tile, log_sums;
  for (size_t from = 0; from < n; from += kReferenceTile) {
    const size_t count = std::min(kReferenceTile, n - from);
    references.Logits(from, count, keys, tile);
    References::Softmax(tile, count, log_sums);
    std::ranges::copy(tile, weights.begin() + static_cast<ptrdiff_t>(from * u));
  }
  const std::vector<float> channels = Transposed(ViewOf(values.data(), u, value_dim));
  std::vector<float> missing(n * value_dim), change((u - num_fixed) * value_dim);
  ProductsOfRows(ViewOf(weights.data(), n, u), ViewOf(channels.data(), value_dim, u), missing.data(), value_dim, false);
  for (size_t i = 0; i < missing.size(); ++i) missing[i] = outputs[i] - missing[i];
  const MatrixView movable = {weights.data() + num_fixed, n, u - num_fixed, u};
  const bool solved = RidgeRegression(movable, ViewOf(missing.data(), n, value_dim), ridge, change);
  if (!solved || !AllFinite(change)) return false;
  for (size_t i = 0; i < change.size(); ++i) values[num_fixed * value_dim + i] += change[i];
  return true;
}

StageInfo<Action> ResidueStage() {
  return {
      "a few entries of each head stand in for those that do not stay: their keys follow the mass of clusters of "
      "these; none where attention falls with distance (ALiBi), nor, block by block, where entries do not arrive in "
      "f16",
      {IntParam("r", 4, 1, 32, "entries of each head that stand for what is dropped"),
       IntParam("rows", 2000, 64, 65536, "queries of the second reading, of each kv head, that they are fitted to"),
       IntParam("refit", 1, 0, 1, "1: values of all entries are fitted so that outputs stay as they were"),
       ChoiceParam("low", "q4/q2|q3", "what format=auto takes last: values that speak for others bear two bits badly")},
      [](const Params& p) -> std::unique_ptr<Action> {
        ResidueOptions options{.entries = p.Int("r"), .rows = p.Int("rows"), .refits = p.Int("refit") == 1};
        if (p.Choice("low") == 1) options.auto_last = KvFormat::kQ3;
        return std::make_unique<Residue>(options);
      }};
}

}  // namespace pith
