// Attention of reference queries, those of a second reading, over the entries of one head: what actions fit entries to.
#ifndef PITH_POLICY_ACT_REFERENCES_H_
#define PITH_POLICY_ACT_REFERENCES_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <span>
#include <vector>

#include "kernels/page_kernels.h"
#include "policy/act/least_squares.h"
#include "policy/act/residue.h"

namespace pith {

// Queries whose attention is held at once.
inline constexpr size_t kReferenceTile = 128;

// Those rows [n, dim] one behind another.
inline std::vector<float> RowsOf(const float* rows, int dim, std::span<const int32_t> indices) {
  const auto width = static_cast<size_t>(dim);
  std::vector<float> out(indices.size() * width);
  for (size_t i = 0; i < indices.size(); ++i) {
    std::copy_n(rows + static_cast<size_t>(indices[i]) * width, width, out.data() + i * width);
  }
  return out;
}

// Attention over some keys, in units of log2.
class References {
 public:
  References(const MatrixView& queries, float scale, float soft_cap)
      : cap_(static_cast<double>(soft_cap) * std::numbers::log2e),
        rows_(queries.rows * queries.columns),
        queries_(queries) {
    const float factor = scale * std::numbers::log2e_v<float>;
    for (size_t q = 0; q < queries.rows; ++q) {
      for (size_t d = 0; d < queries.columns; ++d) rows_[q * queries.columns + d] = queries.row(q)[d] * factor;
    }
  }

  size_t size() const { return queries_.rows; }
  // Those whose products with keys are logits.
  MatrixView scaled(size_t first, size_t count) const {
    return ViewOf(rows_.data() + first * queries_.columns, count, queries_.columns);
  }

  // logits [count, keys]
  void Logits(size_t first, size_t count, const MatrixView& keys, std::vector<float>& logits) const {
    logits.resize(count * keys.rows);
    ProductsOfRows(scaled(first, count), keys, logits.data(), keys.rows, false);
    if (cap_ == 0) return;
    for (float& logit : logits) logit = static_cast<float>(cap_ * std::tanh(static_cast<double>(logit) / cap_));
  }

  // Logits become weights whose sum is 1; log_sums [count]: the logarithm of what they were divided by.
  static void Softmax(std::vector<float>& logits, size_t count, std::vector<float>& log_sums) {
    const size_t width = logits.size() / std::max<size_t>(count, 1);
    log_sums.resize(count);
    for (size_t q = 0; q < count; ++q) {
      float* row = logits.data() + q * width;
      const size_t best = static_cast<size_t>(std::max_element(row, row + width) - row);
      const float most = row[best];
      kernels::GetPageKernels().softmax_row(row, static_cast<int64_t>(width), -std::numeric_limits<float>::infinity());
      log_sums[q] = most - std::log2(row[best]);
    }
  }

  // What a product with a key must be for this logit.
  double Uncapped(double logit) const {
    // How near to a soft cap a logit may come that shall be reached.
    constexpr double kMostOfCap = 0.999;
    return cap_ == 0 ? logit : cap_ * std::atanh(std::clamp(logit / cap_, -kMostOfCap, kMostOfCap));
  }

 private:
  double cap_;
  std::vector<float> rows_;
  MatrixView queries_;
};

// Of queries [first, first + count) over the fixed, the kept and the dropped entries, in this order.
struct AttentionTile {
  size_t first = 0, count = 0, width = 0;
  std::vector<float> weights;   // [count, width]
  std::vector<float> log_sums;  // [count]

  const float* row(size_t q) const { return weights.data() + q * width; }
};

// Outputs [N, Dv] over all entries; visit(tile) sees the weights on the way.
template <typename Visit>
std::vector<float> AttendAll(const References& references, const ResidueInputs& inputs, const Visit& visit) {
  std::vector<int32_t> block(inputs.fixed.begin(), inputs.fixed.end());
  block.insert(block.end(), inputs.kept.begin(), inputs.kept.end());
  block.insert(block.end(), inputs.dropped.begin(), inputs.dropped.end());
  const auto value_dim = static_cast<size_t>(inputs.value_dim);
  const std::vector<float> keys = RowsOf(inputs.keys, inputs.key_dim, block);
  const std::vector<float> values = RowsOf(inputs.values, inputs.value_dim, block);
  const std::vector<float> channels = Transposed(ViewOf(values.data(), block.size(), value_dim));
  std::vector<float> outputs(references.size() * value_dim);
  AttentionTile tile{.width = block.size(), .weights = {}, .log_sums = {}};
  for (size_t from = 0; from < references.size(); from += kReferenceTile) {
    tile.first = from;
    tile.count = std::min(kReferenceTile, references.size() - from);
    references.Logits(from, tile.count, ViewOf(keys.data(), block.size(), static_cast<size_t>(inputs.key_dim)),
                      tile.weights);
    References::Softmax(tile.weights, tile.count, tile.log_sums);
    visit(tile);
    ProductsOfRows(ViewOf(tile.weights.data(), tile.count, block.size()),
                   ViewOf(channels.data(), value_dim, block.size()), outputs.data() + from * value_dim, value_dim,
                   false);
  }
  return outputs;
}

}  // namespace pith

#endif  // PITH_POLICY_ACT_REFERENCES_H_
