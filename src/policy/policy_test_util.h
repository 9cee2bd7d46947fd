// Layers of random tensors for tests of policies.
#ifndef PITH_POLICY_POLICY_TEST_UTIL_H_
#define PITH_POLICY_POLICY_TEST_UTIL_H_

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/triangles.h"
#include "policy/policy.h"

namespace pith {

struct LayerShapeForTest {
  std::vector<int> entries = {40, 40, 40};  // of each kv head
  int layer = 0;
  int num_layers = 1;
  int group = 2;
  int dim = 8;
  int window = 6;  // queries observed
  int pinned = 0;  // first entries, and one in the middle
  bool same_keys = false;
  bool zero_values = false;
  bool gaps = false;  // positions are not contiguous and differ between heads
};

// Owns what LayerInputs borrows.
class TestLayer {
 public:
  TestLayer(const LayerShapeForTest& shape, const Policy& policy, uint32_t seed)
      : shape_(shape), random_(seed), heads_(shape.entries.size()), inputs_(shape.entries.size()) {
    for (int d = 0; d + 1 < shape.dim; d += 2) rotation_.pairs.push_back({d, d + 1, std::pow(0.1, d)});
    for (size_t h = 0; h < heads_.size(); ++h) Fill(h, policy);
    for (size_t h = 0; h < heads_.size(); ++h) Observe(h, policy);
  }
  TestLayer(const TestLayer&) = delete;

  LayerInputs inputs() const {
    LayerInputs layer;
    layer.layer = shape_.layer;
    layer.num_layers = shape_.num_layers;
    layer.group = shape_.group;
    layer.key_dim = shape_.dim;
    layer.value_dim = shape_.dim;
    layer.window = shape_.window;
    layer.seed = 7;
    layer.next_position = 1001;
    layer.attention_scale = 1 / std::sqrt(static_cast<float>(shape_.dim));
    layer.rotation = &rotation_;
    layer.heads = inputs_;
    return layer;
  }

  const HeadInputs& head(size_t h) const { return inputs_[h]; }

 private:
  struct Head {
    std::vector<int32_t> positions;
    std::vector<uint8_t> pinned;
    std::vector<float> keys, values, queries, probs, norms, means, covariances;
    std::vector<std::vector<float>> columns;
    std::vector<float*> pointers;
  };

  float Normal() { return std::normal_distribution<float>()(random_); }

  void Fill(size_t h, const Policy& policy) {
    Head& head = heads_[h];
    const auto n = static_cast<size_t>(shape_.entries[h]);
    const auto dim = static_cast<size_t>(shape_.dim);
    // The newest entry of every head is the same token.
    const int32_t newest = 1000;
    head.positions.resize(n);
    for (size_t i = n; i-- > 0;) {
      const int32_t gap = shape_.gaps ? 1 + static_cast<int32_t>(random_() % 3) : 1;
      head.positions[i] = i + 1 == n ? newest : head.positions[i + 1] - gap;
    }
    head.pinned.assign(n, 0);
    for (size_t i = 0; i < n && i < static_cast<size_t>(shape_.pinned); ++i) head.pinned[i] = 1;
    if (shape_.pinned > 0 && n > 0) head.pinned[n / 2] = 1;
    for (size_t i = 0; i < n * dim; ++i) {
      head.keys.push_back(shape_.same_keys ? 0.5F : Normal());
      head.values.push_back(shape_.zero_values ? 0.0F : Normal());
    }
    for (size_t i = 0; i < n; ++i) head.norms.push_back(shape_.zero_values ? 0.0F : std::abs(Normal()));
    const auto rows = static_cast<size_t>(shape_.group * shape_.window);
    for (size_t i = 0; i < rows * dim; ++i) head.queries.push_back(2 * Normal());
    for (int g = 0; g < shape_.group; ++g) {
      for (int t = 0; t < shape_.window; ++t) {
        AddRow(head, (static_cast<size_t>(g * shape_.window + t)) * dim, newest - shape_.window + 1 + t);
      }
    }
    HeadInputs& in = inputs_[h];
    in.num_entries = shape_.entries[h];
    in.positions = head.positions;
    if (shape_.pinned > 0) in.pinned = head.pinned;
    in.keys = head.keys.data();
    in.values = head.values.data();
    in.window_queries = head.queries.data();
    in.window_probs = head.probs.data();
    in.value_norms = head.norms.data();
    FillMoments(head);
    in.query_means = head.means.data();
    in.query_covariances = head.covariances.data();
    for (const ColumnSpec& spec : policy.columns()) head.columns.emplace_back(n, spec.initial);
    for (auto& column : head.columns) head.pointers.push_back(column.data());
    in.columns = head.pointers;
  }

  // Of the window's queries, as if they were all that there were.
  void FillMoments(Head& head) {
    const int dim = shape_.dim, rows = std::max(shape_.window, 1);
    for (int g = 0; g < shape_.group; ++g) {
      const float* queries = head.queries.data() + static_cast<size_t>(g * shape_.window * dim);
      std::vector<float> mean(static_cast<size_t>(dim), 0.0F), triangle(kernels::TriangleSize(dim), 0.0F);
      for (int i = 0; i < shape_.window * dim; ++i)
        mean[static_cast<size_t>(i % dim)] += queries[i] / static_cast<float>(rows);
      std::vector<float> centred(queries, queries + shape_.window * dim);
      for (size_t i = 0; i < centred.size(); ++i) centred[i] -= mean[i % static_cast<size_t>(dim)];
      kernels::AddOuterProductsScalar(centred.data(), shape_.window, dim, triangle.data());
      for (float& x : triangle) x /= static_cast<float>(rows);
      head.means.insert(head.means.end(), mean.begin(), mean.end());
      head.covariances.insert(head.covariances.end(), triangle.begin(), triangle.end());
    }
  }

  void AddRow(Head& head, size_t query, int32_t position) {
    const auto dim = static_cast<size_t>(shape_.dim);
    std::vector<double> row;
    double sum = 0;
    for (size_t j = 0; j < head.positions.size(); ++j) {
      double dot = 0;
      for (size_t d = 0; d < dim; ++d) {
        dot += static_cast<double>(head.queries[query + d]) * static_cast<double>(head.keys[j * dim + d]);
      }
      row.push_back(head.positions[j] > position ? 0.0 : std::exp(dot / std::sqrt(static_cast<double>(dim))));
      sum += row.back();
    }
    for (double x : row) head.probs.push_back(sum > 0 ? static_cast<float>(x / sum) : 0.0F);
  }

  // The window's queries are all the queries that there were.
  void Observe(size_t h, const Policy& policy) {
    if ((policy.needs() & kNeedEveryQuery) == 0 || shape_.window == 0 || shape_.entries[h] == 0) return;
    std::vector<int32_t> queries;
    for (int t = 0; t < shape_.window; ++t) queries.push_back(1000 - shape_.window + 1 + t);
    Observation seen;
    seen.layer = shape_.layer;
    seen.kv_head = static_cast<int>(h);
    seen.group = shape_.group;
    seen.num_queries = shape_.window;
    seen.num_entries = shape_.entries[h];
    seen.probabilities = heads_[h].probs.data();
    seen.query_positions = queries;
    seen.positions = heads_[h].positions;
    policy.Observe(seen, heads_[h].pointers);
  }

  LayerShapeForTest shape_;
  std::mt19937 random_;
  Rotation rotation_;
  std::vector<Head> heads_;
  std::vector<HeadInputs> inputs_;
};

}  // namespace pith

#endif  // PITH_POLICY_POLICY_TEST_UTIL_H_
