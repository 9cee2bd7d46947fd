// The nearest neighbours of some of many directions.
#ifndef PITH_KERNELS_NEAREST_H_
#define PITH_KERNELS_NEAREST_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/column_products.h"

namespace pith::kernels {

// columns: element c of vector j at c * stride + j. stride is a multiple of kColumnStride, and what lies beyond the
// n-th vector is 0. nearest: [sources][wanted] indices of the vectors, other than the source itself, of the largest
// products with it, best first, ties to the lower index. wanted < n.
void Nearest(const float* columns, int n, int dim, size_t stride, std::span<const int32_t> sources, int wanted,
             int32_t* nearest);

// The reference.
void NearestScalar(const float* columns, int n, int dim, size_t stride, std::span<const int32_t> sources, int wanted,
                   int32_t* nearest);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_NEAREST_H_
