// Walking over observed attention.
#ifndef PITH_POLICY_OBSERVE_H_
#define PITH_POLICY_OBSERVE_H_

#include <algorithm>
#include <cstddef>
#include <vector>

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

// Raises a column [n] to the largest weight that each entry gets, over queries and the group.
inline void KeepLargest(const Observation& seen, float* column) {
  ForEachWeight<GroupBy::kMax>(seen, [column](size_t j, int, float weight) { column[j] = std::max(column[j], weight); });
}

// A head's column as its scores.
inline void ScoreByColumn(const HeadInputs& head, size_t column, std::vector<float>& scores) {
  scores.assign(head.columns[column], head.columns[column] + head.num_entries);
}

}  // namespace pith

#endif  // PITH_POLICY_OBSERVE_H_
