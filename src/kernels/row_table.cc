#include "kernels/row_table.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/page_kernels.h"

namespace pith::kernels {

void StoreRow(const float* row, int dim, int index, float* table) {
  float* column = table + static_cast<size_t>(index / kPageEntries * dim) * kPageEntries + index % kPageEntries;
  for (int c = 0; c < dim; ++c) column[c * kPageEntries] = row[c];
}

void ScoreTable(const float* queries, int num_queries, int dim, const float* table, int num_rows, float* products,
                size_t stride) {
  const PageKernels& kernels = GetPageKernels();
  constexpr int kMaxPacked = 16 * 1024;
  const int most_rows = std::min(kernels.block_rows, kMaxPacked / dim);
  PITH_CHECK(most_rows >= 1);
  alignas(64) float packed[kMaxPacked];
  alignas(64) float scores[kMaxBlockRows * kStepEntries];
  for (int begin = 0; begin < num_queries; begin += most_rows) {
    const int rows = std::min(most_rows, num_queries - begin);
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < dim; ++c) packed[c * rows + r] = queries[(begin + r) * dim + c];
    }
    ScoreArgs args = {};
    args.queries = packed;
    args.key_dim = static_cast<size_t>(dim);
    args.scores = scores;
    for (int first = 0; first < num_rows; first += kPageEntries) {
      args.keys = table + static_cast<size_t>(first) * static_cast<size_t>(dim);
      kernels.of(Source::kF32).score[rows](args);
      const int count = std::min(kPageEntries, num_rows - first);
      for (int r = 0; r < rows; ++r) {
        std::copy_n(scores + r * kStepEntries, count, products + static_cast<size_t>(begin + r) * stride + first);
      }
    }
  }
}

}  // namespace pith::kernels
