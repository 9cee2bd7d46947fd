// Near-copies of the best entries and how far they are lowered (GraphKV, arXiv:2509.00388).
#ifndef PITH_POLICY_MODIFY_NEIGHBOUR_DECAY_H_
#define PITH_POLICY_MODIFY_NEIGHBOUR_DECAY_H_

#include <cstddef>
#include <vector>

#include "policy/stage.h"

namespace pith {

struct DecayOptions {
  size_t num_sources = 0;     // best candidates, at most all of them
  size_t num_neighbours = 0;  // nearest candidates of each
  double gamma = 0;           // a neighbour's factor is 1 - gamma * cosine, cosine in [0, 1]
  bool literal = false;       // sources are lowered by any other source, else by higher-ranked ones only
};

// One factor for each candidate (indices into the head's entries), at least 1e-6. O(sources n d).
std::vector<double> DecayFactors(const HeadRank& rank, const std::vector<size_t>& candidates,
                                 const DecayOptions& options);

}  // namespace pith

#endif  // PITH_POLICY_MODIFY_NEIGHBOUR_DECAY_H_
