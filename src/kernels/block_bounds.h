// Bounds of blocks of keys: the greatest and least value of each channel. Tables of
// both (kernels/row_table.h) give a cheap estimate of a block's largest logit.
#ifndef PITH_KERNELS_BLOCK_BOUNDS_H_
#define PITH_KERNELS_BLOCK_BOUNDS_H_

#include <cstddef>

#include "kernels/page_layout.h"

namespace pith::kernels {

// Greatest and least of each of `dim` channels over `count` >= 1 rows, `stride` floats apart.
void RowBounds(const float* rows, size_t stride, int count, int dim, float* greatest, float* least);

// The same over the keys of `num_pages` full pages of any format. scratch: [D][P], 64-byte aligned.
void PageBounds(const PageLayout& layout, const std::byte* const* pages, int num_pages, float* scratch, float* greatest,
                float* least);

// scores[r * stride + j] = max(q_r . greatest_j, q_r . least_j) for r < num_queries, j < num_blocks.
// queries: [num_queries, D]; greatest, least: tables. O(num_queries D num_blocks).
void ScoreBounds(const float* queries, int num_queries, int dim, const float* greatest, const float* least,
                 int num_blocks, float* scores, size_t stride);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_BLOCK_BOUNDS_H_
