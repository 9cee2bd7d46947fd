#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/projected_norms.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Must come after foreach_target.h.
#include "hwy/highway.h"

#include "kernels/projected_norms.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Entries are lanes: four rows of W at a time share each load of a channel, and
// no sum crosses lanes.
HWY_ATTR void ProjectedNormsImpl(const float* values, int n, int dim, const float* projection, int hidden, size_t row_stride,
                                 int group, float* norms) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  constexpr int kMaxDim = 1024;
  HWY_ALIGN float columns[kMaxDim * HWY_MAX_BYTES / sizeof(float)];
  HWY_ALIGN float sums[HWY_MAX_BYTES / sizeof(float)];
  for (int j = 0; j < n; j += lanes) {
    const int count = HWY_MIN(lanes, n - j);
    for (int c = 0; c < dim; ++c) {
      for (int k = 0; k < lanes; ++k) columns[c * lanes + k] = k < count ? values[static_cast<size_t>(j + k) * static_cast<size_t>(dim) + static_cast<size_t>(c)] : 0.0f;
    }
    auto total = hn::Zero(d);
    for (int q = 0; q < group; ++q) {
      const float* head = projection + static_cast<size_t>(q) * static_cast<size_t>(dim);
      for (int i = 0; i < hidden; i += 4) {
        const size_t row = static_cast<size_t>(i);
        const float* w0 = head + row * row_stride;
        const float* w1 = i + 1 < hidden ? w0 + row_stride : w0;
        const float* w2 = i + 2 < hidden ? w0 + 2 * row_stride : w0;
        const float* w3 = i + 3 < hidden ? w0 + 3 * row_stride : w0;
        auto a0 = hn::Zero(d), a1 = hn::Zero(d), a2 = hn::Zero(d), a3 = hn::Zero(d);
        for (int c = 0; c < dim; ++c) {
          const auto v = hn::Load(d, columns + c * lanes);
          a0 = hn::MulAdd(v, hn::Set(d, w0[c]), a0);
          a1 = hn::MulAdd(v, hn::Set(d, w1[c]), a1);
          a2 = hn::MulAdd(v, hn::Set(d, w2[c]), a2);
          a3 = hn::MulAdd(v, hn::Set(d, w3[c]), a3);
        }
        total = hn::Add(total, hn::Abs(a0));
        if (i + 1 < hidden) total = hn::Add(total, hn::Abs(a1));
        if (i + 2 < hidden) total = hn::Add(total, hn::Abs(a2));
        if (i + 3 < hidden) total = hn::Add(total, hn::Abs(a3));
      }
    }
    hn::Store(hn::Mul(total, hn::Set(d, 1.0f / static_cast<float>(group))), d, sums);
    for (int k = 0; k < count; ++k) norms[j + k] = sums[k];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pith::kernels {

HWY_EXPORT(ProjectedNormsImpl);

void ProjectedNorms(const float* values, int n, int dim, const float* projection, int hidden, size_t row_stride, int group,
                    float* norms) {
  HWY_DYNAMIC_DISPATCH(ProjectedNormsImpl)(values, n, dim, projection, hidden, row_stride, group, norms);
}

}  // namespace pith::kernels
#endif  // HWY_ONCE
