#include "host/row_product.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "host/weight_matrix.h"

namespace pith {
namespace {

// Rows of weights that are taken at once: enough for memory to be read in order, few enough to share.
constexpr int64_t kPartBytes = 64 * 1024;
constexpr int64_t kPartsPerThread = 4;

std::optional<kernels::WeightFormat> FormatOf(ggml_type type) {
  switch (type) {
    case GGML_TYPE_Q4_0:
      return kernels::WeightFormat::kQ4_0;
    case GGML_TYPE_Q4_1:
      return kernels::WeightFormat::kQ4_1;
    case GGML_TYPE_Q5_0:
      return kernels::WeightFormat::kQ5_0;
    case GGML_TYPE_Q5_1:
      return kernels::WeightFormat::kQ5_1;
    case GGML_TYPE_Q6_K:
      return kernels::WeightFormat::kQ6_K;
    case GGML_TYPE_Q8_0:
      return kernels::WeightFormat::kQ8_0;
    default:
      return std::nullopt;
  }
}

}  // namespace

bool RowProduct::Suits(const ggml_tensor* node) {
  return IsPlainProduct(node) && node->src[1]->ne[1] <= kMostRows && FormatOf(node->src[0]->type).has_value() &&
         kernels::ByteProductsAreFast();
}

void RowProduct::Run(const ggml_tensor* node, int num_threads, kernels::RoundedRows& rounded) {
  const ggml_tensor *weights = node->src[0], *input = node->src[1];
  const auto row_bytes = static_cast<int64_t>(weights->nb[1]);
  const int64_t num_rows = weights->ne[1];
  const int64_t fair = std::min(kPartBytes / row_bytes, num_rows / (kPartsPerThread * num_threads));
  const int64_t row_step = kernels::WeightRowsTogether(static_cast<int>(input->ne[1]));
  const int64_t part_rows = std::max<int64_t>(fair / row_step, 1) * row_step;
  const int64_t num_parts = (num_rows + part_rows - 1) / part_rows;
  const auto rows_at = [&](int64_t part) {
    return static_cast<const std::byte*>(weights->data) + part * part_rows * row_bytes;
  };
  int64_t part = parts_.Take();
  if (part < num_parts) {
    rounded.Round(static_cast<const float*>(input->data), input->nb[1] / sizeof(float), static_cast<int>(input->ne[1]),
                  static_cast<int>(input->ne[0]));
  }
  while (part < num_parts) {
    const int64_t next = parts_.Take(), begin = part * part_rows;
    const kernels::WeightRows rows = {.format = *FormatOf(weights->type),
                                      .data = rows_at(part),
                                      .row_bytes = weights->nb[1],
                                      .num_rows = static_cast<int>(std::min(part_rows, num_rows - begin))};
    kernels::MultiplyRows(rows, rounded, static_cast<float*>(node->data) + begin, node->nb[1] / sizeof(float),
                          next < num_parts ? rows_at(next) : nullptr);
    part = next;
  }
  parts_.Leave(num_threads);
}

}  // namespace pith
