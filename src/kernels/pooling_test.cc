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

TEST_P(PoolingTest, ColumnMomentsEqualTheDefinition) {
  std::mt19937 random(9);
  std::uniform_real_distribution<float> uniform(0, 1);
  for (const size_t n : {1U, 7U, 8U, 100U}) {
    for (const int count : {1, 2, 32}) {
      const size_t stride = n + 3;
      std::vector<float> rows(stride * static_cast<size_t>(count));
      for (float& x : rows) x = uniform(random);
      std::vector<double> mean(n), squares(n);
      ColumnMoments(rows.data(), stride, count, n, mean.data(), squares.data());
      for (size_t j = 0; j < n; ++j) {
        double sum = 0, square = 0;
        for (size_t t = 0; t < static_cast<size_t>(count); ++t)
          sum += static_cast<double>(rows[t * stride + j]) / count;
        for (size_t t = 0; t < static_cast<size_t>(count); ++t) {
          square +=
              (static_cast<double>(rows[t * stride + j]) - sum) * (static_cast<double>(rows[t * stride + j]) - sum);
        }
        ASSERT_NEAR(mean[j], sum, 1e-12) << n << ' ' << count;
        ASSERT_NEAR(squares[j], square, 1e-12) << n << ' ' << count;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Every, PoolingTest, ::testing::ValuesIn(Targets()));

}  // namespace
}  // namespace pith::kernels
