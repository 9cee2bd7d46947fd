// Vectors that lie as columns, and rows that are multiplied with them abreast.
#ifndef PITH_KERNELS_COLUMN_PRODUCTS_H_
#define PITH_KERNELS_COLUMN_PRODUCTS_H_

#include <algorithm>
#include <cstddef>
#include <vector>

namespace pith::kernels {

// Columns have room for multiples of so many vectors.
inline constexpr size_t kColumnStride = 64;

inline constexpr int kRowsAbreast = 6;

// [count in groups of kRowsAbreast][dim][kRowsAbreast] of element(row, channel); rows that fill the last group are 0.
template <typename Element>
std::vector<float> PackAbreast(size_t count, size_t dim, const Element& element) {
  constexpr size_t kWide = kRowsAbreast;
  std::vector<float> packed((count + kWide - 1) / kWide * kWide * dim);
  for (size_t begin = 0; begin < count; begin += kWide) {
    float* to = packed.data() + begin * dim;
    const size_t rows = std::min(kWide, count - begin);
    for (size_t c = 0; c < dim; ++c, to += kWide) {
      for (size_t k = 0; k < rows; ++k) to[k] = element(begin + k, c);
    }
  }
  return packed;
}

}  // namespace pith::kernels

#endif  // PITH_KERNELS_COLUMN_PRODUCTS_H_
