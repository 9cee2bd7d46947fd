#include "kernels/triangles.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/targets_test_util.h"

namespace pith::kernels {
namespace {

using TrianglesTest = TargetTest;

// On a grid, so that every order of summation gives the same sums.
std::vector<float> Numbers(size_t count, std::mt19937& random) {
  std::vector<float> numbers(count);
  for (float& x : numbers) x = static_cast<float>(static_cast<int>(random() % 17) - 8) / 4;
  return numbers;
}

TEST_P(TrianglesTest, OuterProductsAreThoseOfTheReference) {
  std::mt19937 random(5);
  for (const int dim : {1, 2, 7, 8, 13, 64, 100}) {
    for (const int count : {0, 1, 3, 4, 9, 32}) {
      const std::vector<float> rows = Numbers(static_cast<size_t>(count * dim), random);
      std::vector<float> sums = Numbers(TriangleSize(dim), random), reference = sums;
      AddOuterProducts(rows.data(), count, dim, sums.data());
      AddOuterProductsScalar(rows.data(), count, dim, reference.data());
      ASSERT_EQ(sums, reference) << "dim=" << dim << " count=" << count;
    }
  }
}

TEST_P(TrianglesTest, QuadraticFormsAreThoseOfTheReference) {
  std::mt19937 random(6);
  for (const int dim : {1, 2, 3, 4, 5, 31, 64}) {
    for (const int n : {1, 7, 8, 16, 33}) {
      const std::vector<float> rows = Numbers(static_cast<size_t>(n * dim), random);
      const std::vector<float> triangle = Numbers(TriangleSize(dim), random);
      std::vector<float> ours(static_cast<size_t>(n)), reference(static_cast<size_t>(n));
      QuadraticForms(rows.data(), n, dim, triangle.data(), ours.data());
      QuadraticFormsScalar(rows.data(), n, dim, triangle.data(), reference.data());
      ASSERT_EQ(ours, reference) << "dim=" << dim << " n=" << n;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Every, TrianglesTest, ::testing::ValuesIn(Targets()));

}  // namespace
}  // namespace pith::kernels
