#include "kernels/roofline.h"

#include <gtest/gtest.h>

#include "kernels/targets_test_util.h"

namespace pith::kernels {
namespace {

TEST(Roofline, ReadsEveryPartOfTheMemory) {
  alignas(64) static float data[4096] = {};
  EXPECT_EQ(ReadMemory(data, sizeof data), 0.0f);
  for (const size_t at : {size_t{0}, size_t{777}, size_t{4095}}) {
    data[at] = 1.0f;
    EXPECT_NE(ReadMemory(data, sizeof data), 0.0f) << at;
    data[at] = 0.0f;
  }
}

TEST(Roofline, OperationsGrowWithTheRounds) {
  EXPECT_GT(MultiplyAddF32(10), 0);
  EXPECT_EQ(MultiplyAddF32(1000), 100 * MultiplyAddF32(10));
  EXPECT_EQ(DotBf16(1000), 100 * DotBf16(10));
}

TEST(Roofline, OfAMatrixUnit) {
  const TileUnitScope scope(&PlainTileUnit());
  EXPECT_GT(DotBf16(1), 0);
  EXPECT_EQ(DotBf16(3), 3 * DotBf16(1));
}

}  // namespace
}  // namespace pith::kernels
