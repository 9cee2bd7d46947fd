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
      for (const int hidden : {1, 6, 64, 576}) {
        const int dim = n == 7 ? 5 : n == 32 ? 80 : 64, group = n == 45 ? 1 : 3;
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
          // A single row shows how coarse bytes are; many of them average that away.
          const double bound = 0.15 / std::sqrt(group * hidden) * (std::sqrt(dim) + expected);
          ASSERT_NEAR(norms[static_cast<size_t>(j)], expected, bound)
              << hwy::TargetName(target) << ' ' << n << ' ' << hidden;
          last_row += expected - without_last;
        }
        ASSERT_GT(last_row, 0.1 * n);
      }
    }
  }
  UseTarget(0);
}

// Bytes are the same on every target, and so are sums of them.
TEST(ProjectedNorms, AreTheSameOnEveryTarget) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (const int dim : {3, 64, 200}) {
    std::vector<float> values(static_cast<size_t>(40 * dim)), weights(static_cast<size_t>(2 * dim * 50)), first;
    for (float& x : values) x = normal(random);
    for (float& x : weights) x = normal(random);
    for (const int64_t target : Targets()) {
      UseTarget(target);
      PackedProjection projection;
      projection.Pack(weights.data(), 50, static_cast<size_t>(2 * dim), 2, dim);
      std::vector<float> norms(40);
      ProjectedNorms(values.data(), 40, projection, norms.data());
      if (first.empty()) first = norms;
      for (size_t j = 0; j < norms.size(); ++j)
        EXPECT_NEAR(norms[j], first[j], 1e-5F * first[j]) << hwy::TargetName(target);
    }
  }
  UseTarget(0);
}

// Values of one size, or one large among small ones: the largest sums and bytes that there are must not leave 16 bits,
// whatever the size of a head.
TEST(ProjectedNorms, DoNotOverflow) {
  for (const int64_t target : Targets()) {
    UseTarget(target);
    for (const int dim : {1, 2, 3, 64, 65, 80, 256, 576, 1024}) {
      for (const bool one_large : {false, true}) {
        std::vector<float> values(static_cast<size_t>(3 * dim), one_large ? 0.0F : -1e4F);
        std::vector<float> weights(static_cast<size_t>(dim), one_large ? 0.0F : 3e-3F);
        if (one_large) {
          // The last two have one pair of products.
          for (int j = 0; j < 3; ++j)
            values[static_cast<size_t>(j * dim + dim - 1)] = values[static_cast<size_t>(j * dim + dim / 2)] = 1e4F;
          weights[static_cast<size_t>(dim - 1)] = weights[static_cast<size_t>(dim / 2)] = 3e-3F;
        }
        const double expected = 30.0 * (one_large ? (dim <= 2 ? 1 : 2) : dim);
        PackedProjection projection;
        projection.Pack(weights.data(), 1, static_cast<size_t>(dim), 1, dim);
        std::vector<float> norms(3);
        ProjectedNorms(values.data(), 3, projection, norms.data());
        for (const float norm : norms)
          EXPECT_NEAR(norm, expected, 0.05 * expected) << hwy::TargetName(target) << ' ' << dim << one_large;
      }
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
