#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/triangles.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Must come after foreach_target.h.
#include <algorithm>

#include "hwy/highway.h"
#include "kernels/triangles.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Four rows at a time share each load and store of the sums.
HWY_ATTR void AddOuterProductsImpl(const float* rows, int count, int dim, float* sums) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto width = static_cast<size_t>(dim);
  for (int t = 0; t < count; t += 4) {
    const float* r[4];
    for (int u = 0; u < 4; ++u) r[u] = rows + static_cast<size_t>(HWY_MIN(t + u, count - 1)) * width;
    float* to = sums;
    for (int i = 0; i < dim; to += ++i) {
      float x[4];
      for (int u = 0; u < 4; ++u) x[u] = t + u < count ? r[u][i] : 0.0f;
      const auto x0 = hn::Set(d, x[0]), x1 = hn::Set(d, x[1]), x2 = hn::Set(d, x[2]), x3 = hn::Set(d, x[3]);
      int k = 0;
      for (; k + lanes <= i + 1; k += lanes) {
        auto sum = hn::MulAdd(x0, hn::LoadU(d, r[0] + k), hn::LoadU(d, to + k));
        sum = hn::MulAdd(x1, hn::LoadU(d, r[1] + k), sum);
        sum = hn::MulAdd(x2, hn::LoadU(d, r[2] + k), sum);
        hn::StoreU(hn::MulAdd(x3, hn::LoadU(d, r[3] + k), sum), d, to + k);
      }
      for (; k <= i; ++k) to[k] += x[0] * r[0][k] + x[1] * r[1][k] + x[2] * r[2][k] + x[3] * r[3][k];
    }
  }
}

// Half of the form is summed, with half of the diagonal. Rows of x are lanes: four rows of the triangle at a time share
// each load of a channel.
HWY_ATTR void QuadraticFormsImpl(const float* rows, int n, int dim, const float* triangle, float* out) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  constexpr int kMaxDim = 1024;
  HWY_ALIGN float columns[kMaxDim * HWY_MAX_BYTES / sizeof(float)];
  HWY_ALIGN float totals[HWY_MAX_BYTES / sizeof(float)];
  for (int j = 0; j < n; j += lanes) {
    const int count = HWY_MIN(lanes, n - j);
    for (int c = 0; c < dim; ++c) {
      for (int k = 0; k < lanes; ++k) {
        columns[c * lanes + k] =
            k < count ? rows[static_cast<size_t>(j + k) * static_cast<size_t>(dim) + static_cast<size_t>(c)] : 0.0f;
      }
    }
    auto total = hn::Zero(d);
    int i = 0;
    for (; i + 4 <= dim; i += 4) {
      const float* m0 = triangle + TriangleSize(i);
      const float *m1 = m0 + i + 1, *m2 = m1 + i + 2, *m3 = m2 + i + 3;
      auto a0 = hn::Zero(d), a1 = hn::Zero(d), a2 = hn::Zero(d), a3 = hn::Zero(d);
      for (int k = 0; k < i; ++k) {
        const auto x = hn::Load(d, columns + k * lanes);
        a0 = hn::MulAdd(x, hn::Set(d, m0[k]), a0);
        a1 = hn::MulAdd(x, hn::Set(d, m1[k]), a1);
        a2 = hn::MulAdd(x, hn::Set(d, m2[k]), a2);
        a3 = hn::MulAdd(x, hn::Set(d, m3[k]), a3);
      }
      const auto x0 = hn::Load(d, columns + i * lanes), x1 = hn::Load(d, columns + (i + 1) * lanes);
      const auto x2 = hn::Load(d, columns + (i + 2) * lanes), x3 = hn::Load(d, columns + (i + 3) * lanes);
      a0 = hn::MulAdd(x0, hn::Set(d, m0[i] / 2), a0);
      a1 = hn::MulAdd(x1, hn::Set(d, m1[i + 1] / 2), hn::MulAdd(x0, hn::Set(d, m1[i]), a1));
      a2 = hn::MulAdd(x1, hn::Set(d, m2[i + 1]), hn::MulAdd(x0, hn::Set(d, m2[i]), a2));
      a2 = hn::MulAdd(x2, hn::Set(d, m2[i + 2] / 2), a2);
      a3 = hn::MulAdd(x1, hn::Set(d, m3[i + 1]), hn::MulAdd(x0, hn::Set(d, m3[i]), a3));
      a3 = hn::MulAdd(x3, hn::Set(d, m3[i + 3] / 2), hn::MulAdd(x2, hn::Set(d, m3[i + 2]), a3));
      total = hn::MulAdd(x0, a0, hn::MulAdd(x1, a1, total));
      total = hn::MulAdd(x2, a2, hn::MulAdd(x3, a3, total));
    }
    for (; i < dim; ++i) {
      const float* m = triangle + TriangleSize(i);
      auto a = hn::Zero(d);
      for (int k = 0; k < i; ++k) a = hn::MulAdd(hn::Load(d, columns + k * lanes), hn::Set(d, m[k]), a);
      const auto x = hn::Load(d, columns + i * lanes);
      total = hn::MulAdd(x, hn::MulAdd(x, hn::Set(d, m[i] / 2), a), total);
    }
    hn::Store(total, d, totals);
    for (int k = 0; k < count; ++k) out[j + k] = 2 * totals[k];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pith::kernels {

HWY_EXPORT(AddOuterProductsImpl);
HWY_EXPORT(QuadraticFormsImpl);

void AddOuterProducts(const float* rows, int count, int dim, float* sums) {
  HWY_DYNAMIC_DISPATCH(AddOuterProductsImpl)(rows, count, dim, sums);
}

void QuadraticForms(const float* rows, int n, int dim, const float* triangle, float* out) {
  HWY_DYNAMIC_DISPATCH(QuadraticFormsImpl)(rows, n, dim, triangle, out);
}

void AddOuterProductsScalar(const float* rows, int count, int dim, float* sums) {
  for (int t = 0; t < count; ++t) {
    const float* row = rows + static_cast<size_t>(t) * static_cast<size_t>(dim);
    for (int i = 0; i < dim; ++i) {
      for (int k = 0; k <= i; ++k) sums[TriangleSize(i) + static_cast<size_t>(k)] += row[i] * row[k];
    }
  }
}

void QuadraticFormsScalar(const float* rows, int n, int dim, const float* triangle, float* out) {
  for (int j = 0; j < n; ++j) {
    const float* row = rows + static_cast<size_t>(j) * static_cast<size_t>(dim);
    double total = 0;
    for (int i = 0; i < dim; ++i) {
      for (int k = 0; k < dim; ++k) {
        const float m = triangle[TriangleSize(std::max(i, k)) + static_cast<size_t>(std::min(i, k))];
        total += static_cast<double>(m) * static_cast<double>(row[i]) * static_cast<double>(row[k]);
      }
    }
    out[j] = static_cast<float>(total);
  }
}

}  // namespace pith::kernels
#endif  // HWY_ONCE
