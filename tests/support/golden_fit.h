// What golden tests of fitted entries share: a layer's block, the reference queries, what stays, and attention over it.
#ifndef PITH_TESTS_SUPPORT_GOLDEN_FIT_H_
#define PITH_TESTS_SUPPORT_GOLDEN_FIT_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "policy/act/residue.h"
#include "tests/support/golden.h"

namespace pith::testing {

class FitCase {
 protected:
  // selected: the tensor [kv heads, most] of the entries that stay, -1 where a head has fewer.
  FitCase(const GgufFile& file, const std::string& selected)
      : file_(file),
        kv_heads_(static_cast<size_t>(file.param("kv_heads"))),
        group_(static_cast<size_t>(file.param("heads")) / kv_heads_),
        dim_(static_cast<size_t>(file.param("head_dim"))),
        n_(static_cast<size_t>(file.param("n"))),
        rows_(group_ * static_cast<size_t>(file.param("queries"))),
        selected_(file.tensor(selected).i64),
        most_(file.tensor(selected).shape[1]) {}

  std::span<const float> Part(const std::string& name, size_t part, size_t size) const {
    return std::span(file_.tensor(name).f32).subspan(part * size, size);
  }

  // Entries of a kv head that stay, as the file lists them.
  std::vector<int32_t> Selected(size_t h) const {
    std::vector<int32_t> entries;
    for (size_t i = 0; i < most_; ++i) {
      if (selected_[h * most_ + i] >= 0) entries.push_back(static_cast<int32_t>(selected_[h * most_ + i]));
    }
    return entries;
  }

  // All but those, which are sorted.
  std::vector<int32_t> Others(const std::vector<int32_t>& kept) const {
    std::vector<int32_t> others;
    for (int32_t i = 0; i < static_cast<int32_t>(n_); ++i) {
      if (!std::ranges::binary_search(kept, i)) others.push_back(i);
    }
    return others;
  }

  // Of vectors that outlive them.
  ResidueInputs Inputs(size_t h, const std::vector<int32_t>& kept, const std::vector<int32_t>& dropped) const {
    return {.key_dim = static_cast<int>(dim_),
            .value_dim = static_cast<int>(dim_),
            .keys = Part("in/k", h, n_ * dim_).data(),
            .values = Part("in/v", h, n_ * dim_).data(),
            .fixed = {},
            .kept = kept,
            .dropped = dropped,
            .queries = ViewOf(Part("in/q_ref", h, rows_ * dim_).data(), rows_, dim_),
            .scale = 1 / std::sqrt(static_cast<float>(dim_))};
  }

  // biases: of logits, one for each key; empty: none.
  std::vector<float> Attend(std::span<const float> query, const std::vector<float>& keys,
                            const std::vector<float>& values, const std::vector<double>& biases = {}) const {
    std::vector<double> weights(keys.size() / dim_);
    double most = -INFINITY, sum = 0;
    for (size_t j = 0; j < weights.size(); ++j) {
      for (size_t d = 0; d < dim_; ++d)
        weights[j] += static_cast<double>(query[d]) * static_cast<double>(keys[j * dim_ + d]);
      weights[j] /= std::sqrt(static_cast<double>(dim_));
      if (!biases.empty()) weights[j] += biases[j];
      most = std::max(most, weights[j]);
    }
    for (double& weight : weights) sum += weight = std::exp(weight - most);
    std::vector<double> output(dim_, 0);
    for (size_t j = 0; j < weights.size(); ++j) {
      for (size_t d = 0; d < dim_; ++d) output[d] += weights[j] / sum * static_cast<double>(values[j * dim_ + d]);
    }
    return {output.begin(), output.end()};
  }

  const GgufFile& file_;
  const size_t kv_heads_, group_, dim_, n_, rows_;
  const std::vector<int64_t>& selected_;
  const size_t most_;
};

}  // namespace pith::testing

#endif  // PITH_TESTS_SUPPORT_GOLDEN_FIT_H_
