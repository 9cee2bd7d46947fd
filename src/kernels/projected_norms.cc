#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/projected_norms.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Must come after foreach_target.h.
#include "hwy/highway.h"

#include <cmath>
#include <cstring>

#include "kernels/projected_norms.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int kVectors = 2;
constexpr int kRows = 4;

HWY_INLINE int32_t PairAt(const int16_t* words, int pair) {
  int32_t both;
  std::memcpy(&both, words + 2 * pair, sizeof(both));
  return both;
}

// Words of up to `largest`, dim of them. Returns what a word is worth.
HWY_INLINE float RoundToWords(const float* x, int dim, float largest, int16_t* words) {
  const hn::ScalableTag<float> d;
  const hn::Rebind<int16_t, decltype(d)> dw;
  const int lanes = static_cast<int>(hn::Lanes(d)), whole = dim - dim % lanes;
  auto most_of = hn::Zero(d);
  for (int c = 0; c < whole; c += lanes) most_of = hn::Max(most_of, hn::Abs(hn::LoadU(d, x + c)));
  float most = hn::GetLane(hn::MaxOfLanes(d, most_of));
  for (int c = whole; c < dim; ++c) most = HWY_MAX(most, HWY_MAX(x[c], -x[c]));
  const float scale = most > 0 ? largest / most : 0;
  for (int c = 0; c < whole; c += lanes) {
    hn::StoreU(hn::DemoteTo(dw, hn::NearestInt(hn::Mul(hn::LoadU(d, x + c), hn::Set(d, scale)))), dw, words + c);
  }
  for (int c = whole; c < dim; ++c) words[c] = static_cast<int16_t>(x[c] * scale + (x[c] < 0 ? -0.5f : 0.5f));
  return most / largest;
}

HWY_ATTR void PackRowsImpl(const float* projection, int hidden, size_t row_stride, int group, int dim, int largest, int16_t* words,
                           float* scales) {
  const int padded = (dim + 1) / 2 * 2;
  for (int q = 0; q < group; ++q) {
    for (int i = 0; i < hidden; ++i, words += padded) {
      words[padded - 1] = 0;
      const float* weights = projection + static_cast<size_t>(i) * row_stride + static_cast<size_t>(q) * static_cast<size_t>(dim);
      *scales++ = RoundToWords(weights, dim, static_cast<float>(largest), words);
    }
  }
}

#if HWY_TARGET == HWY_SCALAR
void ProjectedNormsImpl(const float* values, int n, const PackedProjection& projection, int32_t* columns, float* norms) {
  const int dim = projection.dim();
  int16_t* words = reinterpret_cast<int16_t*>(columns);
  for (int j = 0; j < n; ++j, values += dim) {
    const float scale = RoundToWords(values, dim, static_cast<float>(projection.largest()), words);
    float total = 0;
    for (int q = 0; q < projection.group(); ++q) {
      for (int i = 0; i < projection.hidden(); ++i) {
        const int16_t* w = projection.row(q, i);
        int32_t sum = 0;
        for (int c = 0; c < dim; ++c) sum += words[c] * w[c];
        total += static_cast<float>(sum < 0 ? -sum : sum) * projection.scale(q, i);
      }
    }
    norms[j] = total * scale / static_cast<float>(projection.group());
  }
}
#else
// Sums of two products of neighbours; which of them go to `odd` is the target's affair (hn::RearrangeToOddPlusEven).
template <class DI, class VW, class VI>
HWY_INLINE void AddProducts(DI di, VW a, VW b, VI& sum, VI& odd) {
#if HWY_TARGET == HWY_AVX3_DL  // Highway multiplies and adds
  (void)di, (void)odd;
  asm("vpdpwssd %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
#else
  sum = hn::ReorderWidenMulAccumulate(di, a, b, sum, odd);
#endif
}

// Entries are lanes: two vectors of them times four rows of W at a time, so that two channels take six loads for eight
// instructions of products, and no sum crosses lanes.
HWY_ATTR void ProjectedNormsImpl(const float* values, int n, const PackedProjection& projection, int32_t* columns, float* norms) {
  const hn::ScalableTag<int32_t> di;
  const hn::Repartition<int16_t, decltype(di)> dw;
  const hn::Repartition<float, decltype(di)> d;
  const int lanes = static_cast<int>(hn::Lanes(di)), width = kVectors * lanes;
  const int dim = projection.dim(), pairs = projection.num_pairs(), hidden = projection.hidden(), group = projection.group();
  HWY_ALIGN float scales[kVectors * HWY_MAX_BYTES / sizeof(float)];
  for (int j = 0; j < n; j += width) {
    const int count = HWY_MIN(width, n - j);
    for (int k = 0; k < width; ++k) {
      const float* value = values + static_cast<size_t>(HWY_MIN(j + k, n - 1)) * static_cast<size_t>(dim);
      int16_t* words = reinterpret_cast<int16_t*>(columns + width * pairs);
      words[2 * pairs - 1] = 0;
      scales[k] = RoundToWords(value, dim, static_cast<float>(projection.largest()), words) / static_cast<float>(group);
      for (int p = 0; p < pairs; ++p) std::memcpy(columns + p * width + k, words + 2 * p, sizeof(int32_t));
    }
    auto total_low = hn::Zero(d), total_high = hn::Zero(d);
    for (int q = 0; q < group; ++q) {
      for (int i = 0; i < hidden; i += kRows) {
        const int16_t* w[kRows];
        hn::Vec<decltype(di)> low[kRows], high[kRows], low_odd[kRows], high_odd[kRows];
        for (int r = 0; r < kRows; ++r) {
          w[r] = projection.row(q, HWY_MIN(i + r, hidden - 1));
          low[r] = high[r] = low_odd[r] = high_odd[r] = hn::Zero(di);
        }
        for (int p = 0; p < pairs; ++p) {
          const auto a = hn::BitCast(dw, hn::Load(di, columns + p * width));
          const auto b = hn::BitCast(dw, hn::Load(di, columns + p * width + lanes));
          for (int r = 0; r < kRows; ++r) {
            const auto x = hn::BitCast(dw, hn::Set(di, PairAt(w[r], p)));
            AddProducts(di, a, x, low[r], low_odd[r]);
            AddProducts(di, b, x, high[r], high_odd[r]);
          }
        }
        for (int r = 0; r < kRows && i + r < hidden; ++r) {
          const auto scale = hn::Set(d, projection.scale(q, i + r));
          const auto of_low = hn::ConvertTo(d, hn::RearrangeToOddPlusEven(low[r], low_odd[r]));
          const auto of_high = hn::ConvertTo(d, hn::RearrangeToOddPlusEven(high[r], high_odd[r]));
          total_low = hn::MulAdd(hn::Abs(of_low), scale, total_low);
          total_high = hn::MulAdd(hn::Abs(of_high), scale, total_high);
        }
      }
    }
    hn::Store(hn::Mul(total_low, hn::Load(d, scales)), d, scales);
    hn::Store(hn::Mul(total_high, hn::Load(d, scales + lanes)), d, scales + lanes);
    for (int k = 0; k < count; ++k) norms[j + k] = scales[k];
  }
}
#endif

// Entries abreast.
int NormWidthImpl() { return kVectors * static_cast<int>(hn::Lanes(hn::ScalableTag<int32_t>())); }

}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <hwy/aligned_allocator.h>

namespace pith::kernels {

HWY_EXPORT(ProjectedNormsImpl);
HWY_EXPORT(NormWidthImpl);
HWY_EXPORT(PackRowsImpl);

void PackedProjection::Pack(const float* projection, int hidden, size_t row_stride, int group, int dim) {
  hidden_ = hidden;
  group_ = group;
  dim_ = dim;
  largest_ = static_cast<int>(std::sqrt(2147483647.0 / (2 * num_pairs()))) - 1;
  words_.resize(static_cast<size_t>(group * hidden) * static_cast<size_t>(2 * num_pairs()));
  scales_.resize(static_cast<size_t>(group * hidden));
  HWY_DYNAMIC_DISPATCH(PackRowsImpl)(projection, hidden, row_stride, group, dim, largest_, words_.data(), scales_.data());
}

void ProjectedNorms(const float* values, int n, const PackedProjection& projection, float* norms) {
  const auto width = static_cast<size_t>(HWY_DYNAMIC_DISPATCH(NormWidthImpl)());
  const auto columns = hwy::AllocateAligned<int32_t>((width + 1) * static_cast<size_t>(projection.num_pairs()));
  HWY_DYNAMIC_DISPATCH(ProjectedNormsImpl)(values, n, projection, columns.get(), norms);
}

}  // namespace pith::kernels
#endif  // HWY_ONCE
