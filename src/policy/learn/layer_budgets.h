// Budgets of layers from numbers that say how much each layer needs.
#ifndef PITH_POLICY_LEARN_LAYER_BUDGETS_H_
#define PITH_POLICY_LEARN_LAYER_BUDGETS_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pith/types.h"

namespace pith {

// Whole numbers that add up to `total` in proportion to the weights, none below `least`. Layers whose
// share is below it get it, the others share the rest, until none is below; then shares are rounded
// down, and what is missing goes to the largest fractions, ties to the lower layer. Weights are at
// least 0; all 0 or not finite: equal shares. total >= least * weights.size().
std::vector<int> ShareByWeights(int64_t total, std::span<const double> weights, int least);

// EpiCache (arXiv:2509.17396, part B; github.com/apple/ml-epicache data/layer_scores/layer_profile.py,
// model/wrapper.py). similarities: [L], of post-RoPE keys with and without a block mask; a layer whose
// keys change much is sensitive and gets more. mean: M entries per head.
enum class EpiCacheForm : uint8_t {
  kRescaled,  // ours: the code's weights, floor M/4, sum exactly L * M
  kCode,      // the authors' code: the floor makes the sum exceed L * M
  kPaper,     // (1 - similarity)^alpha without a floor; alpha is not transferable between the forms
};
std::vector<int> EpiCacheBudgets(std::span<const double> similarities, int mean, double alpha, EpiCacheForm form);
// The paper's, before rounding. [L]
std::vector<double> EpiCachePaperBudgets(std::span<const double> similarities, double mean, double alpha);

// A JSON file with one number per layer under `key`:  {"layers": [3, 2.5, 1, ...]}
// Numbers are finite and at least `least`. kIo, kCorrupt, each with one sentence that names the file.
Result<std::vector<double>> ReadLayerNumbers(const std::string& path, std::string_view key, double least);

}  // namespace pith

#endif  // PITH_POLICY_LEARN_LAYER_BUDGETS_H_
