#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/pooling.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Must come after foreach_target.h.
#include "hwy/highway.h"

#include "kernels/pooling.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

HWY_INLINE float PoolOne(const float* in, int64_t n, int64_t first, int64_t last, bool largest) {
  const int64_t begin = HWY_MAX(first, 0), end = HWY_MIN(last, n - 1);
  float pooled = largest ? in[begin] : 0;
  for (int64_t j = begin; j <= end; ++j) pooled = largest ? HWY_MAX(pooled, in[j]) : pooled + in[j];
  return largest ? pooled : pooled / static_cast<float>(last - first + 1);
}

HWY_ATTR void PoolRowImpl(const float* in, int64_t n, int64_t before, int64_t after, bool largest, float* out) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto width = hn::Set(d, static_cast<float>(before + after + 1));
  int64_t i = 0;
  for (; i < HWY_MIN(before, n); ++i) out[i] = PoolOne(in, n, i - before, i + after, largest);
  for (; i + lanes + after <= n; i += lanes) {
    const float* at = in + i - before;
    auto pooled = hn::LoadU(d, at);
    if (largest) {
      for (int64_t k = 1; k <= before + after; ++k) pooled = hn::Max(pooled, hn::LoadU(d, at + k));
    } else {
      for (int64_t k = 1; k <= before + after; ++k) pooled = hn::Add(pooled, hn::LoadU(d, at + k));
      pooled = hn::Div(pooled, width);
    }
    hn::StoreU(pooled, d, out + i);
  }
  for (; i < n; ++i) out[i] = PoolOne(in, n, i - before, i + after, largest);
}

void ColumnMomentsOf(const float* rows, size_t stride, int count, size_t from, size_t to, double* mean,
                     double* squares) {
  for (size_t j = from; j < to; ++j) {
    double sum = 0, square = 0;
    for (int t = 0; t < count; ++t) sum += static_cast<double>(rows[static_cast<size_t>(t) * stride + j]);
    mean[j] = sum / count;
    for (int t = 0; t < count; ++t) {
      const double apart = static_cast<double>(rows[static_cast<size_t>(t) * stride + j]) - mean[j];
      square += apart * apart;
    }
    squares[j] = square;
  }
}

// Some columns at a time, whose rows stay in the nearest cache from the first pass to the second.
HWY_ATTR void ColumnMomentsImpl(const float* rows, size_t stride, int count, size_t n, double* mean, double* squares) {
  size_t j = 0;
#if HWY_HAVE_FLOAT64
  const hn::ScalableTag<double> dd;
  const hn::Rebind<float, decltype(dd)> d;
  const size_t lanes = hn::Lanes(d);
  for (; j + lanes <= n && count > 0; j += lanes) {
    auto sum = hn::Zero(dd), square = hn::Zero(dd);
    for (int t = 0; t < count; ++t)
      sum = hn::Add(sum, hn::PromoteTo(dd, hn::LoadU(d, rows + static_cast<size_t>(t) * stride + j)));
    const auto of_all = hn::Div(sum, hn::Set(dd, static_cast<double>(count)));
    for (int t = 0; t < count; ++t) {
      const auto apart = hn::Sub(hn::PromoteTo(dd, hn::LoadU(d, rows + static_cast<size_t>(t) * stride + j)), of_all);
      square = hn::MulAdd(apart, apart, square);
    }
    hn::StoreU(of_all, dd, mean + j);
    hn::StoreU(square, dd, squares + j);
  }
#endif
  ColumnMomentsOf(rows, stride, count, j, n, mean, squares);
}

HWY_ATTR double SumRowImpl(const float* values, int64_t n) {
#if HWY_HAVE_FLOAT64
  const hn::ScalableTag<double> dd;
  const hn::Rebind<float, decltype(dd)> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto even = hn::Zero(dd), odd = hn::Zero(dd);
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    even = hn::Add(even, hn::PromoteTo(dd, hn::LoadU(d, values + i)));
    odd = hn::Add(odd, hn::PromoteTo(dd, hn::LoadU(d, values + i + lanes)));
  }
  double sum = hn::GetLane(hn::SumOfLanes(dd, hn::Add(even, odd)));
#else
  int64_t i = 0;
  double sum = 0;
#endif
  for (; i < n; ++i) sum += static_cast<double>(values[i]);
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pith::kernels {

HWY_EXPORT(PoolRowImpl);
HWY_EXPORT(SumRowImpl);
HWY_EXPORT(ColumnMomentsImpl);

void PoolRow(std::span<const float> in, int64_t before, int64_t after, bool largest, std::span<float> out) {
  HWY_DYNAMIC_DISPATCH(PoolRowImpl)(in.data(), static_cast<int64_t>(in.size()), before, after, largest, out.data());
}

void ColumnMoments(const float* rows, size_t stride, int count, size_t n, double* mean, double* squares) {
  HWY_DYNAMIC_DISPATCH(ColumnMomentsImpl)(rows, stride, count, n, mean, squares);
}

double SumRow(std::span<const float> values) {
  return HWY_DYNAMIC_DISPATCH(SumRowImpl)(values.data(), static_cast<int64_t>(values.size()));
}

}  // namespace pith::kernels
#endif  // HWY_ONCE
