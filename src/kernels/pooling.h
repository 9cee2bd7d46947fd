// Rows of attention weights: pooled over neighbours, and summed.
#ifndef PITH_KERNELS_POOLING_H_
#define PITH_KERNELS_POOLING_H_

#include <cstdint>
#include <span>

namespace pith::kernels {

// out[i] = mean, or largest, of in[i - before .. i + after]; the mean counts what lies beyond the ends as zeros, the largest
// leaves it out. in, out: [n], apart from each other.
void PoolRow(std::span<const float> in, int64_t before, int64_t after, bool largest, std::span<float> out);

// In double.
double SumRow(std::span<const float> values);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_POOLING_H_
