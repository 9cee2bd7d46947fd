// Rows of float32 as f16 bits and back, by ggml's vector code.
#ifndef PITH_HOST_HALVES_H_
#define PITH_HOST_HALVES_H_

#include <cstddef>
#include <cstdint>

namespace pith {

void ToHalves(const float* from, size_t count, uint16_t* to);
void ToFloats(const uint16_t* from, size_t count, float* to);

}  // namespace pith

#endif  // PITH_HOST_HALVES_H_
