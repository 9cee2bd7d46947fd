// Which nodes of a graph are products with quantised weights that lie in memory as in the file.
#ifndef PITH_HOST_WEIGHT_MATRIX_H_
#define PITH_HOST_WEIGHT_MATRIX_H_

#include "ggml.h"

namespace pith {

// Whether the node is output [rows, M] = input [rows, K] * weights [M, K]^T in float32, with quantised weights in main
// memory that libllama has not packed again for kernels of its own.
bool IsPlainProduct(const ggml_tensor* node);

}  // namespace pith

#endif  // PITH_HOST_WEIGHT_MATRIX_H_
