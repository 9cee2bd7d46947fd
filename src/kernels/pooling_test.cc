#include "kernels/pooling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "kernels/targets_test_util.h"

namespace pith::kernels {
namespace {

using PoolingTest = TargetTest;

TEST_P(PoolingTest, EqualsTheDefinition) {
  std::mt19937 random(8);
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (const size_t n : {1U, 2U, 5U, 16U, 17U, 100U}) {
    std::vector<float> in(n), out(n);
    for (float& x : in) x = uniform(random);
    for (const int64_t width : {1, 2, 5, 7, 63}) {
      const int64_t before = width / 2, after = width - 1 - before;
      for (const bool largest : {false, true}) {
        PoolRow(in, before, after, largest, out);
        for (size_t i = 0; i < n; ++i) {
          double sum = 0;
          float most = -2;
          for (int64_t k = -before; k <= after; ++k) {
            const int64_t j = static_cast<int64_t>(i) + k;
            if (j < 0 || j >= static_cast<int64_t>(n)) continue;
            sum += static_cast<double>(in[static_cast<size_t>(j)]);
            most = std::max(most, in[static_cast<size_t>(j)]);
          }
          const double expected = largest ? static_cast<double>(most) : sum / static_cast<double>(width);
          ASSERT_NEAR(static_cast<double>(out[i]), expected, 1e-6) << n << ' ' << width << ' ' << largest << ' ' << i;
        }
      }
    }
    double sum = 0;
    for (const float x : in) sum += static_cast<double>(x);
    EXPECT_NEAR(SumRow(in), sum, 1e-12 * static_cast<double>(n)) << n;
  }
  EXPECT_EQ(SumRow({}), 0);
  PoolRow({}, 2, 2, false, {});
}

INSTANTIATE_TEST_SUITE_P(Every, PoolingTest, ::testing::ValuesIn(Targets()));

}  // namespace
}  // namespace pith::kernels
