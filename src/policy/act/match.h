// Entries that stay speak for those that do not (act=match): attention matching (arXiv:2602.16284).
//
// A bias per kept entry, so that the kept ones carry the attention of all for each query of a second reading, then
// values by which they give its outputs (RefitValues), both by least squares. Keys are neither moved nor averaged.
//
// As in the authors' code (github.com/adamzweiger/compaction @2e59cc8), but for this:
// - Ridges: biases are drawn towards none, values towards those that entries have. Theirs has no ridge, solves without
//   bounds, clamps, and may take steps of projected gradient (MatchOptions::steps); here the optimum in the bounds.
// - Entries that must stay as they are count for how much a query looks at the rest.
// - A bias is stored in its key: what the queries of a head have in common makes k + b u a key whose logits are
//   higher by b, with q.u = 1 by least squares. So attention, pages and files know nothing of biases. Where queries
//   have too little in common for that to bring masses nearer, keys stay as they are.
// - An entry's earlier bias is part of its key, and so of its logits (theirs drops it when a cache is compacted again).
#ifndef PITH_POLICY_ACT_MATCH_H_
#define PITH_POLICY_ACT_MATCH_H_

#include <cstdint>
#include <vector>

#include "policy/act/residue.h"

namespace pith {

// Of the kept and the dropped entries so many, as a matching pursuit finds them: each time those that have most of the
// attention that is still missing, then weights anew (every other time where it takes several). Those whose weights are
// next to nothing make room for others, three times at most; then there may be fewer. O(N n) each.
std::vector<int32_t> PursueKeys(const MatchOptions& options, size_t count, const ResidueInputs& inputs);

struct Matched {
  std::vector<double> biases;  // [kept], of logits
  std::vector<float> keys;     // [kept, D] with biases in them
  std::vector<float> outputs;  // [N, Dv] attention of the queries over all entries
  bool in_keys = false;        // false: keys are as they were
};

// O(N n (D + Dv)), and O(N kept) for each round of the fit.
Matched MatchKeys(const MatchOptions& options, const ResidueInputs& inputs);

}  // namespace pith

#endif  // PITH_POLICY_ACT_MATCH_H_
