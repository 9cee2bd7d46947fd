// Which SIMD target runs.
#ifndef PITH_KERNELS_TARGET_H_
#define PITH_KERNELS_TARGET_H_

namespace pith::kernels {

// Makes PITH_FORCE_TARGET take effect, once per process. Called before any dispatch.
void ApplyForcedTarget();

// PITH_FORCE_TARGET, or null where it is not set or empty.
const char* ForcedTarget();

}  // namespace pith::kernels

#endif  // PITH_KERNELS_TARGET_H_
