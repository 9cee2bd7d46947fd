// Micro-benchmarks of the machine: what the kernels could reach at most.
//
// One thread's share of the work each; the caller runs them on as many threads
// as it wants to know the limit of, and takes the time.
#ifndef PITH_KERNELS_ROOFLINE_H_
#define PITH_KERNELS_ROOFLINE_H_

#include <cstddef>

namespace pith::kernels {

// Reads every byte once. bytes: a multiple of 1024; data 64-byte aligned. Returns something that depends on all of it.
float ReadMemory(const float* data, size_t bytes);

// `rounds` rounds of independent float32 multiply-adds in registers, on the SIMD target in use. Returns the floating
// point operations done (two each).
double MultiplyAddF32(int rounds);

// The same with bf16 dot products (float32 sums, two multiply-adds per lane), in the matrix unit if there is one. 0:
// the CPU or the target in use has none.
double DotBf16(int rounds);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_ROOFLINE_H_
