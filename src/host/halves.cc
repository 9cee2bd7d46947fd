#include "host/halves.h"

#include "ggml-cpu.h"

namespace pith {

void ToHalves(const float* from, size_t count, uint16_t* to) {
  ggml_cpu_fp32_to_fp16(from, to, static_cast<int64_t>(count));
}

void ToFloats(const uint16_t* from, size_t count, float* to) {
  ggml_cpu_fp16_to_fp32(from, to, static_cast<int64_t>(count));
}

}  // namespace pith
