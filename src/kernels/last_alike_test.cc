#include "kernels/last_alike.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "kernels/targets_test_util.h"

namespace pith::kernels {
namespace {

using LastAlikeTest = TargetTest;

// Few prototypes with noise, so that some keys have look-alikes; values on a grid, so that every order
// of summation gives the same products.
std::vector<float> Columns(int n, int dim, size_t stride, int prototypes, std::mt19937& random) {
  std::vector<float> columns(static_cast<size_t>(dim) * stride, 0.0F);
  std::vector<int> kind(static_cast<size_t>(n));
  for (int& k : kind) k = static_cast<int>(random() % static_cast<unsigned>(prototypes));
  std::vector<std::vector<float>> base(static_cast<size_t>(prototypes), std::vector<float>(static_cast<size_t>(dim)));
  for (auto& row : base) {
    for (float& x : row) x = static_cast<float>(static_cast<int>(random() % 17) - 8) / 8;
  }
  for (int j = 0; j < n; ++j) {
    for (int c = 0; c < dim; ++c) {
      const float noise = static_cast<float>(static_cast<int>(random() % 3) - 1) / 8;
      columns[static_cast<size_t>(c) * stride + static_cast<size_t>(j)] =
          base[static_cast<size_t>(kind[static_cast<size_t>(j)])][static_cast<size_t>(c)] + noise;
    }
  }
  return columns;
}

TEST_P(LastAlikeTest, FindsWhatTheReferenceFinds) {
  std::mt19937 random(3);
  int found = 0, missing = 0;
  for (const int n : {1, 2, 3, 5, 31, 64, 65, 130}) {
    for (const int dim : {1, 8, 13, 64}) {
      for (const float threshold : {-1.0F, 0.0F, 2.5F, 6.0F}) {
        const size_t stride = (static_cast<size_t>(n) + kColumnStride - 1) / kColumnStride * kColumnStride;
        const std::vector<float> columns = Columns(n, dim, stride, 9, random);
        std::vector<int32_t> ours(static_cast<size_t>(n)), reference(static_cast<size_t>(n));
        const int middle = n / 3;
        LastAlike(columns.data(), n, dim, stride, threshold, 0, middle, ours.data());
        LastAlike(columns.data(), n, dim, stride, threshold, middle, n, ours.data());
        LastAlikeScalar(columns.data(), n, dim, stride, threshold, reference.data());
        ASSERT_EQ(ours, reference) << "n=" << n << " dim=" << dim << " threshold=" << threshold;
        for (const int32_t j : reference) (j >= 0 ? found : missing) += 1;
      }
    }
  }
  EXPECT_GT(found, 500);  // both answers occur
  EXPECT_GT(missing, 500);
}

TEST_P(LastAlikeTest, LargestProductsAreThoseOfTheReference) {
  std::mt19937 random(5);
  for (const int n : {1, 2, 31, 64, 65, 130}) {
    for (const int dim : {1, 13, 64}) {
      for (const int size : {1, 3, 4, 9}) {
        const int num_sets = n == 31 ? 5 : n == 64 ? 1 : 2;
        const size_t stride = (static_cast<size_t>(n) + kColumnStride - 1) / kColumnStride * kColumnStride;
        const std::vector<float> columns = Columns(n, dim, stride, 9, random);
        const auto row_stride = static_cast<size_t>(num_sets * dim + 2), set_stride = static_cast<size_t>(dim);
        std::vector<float> rows(row_stride * static_cast<size_t>(size), 100.0F);  // between rows is what must not count
        const auto row = [&](int s, int t) {
          return rows.data() + static_cast<size_t>(s) * set_stride + static_cast<size_t>(t) * row_stride;
        };
        for (int s = 0; s < num_sets; ++s) {
          for (int t = 0; t < size; ++t) {
            for (int c = 0; c < dim; ++c) row(s, t)[c] = static_cast<float>(static_cast<int>(random() % 9) - 4) / 4;
          }
        }
        const size_t out_stride = static_cast<size_t>(n) + 3;
        std::vector<float> ours(out_stride * static_cast<size_t>(num_sets), -7);
        LargestProducts(columns.data(), n, dim, stride, {rows.data(), num_sets, size, set_stride, row_stride},
                        ours.data(), out_stride);
        for (int s = 0; s < num_sets; ++s) {
          for (int j = 0; j < n; ++j) {
            float most = -1e30F;
            for (int t = 0; t < size; ++t) {
              float product = 0;
              for (int c = 0; c < dim; ++c)
                product += columns[static_cast<size_t>(c) * stride + static_cast<size_t>(j)] * row(s, t)[c];
              most = std::max(most, product);
            }
            ASSERT_EQ(ours[static_cast<size_t>(s) * out_stride + static_cast<size_t>(j)], most)
                << n << ' ' << dim << ' ' << size << ' ' << s << ' ' << j;
          }
          ASSERT_EQ(ours[static_cast<size_t>(s) * out_stride + static_cast<size_t>(n)], -7);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Every, LastAlikeTest, ::testing::ValuesIn(Targets()));

}  // namespace
}  // namespace pith::kernels
