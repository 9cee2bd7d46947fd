// Products of vectors that lie as columns with a few others, for kernels that look for the largest.
#if defined(PITH_KERNELS_COLUMN_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PITH_KERNELS_COLUMN_PRODUCTS_INL_H_
#undef PITH_KERNELS_COLUMN_PRODUCTS_INL_H_
#else
#define PITH_KERNELS_COLUMN_PRODUCTS_INL_H_
#endif

#include <hwy/highway.h>

#include "kernels/column_products.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {  // each file of a target has its own

namespace hn = hwy::HWY_NAMESPACE;

// Of two vectors of columns from `at` on with kRowsAbreast rows, [dim][kRowsAbreast]: an element takes eight loads for
// twelve products, which is as many as hide their latency where two start in a cycle.
template <class D>
HWY_INLINE void ColumnProducts(D d, const float* at, size_t stride, const float* rows, int dim,
                               hn::Vec<D> (&low)[kRowsAbreast], hn::Vec<D> (&high)[kRowsAbreast]) {
  const size_t lanes = hn::Lanes(d);
  for (int r = 0; r < kRowsAbreast; ++r) low[r] = high[r] = hn::Zero(d);
  for (int c = 0; c < dim; ++c, at += stride, rows += kRowsAbreast) {
    const auto a = hn::LoadU(d, at);
    const auto b = hn::LoadU(d, at + lanes);
    for (int r = 0; r < kRowsAbreast; ++r) {
      const auto x = hn::Set(d, rows[r]);
      low[r] = hn::MulAdd(x, a, low[r]);
      high[r] = hn::MulAdd(x, b, high[r]);
    }
  }
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
