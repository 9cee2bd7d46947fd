#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/last_alike.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Must come after foreach_target.h.
#include "hwy/highway.h"

#include "kernels/last_alike.h"

#ifndef PITH_KERNELS_ALIKE_ROWS
#define PITH_KERNELS_ALIKE_ROWS
namespace pith::kernels {
constexpr int kAlikeRows = 4;  // that go abreast
}  // namespace pith::kernels
#endif  // PITH_KERNELS_ALIKE_ROWS

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int kRows = kAlikeRows;

// Candidates are lanes, two vectors of them at a time, from the newest on; four keys share each load, and all keys that
// have found none go through some candidates while those lie in the nearest cache. open: [keys / kRows], groups of keys.
HWY_ATTR void LastAlikeImpl(const float* columns, int n, int dim, size_t stride, float threshold, int begin, int end,
                            const float* packed, int32_t* open, int32_t* last) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto limit = hn::Set(d, threshold);
  HWY_ALIGN float products[2 * HWY_MAX_BYTES / sizeof(float)];
  int num_open = 0;
  for (int i = begin; i < end; i += kRows) open[num_open++] = i;
  for (int i = begin; i < end; ++i) last[i] = -1;
  for (int from = (n - 1) / (2 * lanes) * 2 * lanes; from >= 0 && num_open > 0; from -= 2 * lanes) {
    int still_open = 0;
    for (int o = 0; o < num_open; ++o) {
      const int i = open[o], rows = HWY_MIN(kRows, end - i);
      hn::Vec<decltype(d)> low[kRows], high[kRows];
      for (int r = 0; r < kRows; ++r) low[r] = high[r] = hn::Zero(d);
      const float* at = columns + from;
      const float* keys = packed + static_cast<size_t>(i - begin) * static_cast<size_t>(dim);
      for (int c = 0; c < dim; ++c, at += stride, keys += kRows) {
        const auto a = hn::LoadU(d, at);
        const auto b = hn::LoadU(d, at + lanes);
        for (int r = 0; r < kRows; ++r) {
          const auto x = hn::Set(d, keys[r]);
          low[r] = hn::MulAdd(x, a, low[r]);
          high[r] = hn::MulAdd(x, b, high[r]);
        }
      }
      bool all_found = true;
      for (int r = 0; r < rows; ++r) {
        if (last[i + r] >= 0) continue;
        const auto any = hn::Or(hn::Gt(low[r], limit), hn::Gt(high[r], limit));
        if (!hn::AllFalse(d, any)) {
          hn::Store(low[r], d, products);
          hn::Store(high[r], d, products + lanes);
          for (int k = HWY_MIN(2 * lanes, n - from) - 1; k >= 0 && last[i + r] < 0; --k) {
            if (products[k] > threshold && from + k != i + r) last[i + r] = from + k;
          }
        }
        all_found = all_found && last[i + r] >= 0;
      }
      if (!all_found) open[still_open++] = i;
    }
    num_open = still_open;
  }
}

HWY_ATTR void LargestProductsImpl(const float* columns, int n, int dim, size_t stride, const float* rows, size_t row_stride,
                                  int count, float* out) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  HWY_ALIGN float products[2 * HWY_MAX_BYTES / sizeof(float)];
  for (int from = 0; from < n; from += 2 * lanes) {
    auto most_low = hn::Set(d, hwy::LowestValue<float>()), most_high = most_low;
    for (int t = 0; t < count; t += kRows) {
      const float* row[kRows];
      hn::Vec<decltype(d)> low[kRows], high[kRows];
      for (int r = 0; r < kRows; ++r) {
        row[r] = rows + static_cast<size_t>(HWY_MIN(t + r, count - 1)) * row_stride;
        low[r] = high[r] = hn::Zero(d);
      }
      for (int c = 0; c < dim; ++c) {
        const float* column = columns + static_cast<size_t>(c) * stride + from;
        const auto a = hn::LoadU(d, column);
        const auto b = hn::LoadU(d, column + lanes);
        for (int r = 0; r < kRows; ++r) {
          const auto x = hn::Set(d, row[r][c]);
          low[r] = hn::MulAdd(x, a, low[r]);
          high[r] = hn::MulAdd(x, b, high[r]);
        }
      }
      for (int r = 0; r < kRows; ++r) {
        most_low = hn::Max(most_low, low[r]);
        most_high = hn::Max(most_high, high[r]);
      }
    }
    hn::Store(most_low, d, products);
    hn::Store(most_high, d, products + lanes);
    for (int k = 0; k < HWY_MIN(2 * lanes, n - from); ++k) out[from + k] = products[k];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pith::kernels {

HWY_EXPORT(LastAlikeImpl);
HWY_EXPORT(LargestProductsImpl);

void LastAlike(const float* columns, int n, int dim, size_t stride, float threshold, int begin, int end, int32_t* last) {
  const auto count = static_cast<size_t>(end - begin), width = static_cast<size_t>(dim), groups = (count + kAlikeRows - 1) / kAlikeRows;
  std::vector<float> packed(groups * kAlikeRows * width);  // [groups][dim][kAlikeRows]
  std::vector<int32_t> open(groups);
  for (size_t i = 0; i < count; ++i) {
    float* to = packed.data() + i / kAlikeRows * kAlikeRows * width + i % kAlikeRows;
    for (size_t c = 0; c < width; ++c) to[c * kAlikeRows] = columns[c * stride + static_cast<size_t>(begin) + i];
  }
  HWY_DYNAMIC_DISPATCH(LastAlikeImpl)(columns, n, dim, stride, threshold, begin, end, packed.data(), open.data(), last);
}

void LargestProducts(const float* columns, int n, int dim, size_t stride, const float* rows, size_t row_stride, int count,
                     float* out) {
  HWY_DYNAMIC_DISPATCH(LargestProductsImpl)(columns, n, dim, stride, rows, row_stride, count, out);
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
