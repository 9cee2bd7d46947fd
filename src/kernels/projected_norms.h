// L1 norms of values after the output projection (CriticalKV, DefensiveKV).
#ifndef PITH_KERNELS_PROJECTED_NORMS_H_
#define PITH_KERNELS_PROJECTED_NORMS_H_

#include <cstddef>

namespace pith::kernels {

// norms[j] = mean over the group's heads q of sum over i of |sum over d of values[j, d] * W[i, q*dim + d]|.
// values: [n, dim]. W: `hidden` rows, `row_stride` floats apart, that begin at the group's first head.
void ProjectedNorms(const float* values, int n, int dim, const float* projection, int hidden, size_t row_stride, int group,
                    float* norms);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_PROJECTED_NORMS_H_
