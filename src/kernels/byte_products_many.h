// Products of byte_products.h with so many rows of input that weights are better laid out anew for them.
#ifndef PITH_KERNELS_BYTE_PRODUCTS_MANY_H_
#define PITH_KERNELS_BYTE_PRODUCTS_MANY_H_

#include <cstddef>

#include "kernels/byte_products.h"

namespace pith::kernels {

// MultiplyRows, with the same bits; where ByteProductsAreFast() only.
void MultiplyManyRows(const WeightRows& weights, const RoundedRows& input, float* output, size_t output_stride,
                      const std::byte* next);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_BYTE_PRODUCTS_MANY_H_
