#include "policy/act/least_squares.h"

#include <algorithm>
#include <cmath>

#include "base/aligned.h"
#include "kernels/row_table.h"
#include "kernels/triangles.h"

namespace pith {
namespace {

// Columns that one product sums over at once: queries of a table pass the kernel in blocks that hold so many.
constexpr size_t kDepth = 512;
// Rows and columns of a block of a large factor.
constexpr size_t kBlock = 64;
// Rows of regressors that are turned around at a time.
constexpr size_t kTile = 256;

// a[i] -= factor * b[i]
void Subtract(float* a, const float* b, float factor, size_t count) {
  for (size_t i = 0; i < count; ++i) a[i] -= factor * b[i];
}

// The diagonal block of rows [k, k + count) of a factor, in double.
bool FactorBlock(std::span<float> matrix, size_t n, size_t k, size_t count) {
  std::vector<double> block(count * count);
  for (size_t i = 0; i < count; ++i) {
    for (size_t j = 0; j <= i; ++j) block[i * count + j] = static_cast<double>(matrix[(k + i) * n + k + j]);
  }
  if (!FactorSmall(block, count)) return false;
  for (size_t i = 0; i < count; ++i) {
    for (size_t j = 0; j <= i; ++j) matrix[(k + i) * n + k + j] = static_cast<float>(block[i * count + j]);
  }
  return true;
}

// The lower triangle of X'X (or XX') as a matrix [size, size] whose diagonal is 1 + ridge, nearly; scale: what its rows
// were divided by.
void ScaleToUnit(std::span<float> gram, size_t size, double ridge, std::vector<float>& scale) {
  scale.resize(size);
  for (size_t i = 0; i < size; ++i) {
    gram[i * size + i] += static_cast<float>(ridge);
    scale[i] = gram[i * size + i] > 0 ? 1 / std::sqrt(gram[i * size + i]) : 0.0F;
  }
  for (size_t i = 0; i < size; ++i) {
    for (size_t j = 0; j <= i; ++j) gram[i * size + j] *= scale[i] * scale[j];
  }
}

void ScaleRows(std::span<float> rows, size_t width, const std::vector<float>& scale) {
  for (size_t i = 0; i < scale.size(); ++i) {
    for (size_t c = 0; c < width; ++c) rows[i * width + c] *= scale[i];
  }
}

MatrixView RowsOf(const MatrixView& matrix, size_t first, size_t count) {
  return {matrix.row(first), count, matrix.columns, matrix.stride};
}

// The lower triangle of the products of all rows with each other, and some of what is above it: [rows, rows], added to.
void AddGram(const MatrixView& rows, std::span<float> gram) {
  for (size_t from = 0; from < rows.rows; from += kTile) {
    const size_t count = std::min(kTile, rows.rows - from);
    ProductsOfRows(RowsOf(rows, from, rows.rows - from), RowsOf(rows, from, count),
                   gram.data() + from * rows.rows + from, rows.rows, true);
  }
}

}  // namespace

void ProductsOfRows(const MatrixView& a, const MatrixView& b, float* out, size_t stride, bool add) {
  const size_t depth = std::min(kDepth, a.columns);
  if (a.rows == 0 || b.rows == 0) return;
  const auto table = AllocateAligned<float>(kernels::TableFloats(static_cast<int>(b.rows), static_cast<int>(depth)));
  std::vector<float> left, products(a.rows * b.rows);
  for (size_t from = 0; from < a.columns; from += depth) {
    const size_t count = std::min(depth, a.columns - from);
    for (size_t j = 0; j < b.rows; ++j) {
      kernels::StoreRow(b.row(j) + from, static_cast<int>(count), static_cast<int>(j), table.get());
    }
    const float* rows = a.at;
    if (count != a.stride) {
      left.resize(a.rows * count);
      for (size_t i = 0; i < a.rows; ++i) std::copy_n(a.row(i) + from, count, left.data() + i * count);
      rows = left.data();
    }
    kernels::ScoreTable(rows, static_cast<int>(a.rows), static_cast<int>(count), table.get(), static_cast<int>(b.rows),
                        products.data(), b.rows);
    const bool adds = add || from > 0;
    for (size_t i = 0; i < a.rows; ++i) {
      float* to = out + i * stride;
      const float* product = products.data() + i * b.rows;
      if (!adds) std::copy_n(product, b.rows, to);
      for (size_t j = 0; j < b.rows && adds; ++j) to[j] += product[j];
    }
  }
}

std::vector<float> Transposed(const MatrixView& matrix) {
  std::vector<float> out(matrix.rows * matrix.columns);
  for (size_t i = 0; i < matrix.rows; ++i) {
    for (size_t j = 0; j < matrix.columns; ++j) out[j * matrix.rows + i] = matrix.row(i)[j];
  }
  return out;
}

bool FactorSmall(std::span<double> matrix, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j <= i; ++j) {
      double sum = matrix[i * n + j];
      for (size_t k = 0; k < j; ++k) sum -= matrix[i * n + k] * matrix[j * n + k];
      if (j < i) {
        matrix[i * n + j] = sum / matrix[j * n + j];
      } else if (sum > 0 && std::isfinite(sum)) {
        matrix[i * n + i] = std::sqrt(sum);
      } else {
        return false;
      }
    }
  }
  return true;
}

bool FactorLarge(std::span<float> matrix, size_t n) {
  std::vector<float> products;
  for (size_t k = 0; k < n; k += kBlock) {
    const size_t count = std::min(kBlock, n - k), below = n - k;
    if (k > 0) {
      products.resize(below * count);
      const float* rows = matrix.data() + k * n;
      ProductsOfRows({rows, below, k, n}, {rows, count, k, n}, products.data(), count, false);
      for (size_t i = 0; i < below; ++i)
        Subtract(matrix.data() + (k + i) * n + k, products.data() + i * count, 1, count);
    }
    if (!FactorBlock(matrix, n, k, count)) return false;
    for (size_t i = k + count; i < n; ++i) {
      float* row = matrix.data() + i * n + k;
      for (size_t j = 0; j < count; ++j) {
        const float* other = matrix.data() + (k + j) * n + k;
        float sum = row[j];
        for (size_t l = 0; l < j; ++l) sum -= row[l] * other[l];
        row[j] = sum / other[j];
      }
    }
  }
  return true;
}

void SolveSmall(std::span<const double> factor, size_t n, std::span<double> right) {
  for (size_t i = 0; i < n; ++i) {
    for (size_t k = 0; k < i; ++k) right[i] -= factor[i * n + k] * right[k];
    right[i] /= factor[i * n + i];
  }
  for (size_t i = n; i-- > 0;) {
    right[i] /= factor[i * n + i];
    for (size_t k = 0; k < i; ++k) right[k] -= factor[i * n + k] * right[i];
  }
}

void SolveLarge(std::span<const float> factor, size_t n, std::span<float> right, size_t width) {
  const auto row = [&](size_t i) { return right.data() + i * width; };
  const auto divide = [&](size_t i) {
    const float inverse = 1 / factor[i * n + i];
    for (size_t c = 0; c < width; ++c) row(i)[c] *= inverse;
  };
  for (size_t i = 0; i < n; ++i) {
    for (size_t k = 0; k < i; ++k) Subtract(row(i), row(k), factor[i * n + k], width);
    divide(i);
  }
  for (size_t i = n; i-- > 0;) {
    divide(i);
    for (size_t k = 0; k < i; ++k) Subtract(row(k), row(i), factor[i * n + k], width);
  }
}

bool SolveTriangle(std::span<const float> triangle, size_t n, double ridge, std::span<double> right) {
  std::vector<double> matrix(n * n, 0);
  double trace = 0;
  for (size_t i = 0; i < n; ++i) {
    const float* row = triangle.data() + kernels::TriangleSize(static_cast<int>(i));
    for (size_t j = 0; j <= i; ++j) matrix[i * n + j] = static_cast<double>(row[j]);
    trace += static_cast<double>(row[i]);
  }
  for (size_t i = 0; i < n; ++i) matrix[i * n + i] += ridge * trace / static_cast<double>(n);
  if (!FactorSmall(matrix, n)) return false;
  SolveSmall(matrix, n, right);
  return true;
}

bool RidgeRegression(const MatrixView& x, const MatrixView& target, double ridge, std::span<float> change) {
  const size_t n = x.rows, u = x.columns, width = target.columns, size = std::min(n, u);
  double trace = 0;
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < u; ++j) trace += static_cast<double>(x.row(i)[j]) * static_cast<double>(x.row(i)[j]);
  }
  const double weight = ridge * trace / static_cast<double>(u);
  std::vector<float> gram(size * size, 0.0F), right(size * width, 0.0F), scale;
  // X'X and X't, or with fewer rows than columns XX' and t: then change = X' (XX' + weight)^-1 t.
  const bool dual = n < u;
  if (dual) {
    AddGram(x, gram);
    for (size_t i = 0; i < n; ++i) std::copy_n(target.row(i), width, right.data() + i * width);
  } else {
    for (size_t from = 0; from < n; from += kTile) {
      const size_t count = std::min(kTile, n - from);
      const std::vector<float> columns = Transposed(RowsOf(x, from, count)),
                               wanted = Transposed(RowsOf(target, from, count));
      AddGram(ViewOf(columns.data(), u, count), gram);
      ProductsOfRows(ViewOf(columns.data(), u, count), ViewOf(wanted.data(), width, count), right.data(), width, true);
    }
  }
  ScaleToUnit(gram, size, weight, scale);
  if (!FactorLarge(gram, size)) return false;
  ScaleRows(right, width, scale);
  SolveLarge(gram, size, right, width);
  ScaleRows(right, width, scale);
  if (!dual) {
    std::ranges::copy(right, change.begin());
    return true;
  }
  for (size_t from = 0; from < n; from += kTile) {
    const size_t count = std::min(kTile, n - from);
    const std::vector<float> columns = Transposed(RowsOf(x, from, count));
    const std::vector<float> part = Transposed(ViewOf(right.data() + from * width, count, width));
    ProductsOfRows(ViewOf(columns.data(), u, count), ViewOf(part.data(), width, count), change.data(), width, from > 0);
  }
  return true;
}

}  // namespace pith
