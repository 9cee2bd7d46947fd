#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/last_alike.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Must come after foreach_target.h.
#include "hwy/highway.h"

#include "kernels/last_alike.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int kRows = 4;

// Candidates are lanes, two vectors of them at a time, from the newest on; four keys share each load.
HWY_ATTR void LastAlikeImpl(const float* columns, int n, int dim, size_t stride, float threshold, int32_t* last) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto limit = hn::Set(d, threshold);
  HWY_ALIGN float products[2 * HWY_MAX_BYTES / sizeof(float)];
  for (int i = 0; i < n; i += kRows) {
    const int rows = HWY_MIN(kRows, n - i);
    for (int r = 0; r < rows; ++r) last[i + r] = -1;
    int open = rows;
    for (int from = (n - 1) / (2 * lanes) * 2 * lanes; from >= 0 && open > 0; from -= 2 * lanes) {
      hn::Vec<decltype(d)> low[kRows], high[kRows];
      for (int r = 0; r < kRows; ++r) low[r] = high[r] = hn::Zero(d);
      for (int c = 0; c < dim; ++c) {
        const float* row = columns + static_cast<size_t>(c) * stride;
        const auto a = hn::LoadU(d, row + from);
        const auto b = hn::LoadU(d, row + from + lanes);
        for (int r = 0; r < kRows; ++r) {
          const auto x = hn::Set(d, row[r < rows ? i + r : i]);
          low[r] = hn::MulAdd(x, a, low[r]);
          high[r] = hn::MulAdd(x, b, high[r]);
        }
      }
      for (int r = 0; r < rows; ++r) {
        if (last[i + r] >= 0) continue;
        const auto any = hn::Or(hn::Gt(low[r], limit), hn::Gt(high[r], limit));
        if (hn::AllFalse(d, any)) continue;
        hn::Store(low[r], d, products);
        hn::Store(high[r], d, products + lanes);
        for (int k = HWY_MIN(2 * lanes, n - from) - 1; k >= 0 && last[i + r] < 0; --k) {
          if (products[k] > threshold && from + k != i + r) last[i + r] = from + k;
        }
        open -= last[i + r] >= 0;
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pith::kernels {

HWY_EXPORT(LastAlikeImpl);

void LastAlike(const float* columns, int n, int dim, size_t stride, float threshold, int32_t* last) {
  HWY_DYNAMIC_DISPATCH(LastAlikeImpl)(columns, n, dim, stride, threshold, last);
}

void LastAlikeScalar(const float* columns, int n, int dim, size_t stride, float threshold, int32_t* last) {
  for (int i = 0; i < n; ++i) {
    last[i] = -1;
    for (int j = n; j-- > 0 && last[i] < 0;) {
      float product = 0;
      for (int c = 0; c < dim; ++c) {
        const float* row = columns + static_cast<size_t>(c) * stride;
        product += row[i] * row[j];
      }
      if (j != i && product > threshold) last[i] = j;
    }
  }
}

}  // namespace pith::kernels
#endif  // HWY_ONCE
