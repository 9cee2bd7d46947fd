#include <cstring>
#include <limits>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/nearest.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Must come after foreach_target.h.
#include "hwy/highway.h"

#include "kernels/column_products-inl.h"
#include "kernels/nearest.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

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

template <class D, class M>
HWY_INLINE uint64_t MaskBits(D d, M mask) {
  uint8_t bytes[8] = {};
  hn::StoreMaskBits(d, mask, bytes);
  uint64_t bits;
  std::memcpy(&bits, bytes, sizeof(bits));
  return bits;
}

// Candidates are lanes. All sources go through some of them while those lie in the nearest cache.
HWY_ATTR void NearestImpl(const float* columns, int n, int dim, size_t stride, const float* packed,
                          const int32_t* sources, int num_sources, int wanted, int32_t* nearest, float* best_products) {
  const hn::CappedTag<float, kColumnStride / 2> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  HWY_ALIGN float products[kColumnStride];
  const auto best_of = [&](int s) {
    const size_t at = static_cast<size_t>(s) * static_cast<size_t>(wanted);
    return Best{best_products + at, nearest + at, wanted};
  };
  for (int s = 0; s < num_sources; ++s) best_of(s).Clear();
  for (int j = 0; j < n; j += 2 * lanes) {
    for (int s = 0; s < num_sources; s += kRowsAbreast) {
      hn::Vec<decltype(d)> low[kRowsAbreast], high[kRowsAbreast];
      ColumnProducts(d, columns + j, stride, packed + static_cast<size_t>(s) * static_cast<size_t>(dim), dim, low,
                     high);
      for (int k = 0; k < HWY_MIN(kRowsAbreast, num_sources - s); ++k) {
        const Best best = best_of(s + k);
        const auto limit = hn::Set(d, best.limit());
        const auto low_better = hn::Gt(low[k], limit), high_better = hn::Gt(high[k], limit);
        if (hn::AllFalse(d, hn::Or(low_better, high_better))) continue;
        hn::Store(low[k], d, products);
        hn::Store(high[k], d, products + lanes);
        uint64_t bits = MaskBits(d, low_better) | MaskBits(d, high_better) << lanes;
        if (n - j < 2 * lanes) bits &= (uint64_t{1} << (n - j)) - 1;
        for (; bits != 0; bits &= bits - 1) {
          const auto i = static_cast<int>(hwy::Num0BitsBelowLS1Bit_Nonzero64(bits));
          if (products[i] > best.limit() && j + i != sources[s + k]) best.Insert(products[i], j + i);
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
  std::vector<float> best(sources.size() * static_cast<size_t>(wanted));
  const std::vector<float> packed = PackAbreast(sources.size(), static_cast<size_t>(dim), [&](size_t s, size_t c) {
    return columns[c * stride + static_cast<size_t>(sources[s])];
  });
  HWY_DYNAMIC_DISPATCH(NearestImpl)
  (columns, n, dim, stride, packed.data(), sources.data(), static_cast<int>(sources.size()), wanted, nearest,
   best.data());
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
