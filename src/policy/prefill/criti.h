// CritiPrefill (arXiv:2409.12490; github.com/66RING/CritiPrefill criti_prefill/ops.py): while a prompt
// is read, a segment of queries attends to itself and to the few earlier blocks of keys that matter.
// Nothing is dropped: it saves time, not memory, and goes with every recipe.
//
// A block's estimate for a segment and a query head is max(q . k_max, q . k_min), with k_max and k_min
// the greatest and least key values of the block by channel and q the middle of the segment's greatest
// and least query values (the authors' mean of q_max . k and q_min . k, which is linear in q). No
// scale. What follows is here; the extremes and their products are in kernels/block_bounds.h.
#ifndef PITH_POLICY_PREFILL_CRITI_H_
#define PITH_POLICY_PREFILL_CRITI_H_

#include <cstdint>
#include <span>
#include <vector>

#include "pith/types.h"

namespace pith {

struct CritiOptions {
  int segment = 512;      // queries that share one selection
  int block = 32;         // keys per block; with evicted caches, runs of kept entries
  int budget = 2048;      // earlier entries that a segment attends to, per kv head; 0: to all of them, always
  int threshold = 4096;   // segments with fewer earlier entries attend to all
  int skip = 1;           // lowest layers that attend to all
  bool fusion = true;     // moving average of the criticality over layers
  bool keep_first = false;  // block 0, with the sinks, is always chosen
};

// kInvalidArgument with one sentence where block is no multiple of a page, segment none of block, or
// the budget holds no block.
Status CheckCritiOptions(const CritiOptions& options);

// Step 4 to 6: softmax over blocks of the mean over the group. scores: [group] rows, `stride` apart,
// of criticality.size() blocks that lie wholly before the segment. In double, since the estimates are not
// scaled: the authors' float32 makes most blocks of a long prompt zero, and their order chance.
void BlockCriticality(const float* scores, size_t stride, int group, std::span<double> criticality);

// Step 7: 0.25 of the running criticality of the layers before and 0.75 of this one's. Sizes agree.
void FuseCriticality(std::span<const double> before, std::span<double> criticality);

// Step 8: the min(count, blocks) most critical blocks, most critical first; ties to the lower block.
// keep_first: block 0 takes the last place if it has none.
void ChooseBlocks(std::span<const double> criticality, int count, bool keep_first, std::vector<int32_t>& chosen);

}  // namespace pith

#endif  // PITH_POLICY_PREFILL_CRITI_H_
