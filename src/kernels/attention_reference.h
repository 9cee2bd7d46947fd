// Scalar, double precision references of attention.h, one (query, head, entry) at a time.
#ifndef PITH_KERNELS_ATTENTION_REFERENCE_H_
#define PITH_KERNELS_ATTENTION_REFERENCE_H_

#include "kernels/attention.h"

namespace pith::kernels {

// As RunAttention, on one thread. Allocates.
void ReferenceAttention(const AttentionTask& task);

// As RunProbabilities, on one thread. Allocates.
void ReferenceProbabilities(const AttentionTask& task, float* const* probabilities);

// Out of probabilities as RunProbabilities gives them, [G, T, n] of one kv head. Null pointers of `to`: not wanted.
void ReferenceEntryAttention(const float* probabilities, int group, int num_queries, int num_entries,
                             const EntryAttention& to);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_ATTENTION_REFERENCE_H_
