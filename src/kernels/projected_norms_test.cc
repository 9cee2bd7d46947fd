#include "kernels/projected_norms.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/targets_test_util.h"

namespace pith::kernels {
namespace {

TEST(ProjectedNorms, EqualTheReferenceOnEveryTarget) {
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  for (const int64_t target : Targets()) {
    UseTarget(target);
    for (const int n : {1, 7, 32, 45}) {
      for (const int hidden : {1, 6, 64}) {
        const int dim = n == 7 ? 5 : 64, group = n == 45 ? 1 : 3;
        const auto stride = static_cast<size_t>((group + 2) * dim);
        std::vector<float> values(static_cast<size_t>(n * dim)), weights(stride * static_cast<size_t>(hidden));
        for (float& x : values) x = normal(random);
        for (float& x : weights) x = normal(random);
        std::vector<float> norms(static_cast<size_t>(n));
        ProjectedNorms(values.data(), n, dim, weights.data() + dim, hidden, stride, group, norms.data());
        double last_row = 0;
        for (int j = 0; j < n; ++j) {
          double expected = 0, without_last = 0;
          for (int q = 0; q < group; ++q) {
            for (int i = 0; i < hidden; ++i) {
              double sum = 0;
              for (int d = 0; d < dim; ++d) {
                const size_t at = static_cast<size_t>(i) * stride + static_cast<size_t>((q + 1) * dim + d);
                sum += static_cast<double>(values[static_cast<size_t>(j * dim + d)]) * static_cast<double>(weights[at]);
              }
              expected += std::abs(sum) / group;
              if (i + 1 < hidden) without_last += std::abs(sum) / group;
            }
          }
          ASSERT_NEAR(norms[static_cast<size_t>(j)], expected, 1e-5 * (1 + expected)) << hwy::TargetName(target) << ' ' << n << ' ' << hidden;
          last_row += expected - without_last;
        }
        ASSERT_GT(last_row, 1e-3 * n);  // one row less would be seen
      }
    }
  }
  UseTarget(0);
}

}  // namespace
}  // namespace pith::kernels
