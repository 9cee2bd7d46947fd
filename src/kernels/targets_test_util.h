// Tests that run once for each instruction set of this machine.
#ifndef PITH_KERNELS_TARGETS_TEST_UTIL_H_
#define PITH_KERNELS_TARGETS_TEST_UTIL_H_

#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include "kernels/attention.h"
#include "kernels/tile_products.h"

namespace pith::kernels {

// All that this machine has; with AddressSanitizer only the best and the plainest, between which the same code runs on
// vectors of other sizes: the run without it sees their results.
inline std::vector<int64_t> Targets() {
  std::vector<int64_t> targets = hwy::SupportedAndGeneratedTargets();
#if defined(__SANITIZE_ADDRESS__)
  if (targets.size() > 2) targets = {targets.front(), targets.back()};
#endif
  return targets;
}

// 0: the best one again.
inline void UseTarget(int64_t target) {
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().DeInit();
}

// The matrix units that can be tested here.
inline std::vector<const TileUnit*> TileUnits() {
  std::vector<const TileUnit*> units = {&PlainTileUnit()};
  if (HardwareTileUnit() != nullptr) units.push_back(HardwareTileUnit());
  return units;
}
inline std::string UnitName(const testing::TestParamInfo<const TileUnit*>& unit) { return unit.param->name; }

// Attention runs in `unit` (null: in none) until the end of the scope.
class TileUnitScope {
 public:
  explicit TileUnitScope(const TileUnit* unit) { SetTileUnitForTest(unit); }
  TileUnitScope(const TileUnitScope&) = delete;
  ~TileUnitScope() { SetTileUnitForTest(former_); }

 private:
  const TileUnit* const former_ = GetTileUnit();
};

class TargetTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override {
    UseTarget(GetParam());
    ASSERT_STREQ(TargetName(), hwy::TargetName(GetParam()));
  }
  void TearDown() override { UseTarget(0); }

 private:
  const TileUnitScope no_unit_{nullptr};
};

}  // namespace pith::kernels

#endif  // PITH_KERNELS_TARGETS_TEST_UTIL_H_
