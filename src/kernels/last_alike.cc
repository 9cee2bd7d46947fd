#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/last_alike.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Must come after foreach_target.h.
#include "hwy/highway.h"

#include "kernels/column_products-inl.h"
#include "kernels/last_alike.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {

// Candidates are lanes, from the newest on. All keys that have found none go through some of them while those lie in
// the nearest cache. open: [groups of kRowsAbreast keys].
HWY_ATTR void LastAlikeImpl(const float* columns, int n, int dim, size_t stride, float threshold, int begin, int end,
                            const float* packed, int32_t* open, int32_t* last) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto limit = hn::Set(d, threshold);
  HWY_ALIGN float products[2 * HWY_MAX_BYTES / sizeof(float)];
  int num_open = 0;
  for (int i = begin; i < end; i += kRowsAbreast) open[num_open++] = i;
  for (int i = begin; i < end; ++i) last[i] = -1;
  for (int from = (n - 1) / (2 * lanes) * 2 * lanes; from >= 0 && num_open > 0; from -= 2 * lanes) {
    int still_open = 0;
    for (int o = 0; o < num_open; ++o) {
      const int i = open[o], rows = HWY_MIN(kRowsAbreast, end - i);
      hn::Vec<decltype(d)> low[kRowsAbreast], high[kRowsAbreast];
      ColumnProducts(d, columns + from, stride, packed + static_cast<size_t>(i - begin) * static_cast<size_t>(dim), dim,
                     low, high);
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

HWY_ATTR void LargestProductsImpl(const float* columns, int n, int dim, size_t stride, const float* packed,
                                  int num_sets, int set_size, float* out, size_t out_stride) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d)), num_rows = num_sets * set_size;
  HWY_ALIGN float products[2 * HWY_MAX_BYTES / sizeof(float)];
  const auto least = hn::Set(d, hwy::LowestValue<float>());
  for (int from = 0; from < n; from += 2 * lanes) {
    auto most_low = least, most_high = least;
    float* to = out + from;
    int in_set = 0;
    for (int t = 0; t < num_rows; t += kRowsAbreast) {
      hn::Vec<decltype(d)> low[kRowsAbreast], high[kRowsAbreast];
      ColumnProducts(d, columns + from, stride, packed + static_cast<size_t>(t) * static_cast<size_t>(dim), dim, low,
                     high);
      for (int r = 0; r < HWY_MIN(kRowsAbreast, num_rows - t); ++r) {
        most_low = hn::Max(most_low, low[r]);
        most_high = hn::Max(most_high, high[r]);
        if (++in_set < set_size) continue;
        hn::Store(most_low, d, products);
        hn::Store(most_high, d, products + lanes);
        for (int k = 0; k < HWY_MIN(2 * lanes, n - from); ++k) to[k] = products[k];
        to += out_stride;
        most_low = most_high = least;
        in_set = 0;
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
HWY_EXPORT(LargestProductsImpl);

void LastAlike(const float* columns, int n, int dim, size_t stride, float threshold, int begin, int end,
               int32_t* last) {
  const auto count = static_cast<size_t>(end - begin);
  const std::vector<float> packed = PackAbreast(count, static_cast<size_t>(dim), [&](size_t i, size_t c) {
    return columns[c * stride + static_cast<size_t>(begin) + i];
  });
  std::vector<int32_t> open(count / kRowsAbreast + 1);
  HWY_DYNAMIC_DISPATCH(LastAlikeImpl)(columns, n, dim, stride, threshold, begin, end, packed.data(), open.data(), last);
}

void LargestProducts(const float* columns, int n, int dim, size_t stride, const RowSets& sets, float* out,
                     size_t out_stride) {
  const auto size = static_cast<size_t>(sets.set_size), count = static_cast<size_t>(sets.num_sets) * size;
  const std::vector<float> packed = PackAbreast(count, static_cast<size_t>(dim), [&](size_t t, size_t c) {
    return sets.rows[t / size * sets.set_stride + t % size * sets.row_stride + c];
  });
  HWY_DYNAMIC_DISPATCH(LargestProductsImpl)
  (columns, n, dim, stride, packed.data(), sets.num_sets, sets.set_size, out, out_stride);
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
