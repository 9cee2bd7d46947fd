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
        PackedProjection projection;
        projection.Pack(weights.data() + dim, hidden, stride, group, dim);
        ProjectedNorms(values.data(), n, projection, norms.data());
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
          // A single row has only a few words to be rounded in; many of them average that away.
          ASSERT_NEAR(norms[static_cast<size_t>(j)], expected, (hidden == 64 ? 1e-4 : 2e-3) * (1 + expected)) << hwy::TargetName(target) << ' ' << n << ' ' << hidden;
          last_row += expected - without_last;
        }
        ASSERT_GT(last_row, 0.1 * n);  // one row less would be seen
      }
    }
  }
  UseTarget(0);
}

// The largest words there are must not leave 31 bits, whatever the size of a head.
TEST(ProjectedNorms, DoNotOverflow) {
  for (const int64_t target : Targets()) {
    UseTarget(target);
    for (const int dim : {1, 2, 3, 64, 80, 256, 576, 1024}) {
      const std::vector<float> values(static_cast<size_t>(3 * dim), -1e4F), weights(static_cast<size_t>(dim), 3e-3F);
      PackedProjection projection;
      projection.Pack(weights.data(), 1, static_cast<size_t>(dim), 1, dim);
      std::vector<float> norms(3);
      ProjectedNorms(values.data(), 3, projection, norms.data());
      for (const float norm : norms) EXPECT_NEAR(norm, 30.0 * dim, 1e-3 * dim) << hwy::TargetName(target) << ' ' << dim;
    }
  }
  UseTarget(0);
}

TEST(ProjectedNorms, OfNothingAreNothing) {
  const std::vector<float> values(64, 0.0F), weights(64, 0.0F);
  PackedProjection projection;
  projection.Pack(weights.data(), 1, 64, 1, 64);
  float norm = 1;
  ProjectedNorms(values.data(), 1, projection, &norm);
  EXPECT_EQ(norm, 0);
}

}  // namespace
}  // namespace pith::kernels
