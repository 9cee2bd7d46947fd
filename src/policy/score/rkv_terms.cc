#include "policy/score/rkv_terms.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/parallel.h"
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

// Keys that are one task.
constexpr size_t kKeyStretch = 128;

}  // namespace

std::vector<float> RkvImportance(const LayerInputs& layer, const HeadInputs& head, const KeyColumns& keys, int rows,
                                 size_t columns, int pool) {
  const auto dim = static_cast<size_t>(layer.key_dim), window = static_cast<size_t>(layer.window);
  const auto num_rows = static_cast<size_t>(rows);
  const float scale = 1 / std::sqrt(static_cast<float>(layer.key_dim));
  const kernels::RowSets queries{.rows = head.window_queries + (window - num_rows) * dim,
                                 .num_sets = rows,
                                 .set_size = layer.group,
                                 .set_stride = dim,
                                 .row_stride = window * dim};
  std::vector<float> logits(num_rows * columns);
  ParallelStretches(columns, kKeyStretch, [&](size_t begin, size_t end) {
    kernels::LargestProducts(keys.units.data() + begin, static_cast<int>(end - begin), layer.key_dim, keys.stride,
                             queries, logits.data() + begin, columns);
    for (size_t t = 0; t < num_rows; ++t) {
      for (size_t j = begin; j < end; ++j) logits[t * columns + j] *= keys.lengths[j] * scale;
    }
  });
  ParallelFor(num_rows, [&](size_t t) { SoftmaxInPlace(std::span(logits).subspan(t * columns, columns)); });
  std::vector<float> mean(columns, 0.0F);
  for (size_t t = 0; t < num_rows; ++t) {
    for (size_t j = 0; j < columns; ++j) mean[j] += logits[t * columns + j] / static_cast<float>(rows);
  }
  std::vector<float> pooled(columns);
  Pool(mean, {pool, true}, pooled);
  return pooled;
}

// The mean of a column of the cosine matrix is the product with the sum of all unit keys; only what is
// left out of it, the diagonal and one look-alike per key, needs single cosines. So the matrix is never
// made, and looking for the newest look-alike mostly ends near the end.
std::vector<float> RkvRedundancy(const KeyColumns& keys, size_t dim, float threshold, bool zero_slot0) {
  const size_t n = keys.lengths.size();
  const auto unit = [&](size_t d) { return keys.units.data() + d * keys.stride; };
  std::vector<float> total(dim);
  for (size_t d = 0; d < dim; ++d) total[d] = static_cast<float>(SumOf({unit(d), n}));
  std::vector<float> mean(n);  // of cosines, at first their sum without what is left out
  std::vector<float> spared(n);  // cosine of each key to its look-alike
  std::vector<int32_t> last(n);
  ParallelStretches(n, kKeyStretch, [&](size_t begin, size_t end) {
    kernels::LastAlike(keys.units.data(), static_cast<int>(n), static_cast<int>(dim), keys.stride, threshold,
                       static_cast<int>(begin), static_cast<int>(end), last.data());
    for (size_t i = begin; i < end; ++i) {
      // The code compares the diagonal as 0.
      if (threshold < 0) last[i] = std::max(last[i], static_cast<int32_t>(i));
      if (last[i] < 0 && zero_slot0) last[i] = 0;
      if (last[i] == static_cast<int32_t>(i)) last[i] = -1;
    }
    for (size_t d = 0; d < dim; ++d) {
      const float* row = unit(d);
      for (size_t i = begin; i < end; ++i) mean[i] += row[i] * (total[d] - row[i]);
      for (size_t i = begin; i < end; ++i) spared[i] += row[i] * row[std::max(last[i], 0)];
    }
  });
  for (size_t i = 0; i < n; ++i) {
    if (last[i] >= 0) mean[static_cast<size_t>(last[i])] -= spared[i];
  }
  for (float& m : mean) m /= static_cast<float>(n);
  SoftmaxInPlace(mean);
  return mean;
}

}  // namespace pith
