// Tests that run once for each instruction set of this machine.
#ifndef PITH_KERNELS_TARGETS_TEST_UTIL_H_
#define PITH_KERNELS_TARGETS_TEST_UTIL_H_

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>
#include <hwy/targets.h>

namespace pith::kernels {

inline std::vector<int64_t> Targets() {
  std::vector<int64_t> targets;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    if (target != HWY_SSSE3) targets.push_back(target);  // not compiled, see page_kernels.cc
  }
  return targets;
}

class TargetTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

}  // namespace pith::kernels

#endif  // PITH_KERNELS_TARGETS_TEST_UTIL_H_
