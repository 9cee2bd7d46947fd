// Walking over observed attention.
#ifndef PITH_POLICY_OBSERVE_H_
#define PITH_POLICY_OBSERVE_H_

#include <cstddef>

#include "policy/policy.h"

namespace pith {

enum class GroupBy { kMean, kMax };

// visit(entry, query, weight) for each query and each entry that it can see, queries in order;
// weight is the mean (or maximum) over the GQA group.
template <GroupBy kBy = GroupBy::kMean, typename Visit>
void ForEachWeight(const Observation& seen, Visit visit) {
  const auto n = static_cast<size_t>(seen.num_entries);
  const size_t stride = static_cast<size_t>(seen.num_queries) * n;
  for (int t = 0; t < seen.num_queries; ++t) {
    const float* rows = seen.probabilities + static_cast<size_t>(t) * n;
    for (size_t j = 0; j < n; ++j) {
      if (seen.positions[j] > seen.query_positions[static_cast<size_t>(t)]) break;  // ascending
      float weight = rows[j];
      for (int g = 1; g < seen.group; ++g) {
        const float other = rows[static_cast<size_t>(g) * stride + j];
        weight = kBy == GroupBy::kMean ? weight + other : (other > weight ? other : weight);
      }
      if (kBy == GroupBy::kMean) weight /= static_cast<float>(seen.group);
      visit(j, t, weight);
    }
  }
}

}  // namespace pith

#endif  // PITH_POLICY_OBSERVE_H_
