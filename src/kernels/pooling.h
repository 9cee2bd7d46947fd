// Rows of attention weights: pooled over neighbours, summed, and compared with each other.
#ifndef PITH_KERNELS_POOLING_H_
#define PITH_KERNELS_POOLING_H_

#include <cstddef>
#include <cstdint>
#include <span>

namespace pith::kernels {

// out[i] = mean, or largest, of in[i - before .. i + after]; the mean counts what lies beyond the ends as zeros, the
// largest leaves it out. in, out: [n], apart from each other.
void PoolRow(std::span<const float> in, int64_t before, int64_t after, bool largest, std::span<float> out);

// Of each of n columns of `count` rows, `stride` apart: the mean and the sum of squared differences from it, in double.
void ColumnMoments(const float* rows, size_t stride, int count, size_t n, double* mean, double* squares);

// In double.
double SumRow(std::span<const float> values);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_POOLING_H_
