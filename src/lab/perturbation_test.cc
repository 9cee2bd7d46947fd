#include "lab/perturbation.h"

#include <vector>

#include <gtest/gtest.h>

namespace pith {
namespace {

// Two heads of two dimensions, a projection to three channels, one query.
TEST(Perturbation, NormsGoThroughTheProjection) {
  const std::vector<float> outputs = {1, 2, 3, 4};
  // Rows are channels: [W_0 | W_1].
  const std::vector<float> projection = {1, 0, 0, 0,   //
                                         0, 1, -1, 0,  //
                                         0, 0, 0, -2};
  const OutputNorms norms = MeasureOutputs(outputs, 1, 2, 2, projection);
  EXPECT_DOUBLE_EQ(norms.squares[0], 1 + 4);
  EXPECT_DOUBLE_EQ(norms.squares[1], 9 + 64);
  EXPECT_DOUBLE_EQ(norms.absolutes[0], 3);
  EXPECT_DOUBLE_EQ(norms.absolutes[1], 11);
  EXPECT_DOUBLE_EQ(norms.layer_squares, 1 + 1 + 64) << "heads cancel in the layer's output";
}

TEST(Perturbation, NormsWithoutAProjection) {
  const std::vector<float> outputs = {1, 2, 3, 4, 0, -1, 0, 2};
  const OutputNorms norms = MeasureOutputs(outputs, 2, 2, 2, {});
  EXPECT_DOUBLE_EQ(norms.squares[0], 1 + 4 + 1);
  EXPECT_DOUBLE_EQ(norms.squares[1], 9 + 16 + 4);
  EXPECT_DOUBLE_EQ(norms.absolutes[1], 9);
  EXPECT_DOUBLE_EQ(norms.layer_squares, norms.squares[0] + norms.squares[1]);
}

}  // namespace
}  // namespace pith
