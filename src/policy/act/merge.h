// D2O's merge (Dynamic Discriminative Operations, arXiv:2406.13035; github.com/AIoT-MLSys-Lab/D2O
// LMEval_kv_token_merge/modeling_llama3_7b_13b_d2o.py): an entry that must go is added to the kept entry
// with the most similar key, if that similarity reaches a running threshold of the layer.
//
// Differences from the authors' code: the decision is made per (kv head, entry) against the layer's
// threshold, where theirs averages similarities over heads slot by slot, which are different tokens
// (by_slot does that); the same with one kv head. Keys and values are those of the kv heads, not
// repeated for each query head.
#ifndef PITH_POLICY_ACT_MERGE_H_
#define PITH_POLICY_ACT_MERGE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "pith/types.h"

namespace pith {

struct MergeOptions {
  double alpha = 0.5;        // weight of the threshold so far
  double beta = 0.5;         // weight of the new mean similarity
  bool weigh_exp = false;    // the paper's convex weights e^u in place of the code's u / (1 + count)
  bool by_slot = false;      // the code's filter, where all heads evict the same number
};

// What happens to the entries of one kv head that do not stay.
struct MergePlan {
  std::vector<int32_t> evicted;   // ascending indices of entries
  std::vector<int32_t> target;    // entry with the most similar key among those that stay; ties to the first
  std::vector<float> similarity;  // its cosine
  std::vector<uint8_t> merged;    // 1: added to its target
};

// Step 8: for every entry that is not kept, the nearest kept one. keys: [n, D], after RoPE; kept:
// ascending, at least one. O(evicted kept D), on the SIMD target in use.
void FindNearest(const float* keys, int num_entries, int dim, std::span<const int32_t> kept, MergePlan& plan);

// Step 9: the layer's threshold for this eviction. before: NaN if it is the first. Without an evicted
// entry the threshold stays.
double NextThreshold(const MergeOptions& options, double before, std::span<const MergePlan> heads);

// Step 10: marks the entries whose similarity reaches the threshold.
void ChooseMerged(const MergeOptions& options, double threshold, std::span<MergePlan> heads);

// Steps 11 and 12, in place: marked entries are added to their targets' keys [n, D] and values [n, Dv].
// changed: the targets, ascending.
void MergeEntries(const MergeOptions& options, const MergePlan& plan, float* keys, int key_dim, float* values,
                  int value_dim, std::vector<int32_t>& changed);

}  // namespace pith

#endif  // PITH_POLICY_ACT_MERGE_H_
