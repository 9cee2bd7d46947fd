#include "kernels/nearest.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "kernels/targets_test_util.h"

namespace pith::kernels {
namespace {

using NearestTest = TargetTest;

// Values on a coarse grid: every order of summation gives the same products, and many are equal.
TEST_P(NearestTest, FindsWhatTheReferenceFinds) {
  std::mt19937 random(4);
  int changed = 0;
  for (const int n : {2, 3, 15, 16, 17, 64, 131}) {
    for (const int dim : {1, 3, 8, 64}) {
      const size_t stride = (static_cast<size_t>(n) + kColumnStride - 1) / kColumnStride * kColumnStride;
      std::vector<float> columns(static_cast<size_t>(dim) * stride, 0.0F);
      for (int c = 0; c < dim; ++c) {
        for (int j = 0; j < n; ++j) {
          columns[static_cast<size_t>(c) * stride + static_cast<size_t>(j)] =
              static_cast<float>(static_cast<int>(random() % 9) - 4) / 4;
        }
      }
      for (const int wanted : {1, 2, n / 2, n - 1}) {
        if (wanted < 1 || wanted >= n) continue;
        std::vector<int32_t> sources;
        for (int s = 0; s < 6; ++s) sources.push_back(static_cast<int32_t>(random() % static_cast<unsigned>(n)));
        std::vector<int32_t> ours(sources.size() * static_cast<size_t>(wanted), -1), reference = ours;
        Nearest(columns.data(), n, dim, stride, sources, wanted, ours.data());
        NearestScalar(columns.data(), n, dim, stride, sources, wanted, reference.data());
        ASSERT_EQ(ours, reference) << "n=" << n << " dim=" << dim << " wanted=" << wanted;
        columns[static_cast<size_t>(n - 1)] += 8;  // the comparison sees one vector that moves
        std::vector<int32_t> moved = ours;
        Nearest(columns.data(), n, dim, stride, sources, wanted, moved.data());
        changed += moved != ours;
        columns[static_cast<size_t>(n - 1)] -= 8;
      }
    }
  }
  EXPECT_GT(changed, 20);
}

INSTANTIATE_TEST_SUITE_P(Every, NearestTest, ::testing::ValuesIn(Targets()));

}  // namespace
}  // namespace pith::kernels
