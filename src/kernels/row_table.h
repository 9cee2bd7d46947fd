// Rows laid out as the score kernel reads keys, so that products with many rows
// run on every SIMD target: 32 rows at a time, [D][32].
#ifndef PITH_KERNELS_ROW_TABLE_H_
#define PITH_KERNELS_ROW_TABLE_H_

#include <cstddef>

#include "kernels/page_layout.h"

namespace pith::kernels {

// Floats of a table of `num_rows` rows; it must lie at a multiple of 64 bytes.
inline size_t TableFloats(int num_rows, int dim) {
  const auto chunks = static_cast<size_t>((num_rows + kPageEntries - 1) / kPageEntries);
  return chunks * static_cast<size_t>(dim) * kPageEntries;
}

// Enters row [D] as row `index`.
void StoreRow(const float* row, int dim, int index, float* table);

// products[r * stride + j] = q_r . row_j for r < num_queries, j < num_rows. queries: [num_queries, D].
void ScoreTable(const float* queries, int num_queries, int dim, const float* table, int num_rows, float* products,
                size_t stride);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_ROW_TABLE_H_
