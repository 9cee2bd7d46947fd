#include <limits>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/nearest.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Must come after foreach_target.h.
#include "hwy/highway.h"

#include "kernels/nearest.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int kSources = 4;

// The best of one source so far: sorted, so that the last is the one to beat.
struct Best {
  float* products;
  int32_t* indices;
  int wanted;

  void Clear() const {
    for (int k = 0; k < wanted; ++k) products[k] = -std::numeric_limits<float>::infinity();
  }
  float limit() const { return products[wanted - 1]; }
  // product > limit(). Indices come in ascending order, so that equal products stay where they are.
  void Insert(float product, int32_t index) const {
    int k = wanted - 1;
    for (; k > 0 && products[k - 1] < product; --k) {
      products[k] = products[k - 1];
      indices[k] = indices[k - 1];
    }
    products[k] = product;
    indices[k] = index;
  }
};

HWY_ATTR void NearestImpl(const float* columns, int n, int dim, size_t stride, const int32_t* sources, int num_sources,
                          int wanted, int32_t* nearest, float* scratch) {
  const hn::CappedTag<float, kNearestStride> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  float* packed = scratch + kSources * wanted;  // [dim][kSources]
  HWY_ALIGN float products[kNearestStride];
  for (int s = 0; s < num_sources; s += kSources) {
    const int count = HWY_MIN(kSources, num_sources - s);
    Best best[kSources];
    for (int k = 0; k < kSources; ++k) {
      const int source = sources[s + HWY_MIN(k, count - 1)];
      for (int c = 0; c < dim; ++c) packed[c * kSources + k] = columns[static_cast<size_t>(c) * stride + static_cast<size_t>(source)];
      best[k] = {scratch + k * wanted, nearest + static_cast<size_t>(s + HWY_MIN(k, count - 1)) * static_cast<size_t>(wanted), wanted};
      best[k].Clear();
    }
    for (int j = 0; j < n; j += lanes) {
      auto a = hn::Zero(d), b = hn::Zero(d), e = hn::Zero(d), f = hn::Zero(d);
      const float* at = columns + j;
      for (int c = 0; c < dim; ++c, at += stride) {
        const auto x = hn::LoadU(d, at);
        a = hn::MulAdd(x, hn::Set(d, packed[c * kSources]), a);
        b = hn::MulAdd(x, hn::Set(d, packed[c * kSources + 1]), b);
        e = hn::MulAdd(x, hn::Set(d, packed[c * kSources + 2]), e);
        f = hn::MulAdd(x, hn::Set(d, packed[c * kSources + 3]), f);
      }
      const hn::Vec<decltype(d)> sums[kSources] = {a, b, e, f};
      for (int k = 0; k < count; ++k) {
        if (hn::AllFalse(d, hn::Gt(sums[k], hn::Set(d, best[k].limit())))) continue;
        hn::Store(sums[k], d, products);
        for (int i = 0; i < HWY_MIN(lanes, n - j); ++i) {
          if (products[i] > best[k].limit() && j + i != sources[s + k]) best[k].Insert(products[i], j + i);
        }
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <numeric>

namespace pith::kernels {

HWY_EXPORT(NearestImpl);

void Nearest(const float* columns, int n, int dim, size_t stride, std::span<const int32_t> sources, int wanted,
             int32_t* nearest) {
  if (wanted <= 0) return;
  std::vector<float> scratch(kNearestStride * static_cast<size_t>(wanted + dim));
  HWY_DYNAMIC_DISPATCH(NearestImpl)
  (columns, n, dim, stride, sources.data(), static_cast<int>(sources.size()), wanted, nearest, scratch.data());
}

void NearestScalar(const float* columns, int n, int dim, size_t stride, std::span<const int32_t> sources, int wanted,
                   int32_t* nearest) {
  std::vector<float> products(static_cast<size_t>(n));
  std::vector<int32_t> order;
  for (const int32_t source : sources) {
    order.resize(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    order.erase(order.begin() + source);
    for (int32_t j = 0; j < n; ++j) {
      float product = 0;
      for (int c = 0; c < dim; ++c) product += columns[static_cast<size_t>(c) * stride + static_cast<size_t>(source)] *
                                               columns[static_cast<size_t>(c) * stride + static_cast<size_t>(j)];
      products[static_cast<size_t>(j)] = product;
    }
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return products[static_cast<size_t>(a)] > products[static_cast<size_t>(b)];
    });
    nearest = std::copy_n(order.begin(), wanted, nearest);
  }
}

}  // namespace pith::kernels
#endif  // HWY_ONCE
