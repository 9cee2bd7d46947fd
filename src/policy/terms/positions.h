// Relations between the kv heads of a ragged layer.
#ifndef PITH_POLICY_TERMS_POSITIONS_H_
#define PITH_POLICY_TERMS_POSITIONS_H_

#include <vector>

#include "policy/policy.h"

namespace pith {

// For each entry the mean of `values` ([kv heads][n]) over the heads that hold its position.
std::vector<std::vector<float>> MeanOverHeads(const LayerInputs& layer, const std::vector<std::vector<float>>& values);

}  // namespace pith

#endif  // PITH_POLICY_TERMS_POSITIONS_H_
