#include "policy/rkv_terms.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/last_alike.h"
#include "policy/select.h"

namespace pith {
namespace {

void SoftmaxInPlace(std::span<float> x) {
  if (x.empty()) return;
  const float most = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (float& v : x) {
    v = std::exp(v - most);
    sum += static_cast<double>(v);
  }
  for (float& v : x) v = static_cast<float>(static_cast<double>(v) / sum);
}

// Eight sums side by side, which the compiler may keep in one vector.
float Dot(const float* a, const float* b, size_t dim) {
  float sums[8] = {};
  size_t d = 0;
  for (; d + 8 <= dim; d += 8) {
    for (size_t k = 0; k < 8; ++k) sums[k] += a[d + k] * b[d + k];
  }
  for (; d < dim; ++d) sums[0] += a[d] * b[d];
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

// Keys at unit length, transposed, with room for whole vectors: [dim, stride].
std::vector<float> UnitColumns(const float* keys, size_t n, size_t dim, size_t stride) {
  std::vector<float> columns(dim * stride, 0.0F);
  for (size_t i = 0; i < n; ++i) {
    const float* key = keys + i * dim;
    float squares = 0;
    for (size_t d = 0; d < dim; ++d) squares += key[d] * key[d];
    const float scale = 1 / (std::sqrt(squares) + 1e-8F);
    for (size_t d = 0; d < dim; ++d) columns[d * stride + i] = key[d] * scale;
  }
  return columns;
}

}  // namespace

std::vector<float> RkvImportance(const LayerInputs& layer, const HeadInputs& head, int rows, size_t columns, int pool) {
  const auto dim = static_cast<size_t>(layer.key_dim);
  const float scale = 1 / std::sqrt(static_cast<float>(layer.key_dim));
  std::vector<float> mean(columns, 0.0F);
  std::vector<float> logits(columns);
  for (int t = layer.window - rows; t < layer.window; ++t) {
    std::fill(logits.begin(), logits.end(), -std::numeric_limits<float>::max());
    for (int g = 0; g < layer.group; ++g) {
      const float* query = head.window_queries +
                           (static_cast<size_t>(g) * static_cast<size_t>(layer.window) + static_cast<size_t>(t)) * dim;
      for (size_t j = 0; j < columns; ++j) {
        logits[j] = std::max(logits[j], Dot(query, head.keys + j * dim, dim) * scale);
      }
    }
    SoftmaxInPlace(logits);
    for (size_t j = 0; j < columns; ++j) mean[j] += logits[j] / static_cast<float>(rows);
  }
  std::vector<float> pooled(columns);
  Pool(mean, {pool, true}, pooled);
  return pooled;
}

// The mean of a column of the cosine matrix is the product with the sum of all unit keys; only what is
// left out of it, the diagonal and one look-alike per key, needs single cosines. So the matrix is never
// made, and looking for the newest look-alike mostly ends near the end.
std::vector<float> RkvRedundancy(const float* keys, size_t n, size_t dim, float threshold, bool zero_slot0) {
  const size_t stride = (n + kernels::kAlikeStride - 1) / kernels::kAlikeStride * kernels::kAlikeStride;
  const std::vector<float> columns = UnitColumns(keys, n, dim, stride);
  std::vector<int32_t> last(n);
  kernels::LastAlike(columns.data(), static_cast<int>(n), static_cast<int>(dim), stride, threshold, last.data());
  std::vector<double> sum(n, 0.0);
  for (size_t d = 0; d < dim; ++d) {
    const float* row = columns.data() + d * stride;
    double total = 0;
    for (size_t j = 0; j < n; ++j) total += static_cast<double>(row[j]);
    for (size_t j = 0; j < n; ++j) sum[j] += static_cast<double>(row[j]) * (total - static_cast<double>(row[j]));
  }
  for (size_t i = 0; i < n; ++i) {
    // The code compares the diagonal as 0.
    if (threshold < 0) last[i] = std::max(last[i], static_cast<int32_t>(i));
    if (last[i] < 0 && zero_slot0) last[i] = 0;
    if (last[i] < 0 || last[i] == static_cast<int32_t>(i)) continue;
    double cosine = 0;
    for (size_t d = 0; d < dim; ++d) {
      const float* row = columns.data() + d * stride;
      cosine += static_cast<double>(row[i]) * static_cast<double>(row[last[i]]);
    }
    sum[static_cast<size_t>(last[i])] -= cosine;
  }
  std::vector<float> mean;
  for (double s : sum) mean.push_back(static_cast<float>(s / static_cast<double>(n)));
  SoftmaxInPlace(mean);
  return mean;
}

}  // namespace pith
