#include "host/rotation_probe.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "host/llama_util.h"

namespace pith {
namespace {

constexpr int kMaxDepth = 12;  // ops between a projection and attention

// What may lie between RoPE and attention: ops that move whole rows, and those that scale a row by one number.
const ggml_tensor* BeforeHarmlessOps(const ggml_tensor* node) {
  for (;; node = node->src[0]) {
    switch (node->op) {
      case GGML_OP_VIEW:
        if (node->view_offs != 0) return node;
        [[fallthrough]];
      case GGML_OP_RESHAPE:
      case GGML_OP_PERMUTE:
      case GGML_OP_CONT:
      case GGML_OP_CPY:
        if (node->src[0]->ne[0] != node->ne[0]) return node;
        break;
      case GGML_OP_SCALE:
        if (node->op_params[1] != 0) return node;  // a bias
        break;
      case GGML_OP_MUL:
        if (node->src[1]->ne[0] != 1) return node;
        break;
      default:
        return node;
    }
  }
}

bool HasRope(const ggml_tensor* node, int depth) {
  if (node == nullptr || depth == 0 || node->op == GGML_OP_MUL_MAT) return false;
  if (node->op == GGML_OP_ROPE) return true;
  for (const ggml_tensor* source : node->src) {
    if (HasRope(source, depth - 1)) return true;
  }
  return false;
}

// Asks ggml itself: every unit vector at position 1 by the node's own parameters, as rows of the result.
std::vector<float> TurnedUnits(const ggml_tensor* rope, int dim) {
  const size_t floats = static_cast<size_t>(dim) * static_cast<size_t>(dim);
  const GgmlContextPtr ggml(
      ggml_init({.mem_size = 4 * floats * sizeof(float) + ggml_graph_overhead() + (size_t{1} << 20),
                 .mem_buffer = nullptr,
                 .no_alloc = false}));
  if (ggml == nullptr) return {};
  ggml_tensor* units = ggml_new_tensor_2d(ggml.get(), GGML_TYPE_F32, dim, dim);
  ggml_set_zero(units);
  for (int i = 0; i < dim; ++i) static_cast<float*>(units->data)[i * (dim + 1)] = 1;
  // One token; multimodal RoPE has four positions of it, of which text does not use the last.
  ggml_tensor* position = ggml_new_tensor_1d(ggml.get(), GGML_TYPE_I32, 4);
  const int32_t ones[4] = {1, 1, 1, 0};
  std::memcpy(position->data, ones, sizeof ones);
  ggml_tensor* factors = nullptr;
  if (const ggml_tensor* from = rope->src[2]; from != nullptr) {
    factors = ggml_new_tensor_1d(ggml.get(), GGML_TYPE_F32, from->ne[0]);
    ggml_backend_tensor_get(from, factors->data, 0, ggml_nbytes(factors));
  }
  ggml_tensor* turned = ggml_new_tensor_2d(ggml.get(), GGML_TYPE_F32, dim, dim);
  turned->op = GGML_OP_ROPE;
  std::memcpy(turned->op_params, rope->op_params, sizeof turned->op_params);
  turned->src[0] = units;
  turned->src[1] = position;
  turned->src[2] = factors;
  ggml_cgraph* graph = ggml_new_graph(ggml.get());
  ggml_build_forward_expand(graph, turned);
  if (ggml_graph_compute_with_ctx(ggml.get(), graph, 1) != GGML_STATUS_SUCCESS) return {};
  const auto* data = static_cast<const float*>(turned->data);
  return {data, data + floats};
}

}  // namespace

std::optional<Rotation> RotationOf(const ggml_tensor* query) {
  const ggml_tensor* rope = BeforeHarmlessOps(query);
  if (rope->op != GGML_OP_ROPE) return HasRope(rope, kMaxDepth) ? std::nullopt : std::optional<Rotation>(std::in_place);
  const int dim = static_cast<int>(query->ne[0]);
  if (rope->ne[0] != dim) return std::nullopt;
  const std::vector<float> turned = TurnedUnits(rope, dim);
  if (turned.empty()) return std::nullopt;
  Rotation rotation;
  for (int i = 0; i < dim; ++i) {
    const float* row = &turned[static_cast<size_t>(i * dim)];
    for (int k = i + 1; k < dim; ++k) {
      if (row[k] == 0) continue;
      if (!std::isfinite(row[k])) return std::nullopt;
      rotation.pairs.push_back(
          {.real = i, .imaginary = k, .angle = std::atan2(row[k], row[i]), .magnitude = std::hypot(row[k], row[i])});
    }
  }
  return rotation;
}

}  // namespace pith
