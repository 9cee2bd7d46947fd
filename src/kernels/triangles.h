// Symmetric matrices as packed lower triangles: row i has i + 1 numbers.
#ifndef PITH_KERNELS_TRIANGLES_H_
#define PITH_KERNELS_TRIANGLES_H_

#include <cstddef>

namespace pith::kernels {

// Numbers in the first `rows` rows.
constexpr size_t TriangleSize(int rows) { return static_cast<size_t>(rows) * static_cast<size_t>(rows + 1) / 2; }

// sums += over the rows r of r r^T. rows: [count, dim]. sums: a triangle of dim rows.
void AddOuterProducts(const float* rows, int count, int dim, float* sums);

// out[j] = x^T M x for each row x of [n, dim], M the symmetric matrix of that triangle. dim: at most 1024.
void QuadraticForms(const float* rows, int n, int dim, const float* triangle, float* out);

// References of the two.
void AddOuterProductsScalar(const float* rows, int count, int dim, float* sums);
void QuadraticFormsScalar(const float* rows, int n, int dim, const float* triangle, float* out);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_TRIANGLES_H_
