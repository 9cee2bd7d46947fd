// Products of dense matrices of float32 on the SIMD target in use, and what regressions need of them.
#ifndef PITH_POLICY_ACT_LEAST_SQUARES_H_
#define PITH_POLICY_ACT_LEAST_SQUARES_H_

#include <cstddef>
#include <span>
#include <vector>

namespace pith {

// Rows of numbers, `stride` apart.
struct MatrixView {
  const float* at = nullptr;
  size_t rows = 0, columns = 0;
  size_t stride = 0;

  const float* row(size_t i) const { return at + i * stride; }
};
inline MatrixView ViewOf(const float* at, size_t rows, size_t columns) { return {at, rows, columns, columns}; }

// out[i * stride + j] = a_i . b_j, or += with `add`. a and b have the same number of columns.
void ProductsOfRows(const MatrixView& a, const MatrixView& b, float* out, size_t stride, bool add);

// columns x rows of the view.
std::vector<float> Transposed(const MatrixView& matrix);

// The lower triangle of a symmetric positive definite matrix becomes its Cholesky factor, in place; what is above the
// diagonal is not used. False: it is not positive definite. matrix [n, n].
bool FactorSmall(std::span<double> matrix, size_t n);
// The same for many rows: blocks of them on the SIMD target.
bool FactorLarge(std::span<float> matrix, size_t n);

// right [n, width] becomes the solution of L L' x = right.
void SolveSmall(std::span<const double> factor, size_t n, std::span<double> right);
void SolveLarge(std::span<const float> factor, size_t n, std::span<float> right, size_t width);
// right [n] becomes the solution of (A + ridge D) x = right, A given by its lower triangle (kernels/triangles.h), D the
// mean of its diagonal. False: it has none, right is undefined.
bool SolveTriangle(std::span<const float> triangle, size_t n, double ridge, std::span<double> right);

// change [u, w] = argmin |X change - target|^2 + ridge D |change|^2, D the mean of the diagonal of X'X. x [n, u],
// target [n, w]. False: it cannot be solved, change is undefined. O(n u min(n, u)).
bool RidgeRegression(const MatrixView& x, const MatrixView& target, double ridge, std::span<float> change);

}  // namespace pith

#endif  // PITH_POLICY_ACT_LEAST_SQUARES_H_
