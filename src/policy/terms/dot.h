// Dot products of single vectors.
#ifndef PITH_POLICY_TERMS_DOT_H_
#define PITH_POLICY_TERMS_DOT_H_

#include <array>
#include <cstddef>

namespace pith {

// Eight sums side by side: one alone, which a compiler may not reorder, waits for itself at every element.
inline float Dot(const float* a, const float* b, size_t dim) {
  constexpr size_t kSums = 8;
  std::array<float, kSums> sums{};
  size_t d = 0;
  for (; d + kSums <= dim; d += kSums) {
    for (size_t k = 0; k < kSums; ++k) sums[k] += a[d + k] * b[d + k];
  }
  float sum = 0;
  for (; d < dim; ++d) sum += a[d] * b[d];
  for (const float part : sums) sum += part;
  return sum;
}

}  // namespace pith

#endif  // PITH_POLICY_TERMS_DOT_H_
