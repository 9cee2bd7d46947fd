#include "host/weight_matrix.h"

#include "ggml-backend.h"

namespace pith {
namespace {

bool IsMatrix(const ggml_tensor* tensor) { return tensor->ne[2] == 1 && tensor->ne[3] == 1; }

bool IsFloatMatrix(const ggml_tensor* tensor) {
  return IsMatrix(tensor) && tensor->type == GGML_TYPE_F32 && tensor->nb[0] == sizeof(float);
}

}  // namespace

bool IsPlainProduct(const ggml_tensor* node) {
  if (node->op != GGML_OP_MUL_MAT) return false;
  const ggml_tensor *weights = node->src[0], *input = node->src[1];
  // `extra`: packed again for kernels of libllama's.
  return IsFloatMatrix(input) && IsFloatMatrix(node) && IsMatrix(weights) && ggml_is_quantized(weights->type) &&
         weights->view_src == nullptr && weights->extra == nullptr && weights->buffer != nullptr &&
         ggml_backend_buffer_is_host(weights->buffer);
}

}  // namespace pith
