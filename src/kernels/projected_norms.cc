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

constexpr int kVectors = 2;
constexpr int kRows = 4;

// Entries are lanes: two vectors of them times four rows of W at a time, so that a channel takes six loads for eight
// products, and no sum crosses lanes.
HWY_ATTR void ProjectedNormsImpl(const float* values, int n, int dim, const float* projection, int hidden, size_t row_stride,
                                 int group, float* norms) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const int width = kVectors * lanes;
  constexpr int kMaxDim = 1024;
  HWY_ALIGN float columns[kVectors * kMaxDim * HWY_MAX_BYTES / sizeof(float)];
  HWY_ALIGN float sums[kVectors * HWY_MAX_BYTES / sizeof(float)];
  const auto share = hn::Set(d, 1.0f / static_cast<float>(group));
  for (int j = 0; j < n; j += width) {
    const int count = HWY_MIN(width, n - j);
    for (int k = 0; k < width; ++k) {
      const float* value = values + static_cast<size_t>(HWY_MIN(j + k, n - 1)) * static_cast<size_t>(dim);
      for (int c = 0; c < dim; ++c) columns[c * width + k] = value[c];
    }
    auto total_low = hn::Zero(d), total_high = hn::Zero(d);
    for (int q = 0; q < group; ++q) {
      const float* head = projection + static_cast<size_t>(q) * static_cast<size_t>(dim);
      for (int i = 0; i < hidden; i += kRows) {
        const float* w[kRows];
        for (int r = 0; r < kRows; ++r) w[r] = head + static_cast<size_t>(HWY_MIN(i + r, hidden - 1)) * row_stride;
        hn::Vec<decltype(d)> low[kRows], high[kRows];
        for (int r = 0; r < kRows; ++r) low[r] = high[r] = hn::Zero(d);
        for (int c = 0; c < dim; ++c) {
          const auto a = hn::Load(d, columns + c * width);
          const auto b = hn::Load(d, columns + c * width + lanes);
          for (int r = 0; r < kRows; ++r) {
            const auto x = hn::Set(d, w[r][c]);
            low[r] = hn::MulAdd(x, a, low[r]);
            high[r] = hn::MulAdd(x, b, high[r]);
          }
        }
        for (int r = 0; r < kRows && i + r < hidden; ++r) {
          total_low = hn::Add(total_low, hn::Abs(low[r]));
          total_high = hn::Add(total_high, hn::Abs(high[r]));
        }
      }
    }
    hn::Store(hn::Mul(total_low, share), d, sums);
    hn::Store(hn::Mul(total_high, share), d, sums + lanes);
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
