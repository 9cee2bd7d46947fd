// Scalar, double precision references of attention.h, one (query, head, entry) at a time.
#ifndef PITH_KERNELS_ATTENTION_REFERENCE_H_
#define PITH_KERNELS_ATTENTION_REFERENCE_H_

#include "kernels/attention.h"

namespace pith::kernels {

// As RunAttention, on one thread. Allocates.
void ReferenceAttention(const AttentionTask& task);

// As RunProbabilities, on one thread. Allocates.
void ReferenceProbabilities(const AttentionTask& task, float* const* probabilities);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_ATTENTION_REFERENCE_H_
