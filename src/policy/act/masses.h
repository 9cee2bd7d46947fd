// exp(s - m) of reference queries' logits s, m each query's maximum: what biases are fitted to and a pursuit chooses
// keys by.
#ifndef PITH_POLICY_ACT_MASSES_H_
#define PITH_POLICY_ACT_MASSES_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "policy/act/references.h"

namespace pith {

template <typename A, typename B>
double Dot(std::span<const A> a, std::span<const B> b) {
  double sums[4] = {0, 0, 0, 0};
  size_t i = 0;
  for (; i + 4 <= a.size(); i += 4) {
    for (size_t k = 0; k < 4; ++k) sums[k] += static_cast<double>(a[i + k]) * static_cast<double>(b[i + k]);
  }
  for (; i < a.size(); ++i) sums[0] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Of each kept entry, and of all but the fixed ones together.
class Masses {
 public:
  Masses(const References& references, const ResidueInputs& inputs)
      : rows_(references.size()),
        count_(inputs.kept.size()),
        columns_(rows_ * count_),
        wanted_(rows_),
        shifts_(rows_),
        outputs_(AttendAll(references, inputs, [&](const AttentionTile& tile) { Take(tile, inputs.fixed.size()); })) {}

  size_t rows() const { return rows_; }
  size_t count() const { return count_; }
  // [rows] of the j-th kept entry.
  std::span<const float> column(size_t j) const { return std::span(columns_).subspan(j * rows_, rows_); }
  // [rows] of all.
  const std::vector<double>& wanted() const { return wanted_; }
  // Logarithms (base 2) of what weights were divided by.
  double shift(size_t q) const { return shifts_[q]; }
  std::vector<float> TakeOutputs() { return std::move(outputs_); }

  // The column with that weight is no longer missing.
  void Subtract(size_t j, double weight, std::vector<double>& missing) const {
    const std::span<const float> own = column(j);
    for (size_t q = 0; q < rows_; ++q) missing[q] -= weight * static_cast<double>(own[q]);
  }

 private:
  void Take(const AttentionTile& tile, size_t num_fixed) {
    for (size_t t = 0; t < tile.count; ++t) {
      const float* row = tile.row(t);
      const size_t q = tile.first + t;
      const float largest = *std::max_element(row, row + tile.width);
      shifts_[q] = static_cast<double>(tile.log_sums[t]) + std::log2(static_cast<double>(largest));
      for (size_t j = num_fixed; j < tile.width; ++j) {
        wanted_[q] += static_cast<double>(row[j]) / static_cast<double>(largest);
      }
      for (size_t j = 0; j < count_; ++j) columns_[j * rows_ + q] = row[num_fixed + j] / largest;
    }
  }

  const size_t rows_, count_;
  std::vector<float> columns_;  // [count, rows]
  std::vector<double> wanted_, shifts_;
  std::vector<float> outputs_;
};

}  // namespace pith

#endif  // PITH_POLICY_ACT_MASSES_H_
