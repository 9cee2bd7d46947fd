#include "kernels/target.h"

#include <hwy/targets.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/attention.h"
#include "kernels/page_kernels.h"
#include "kernels/tile_products.h"

namespace pith::kernels {
namespace {

bool ForceTarget(const char* name) {
  for (int64_t targets = hwy::SupportedTargets() & HWY_TARGETS; targets != 0; targets &= targets - 1) {
    const int64_t target = targets & -targets;
    if (std::strcmp(hwy::TargetName(target), name) != 0) continue;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().DeInit();
    return true;
  }
  std::fprintf(stderr, "PITH_FORCE_TARGET=%s: no such SIMD target on this machine or in this build; ignored\n", name);
  return false;
}

}  // namespace

void ApplyForcedTarget() {
  static const bool once = [] {
    const char* name = ForcedTarget();
    return name != nullptr && ForceTarget(name);
  }();
  (void)once;
}

const char* ForcedTarget() {
  const char* name = std::getenv("PITH_FORCE_TARGET");
  return name != nullptr && *name != '\0' ? name : nullptr;
}

const char* TargetName() { return GetPageKernels().target_name; }
std::string UnitsInUse() {
  const TileUnit* unit = GetTileUnit();
  return unit == nullptr ? TargetName() : std::string(TargetName()) + " and " + unit->name;
}

}  // namespace pith::kernels
