// The newest look-alike of every key (R-KV's redundancy).
#ifndef PITH_KERNELS_LAST_ALIKE_H_
#define PITH_KERNELS_LAST_ALIKE_H_

#include <cstddef>
#include <cstdint>

namespace pith::kernels {

// last[i] = the largest j != i with the product of vectors i and j above `threshold`, -1: none.
// columns: [dim, stride] transposed, vector j in column j of n; stride at least n, a multiple of
// kAlikeStride, zeros beyond n. O(n^2 dim) where nothing is alike; stops at the first find from the end.
inline constexpr size_t kAlikeStride = 64;
void LastAlike(const float* columns, int n, int dim, size_t stride, float threshold, int32_t* last);
// The reference.
void LastAlikeScalar(const float* columns, int n, int dim, size_t stride, float threshold, int32_t* last);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_LAST_ALIKE_H_
