// Entropy of attention.
#ifndef PITH_KERNELS_ENTROPY_H_
#define PITH_KERNELS_ENTROPY_H_

#include <span>

namespace pith::kernels {

// - sum of p log(p + 1e-10), natural logarithm. Relative error below 1e-6.
double Entropy(std::span<const float> p);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_ENTROPY_H_
