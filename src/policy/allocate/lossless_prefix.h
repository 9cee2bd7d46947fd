// The shortest prefix of the ranking sinks, newest, ..., oldest that loses little of the norm of the
// attention row (DBudgetKV, arXiv:2502.16886; github.com/Patrick-Ni/ReFreeKV).
#ifndef PITH_POLICY_ALLOCATE_LOSSLESS_PREFIX_H_
#define PITH_POLICY_ALLOCATE_LOSSLESS_PREFIX_H_

#include "policy/stage.h"

namespace pith {

struct PrefixOptions {
  double threshold = 0;  // share of the norm that may be lost
  int sinks = 0;
  int rows = 1;          // last queries, averaged
  int floor = 0;         // least entries beside the sinks
};

// The code's form: newest entries that all heads of the layer keep beside the sinks, from the mean of
// their norms, which leave the sinks out. At least 1.
int SharedSuffix(const LayerInputs& inputs, const PrefixOptions& options);

// The paper's form: the largest prefix over the group's query heads, sinks counted.
int LargestPrefix(const LayerInputs& inputs, const HeadInputs& head, const PrefixOptions& options);

}  // namespace pith

#endif  // PITH_POLICY_ALLOCATE_LOSSLESS_PREFIX_H_
