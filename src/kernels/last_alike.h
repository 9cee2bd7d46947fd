// Products of keys with keys and with queries, keys as columns (R-KV's terms).
#ifndef PITH_KERNELS_LAST_ALIKE_H_
#define PITH_KERNELS_LAST_ALIKE_H_

#include <cstddef>
#include <cstdint>

#include "kernels/column_products.h"

namespace pith::kernels {

// last[i] = the largest j != i with the product of vectors i and j above `threshold`, -1: none; for i from `begin`
// until `end`. columns: [dim, stride] transposed, vector j in column j of n; stride at least n, a multiple of
// kColumnStride, zeros beyond n. O(n dim) per i where nothing is alike; stops at the first find from the end.
void LastAlike(const float* columns, int n, int dim, size_t stride, float threshold, int begin, int end, int32_t* last);
// The reference.
void LastAlikeScalar(const float* columns, int n, int dim, size_t stride, float threshold, int32_t* last);

// Sets of rows of some dimension.
struct RowSets {
  const float* rows;
  int num_sets, set_size;
  size_t set_stride, row_stride;  // in floats, from set to set and from row to row of a set
};

// out[s * out_stride + j] = the largest of the products of vector j with the rows of set s, j < n. columns as above.
void LargestProducts(const float* columns, int n, int dim, size_t stride, const RowSets& sets, float* out,
                     size_t out_stride);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_LAST_ALIKE_H_
