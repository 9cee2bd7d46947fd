#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/projected_norms.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Must come after foreach_target.h.
#include "hwy/highway.h"

#include <cmath>
#include <cstring>

#include "kernels/load_up_to-inl.h"
#include "kernels/projected_norms.h"
#include "kernels/quad_products-inl.h"

// Bytes of a value are at most 127, of a row 64, so that 255 * (64 + 64) and thus a pair's products, of bytes with 128
// added, fit 16 bits. Both are small enough in length, too, that by Cauchy and Schwarz no sum over a stretch leaves 16
// bits.
#ifndef PITH_PROJECTED_NORMS_BYTES
#define PITH_PROJECTED_NORMS_BYTES
namespace pith::kernels {
inline constexpr int kStretch = 4 * PackedProjection::kStretchQuads;
inline constexpr float kMostInValue = 127, kMostInRow = 64, kLengthOfValue = 360;
inline constexpr float kSlack = 4;  // what rounding adds to a length: half of the root of kStretch
inline constexpr float kLengthOfRow = 32767 / (kLengthOfValue + kSlack) - kSlack;
static_assert(4 * kSlack * kSlack >= kStretch);
inline constexpr int kOffset = 128;
inline constexpr int kMostLanes = 16;
static_assert(PackedProjection::kChannelsAbreast % kMostLanes == 0);
}  // namespace pith::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, kMostLanes>;
using VF = hn::Vec<DF>;
constexpr int kVectors = 2;
constexpr int kRows = 4;

// Bytes of x, none above `most` in magnitude, no stretch much longer than `length`. Returns what a byte is worth.
// Writes whole vectors, zeros after the end.
HWY_INLINE float RoundToBytes(const float* x, int dim, float most, float length, int8_t* bytes) {
  const DF df;
  const hn::Rebind<int8_t, DF> d8;
  const int lanes = static_cast<int>(hn::Lanes(df));
  VF largest = hn::Zero(df);
  float longest = 0;
  for (int begin = 0; begin < dim; begin += kStretch) {
    VF squares = hn::Zero(df);
    for (int c = begin; c < HWY_MIN(dim, begin + kStretch); c += lanes) {
      const VF part = LoadUpTo(df, x, static_cast<size_t>(c), static_cast<size_t>(dim));
      largest = hn::Max(largest, hn::Abs(part));
      squares = hn::MulAdd(part, part, squares);
    }
    longest = HWY_MAX(longest, std::sqrt(hn::GetLane(hn::SumOfLanes(df, squares))));
  }
  const float unit = HWY_MAX(hn::GetLane(hn::MaxOfLanes(df, largest)) / most, longest / length);
  const VF inverse = hn::Set(df, unit > 0 ? 1 / unit : 0);
  for (int c = 0; c < dim; c += lanes) {
    const VF part = LoadUpTo(df, x, static_cast<size_t>(c), static_cast<size_t>(dim));
    hn::StoreU(hn::DemoteTo(d8, hn::NearestInt(hn::Mul(part, inverse))), d8, bytes + c);
  }
  return unit;
}

// Of the first two and of the last two bytes of all quads.
HWY_INLINE void SumPairs(const int8_t* bytes, int count, int16_t* sums) {
  int32_t of_pairs[2] = {0, 0};
#if HWY_TARGET == HWY_SCALAR
  for (int c = 0; c < count; ++c) of_pairs[c % 4 / 2] += bytes[c];
#else
  const hn::RebindToSigned<DF> di;
  const hn::Rebind<int8_t, DF> d8;
  const int lanes = static_cast<int>(hn::Lanes(di));
  auto sum = hn::Zero(di);
  for (int c = 0; c < count; c += lanes) sum = hn::Add(sum, hn::PromoteTo(di, hn::LoadU(d8, bytes + c)));
  HWY_ALIGN int32_t by_lane[kMostLanes];
  hn::Store(sum, di, by_lane);
  for (int k = 0; k < lanes; ++k) of_pairs[k % 4 / 2] += by_lane[k];
#endif
  for (int k = 0; k < 2; ++k) sums[k] = static_cast<int16_t>(of_pairs[k]);
}

// Of one query head.
HWY_ATTR void PackRowsImpl(const float* projection, int hidden, size_t row_stride, int dim, int row_bytes,
                           int8_t* bytes, int16_t* sums, float* units) {
  for (int i = 0; i < hidden; ++i, projection += row_stride, bytes += row_bytes) {
    units[i] = RoundToBytes(projection, dim, kMostInRow, kLengthOfRow, bytes);
    for (int begin = 0; begin < dim; begin += kStretch, sums += 2)
      SumPairs(bytes + begin, HWY_MIN(kStretch, dim - begin), sums);
  }
}

#if HWY_TARGET == HWY_SCALAR
void ProjectedNormsImpl(const float* values, int n, const PackedProjection& projection, int32_t* columns,
                        float* norms) {
  const int dim = projection.dim();
  int8_t* bytes = reinterpret_cast<int8_t*>(columns);
  for (int j = 0; j < n; ++j, values += dim) {
    const float unit = RoundToBytes(values, dim, kMostInValue, kLengthOfValue, bytes);
    float total = 0;
    for (int q = 0; q < projection.group(); ++q) {
      for (int i = 0; i < projection.hidden(); ++i) {
        const int8_t* w = projection.bytes(q, i);
        int32_t sum = 0;
        for (int c = 0; c < dim; ++c) sum += bytes[c] * w[c];
        total += static_cast<float>(sum < 0 ? -sum : sum) * projection.unit(q, i);
      }
    }
    norms[j] = total * unit / static_cast<float>(projection.group());
  }
}
#else
// Takes back what the offset adds to a sum.
HWY_INLINE VPart StartOf(const int16_t* sums) {
#if HWY_TARGET == HWY_AVX3_DL
  return hn::Set(DI(), -kOffset * (sums[0] + sums[1]));
#else
  return hn::Mul(hn::BitCast(DI16(), BroadcastQuad(sums)), hn::Set(DI16(), int16_t{-kOffset}));
#endif
}

// Entries are lanes: two vectors of them times four rows of W at a time, so that four channels take six loads for eight
// products, and no sum crosses lanes.
HWY_ATTR void ProjectedNormsImpl(const float* values, int n, const PackedProjection& projection, int32_t* columns,
                                 float* norms) {
  const DF df;
  const DI di;
  const int lanes = static_cast<int>(hn::Lanes(di)), width = kVectors * lanes;
  const int dim = projection.dim(), quads = projection.num_quads(), hidden = projection.hidden(),
            group = projection.group();
  int8_t* const bytes = reinterpret_cast<int8_t*>(columns + width * quads);
  HWY_ALIGN float units[kVectors * kMostLanes];
  for (int j = 0; j < n; j += width) {
    const int count = HWY_MIN(width, n - j);
    for (int k = 0; k < width; ++k) {
      const float* value = values + static_cast<size_t>(HWY_MIN(j + k, n - 1)) * static_cast<size_t>(dim);
      units[k] = RoundToBytes(value, dim, kMostInValue, kLengthOfValue, bytes) / static_cast<float>(group);
      for (int p = 0; p < quads; ++p) std::memcpy(columns + p * width + k, bytes + 4 * p, sizeof(int32_t));
    }
    const VI offset = hn::Set(di, static_cast<int32_t>(0x80808080U));
    for (int at = 0; at < quads * width; at += lanes)
      hn::Store(hn::Xor(hn::Load(di, columns + at), offset), di, columns + at);
    VF total_low = hn::Zero(df), total_high = hn::Zero(df);
    for (int q = 0; q < group; ++q) {
      for (int i = 0; i < hidden; i += kRows) {
        const int8_t* w[kRows];
        const int16_t* sums[kRows];
        VI low[kRows], high[kRows];
        for (int r = 0; r < kRows; ++r) {
          const int row = HWY_MIN(i + r, hidden - 1);
          w[r] = projection.bytes(q, row);
          sums[r] = projection.sums(q, row);
          low[r] = high[r] = hn::Zero(di);
        }
        for (int begin = 0; begin < quads; begin += PackedProjection::kStretchQuads) {
          VPart low_part[kRows], high_part[kRows];
          for (int r = 0; r < kRows; ++r) {
            low_part[r] = high_part[r] = StartOf(sums[r]);
            sums[r] += 2;
          }
          for (int p = begin; p < HWY_MIN(quads, begin + PackedProjection::kStretchQuads); ++p) {
            const VU8 a = hn::BitCast(DU8(), hn::Load(di, columns + p * width));
            const VU8 b = hn::BitCast(DU8(), hn::Load(di, columns + p * width + lanes));
            for (int r = 0; r < kRows; ++r) {
              const VI x = BroadcastQuad(w[r] + 4 * p);
              low_part[r] = MultiplyAddQuads(low_part[r], a, x);
              high_part[r] = MultiplyAddQuads(high_part[r], b, x);
            }
          }
          for (int r = 0; r < kRows; ++r) {
            low[r] = hn::Add(low[r], JoinQuads(low_part[r]));
            high[r] = hn::Add(high[r], JoinQuads(high_part[r]));
          }
        }
        for (int r = 0; r < kRows && i + r < hidden; ++r) {
          const VF unit = hn::Set(df, projection.unit(q, i + r));
          total_low = hn::MulAdd(hn::Abs(hn::ConvertTo(df, low[r])), unit, total_low);
          total_high = hn::MulAdd(hn::Abs(hn::ConvertTo(df, high[r])), unit, total_high);
        }
      }
    }
    hn::Store(hn::Mul(total_low, hn::Load(df, units)), df, units);
    hn::Store(hn::Mul(total_high, hn::Load(df, units + lanes)), df, units + lanes);
    for (int k = 0; k < count; ++k) norms[j + k] = units[k];
  }
}
#endif

// Entries abreast.
int NormWidthImpl() { return kVectors * static_cast<int>(hn::Lanes(DF())); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <hwy/aligned_allocator.h>

#include "base/parallel.h"

namespace pith::kernels {

HWY_EXPORT(ProjectedNormsImpl);
HWY_EXPORT(NormWidthImpl);
HWY_EXPORT(PackRowsImpl);

void PackedProjection::Pack(const float* projection, int hidden, size_t row_stride, int group, int dim) {
  hidden_ = hidden;
  group_ = group;
  dim_ = dim;
  const size_t head_rows = static_cast<size_t>(hidden), num_rows = static_cast<size_t>(group) * head_rows;
  const auto row_bytes = static_cast<size_t>(4 * num_quads()), row_sums = static_cast<size_t>(2 * num_stretches());
  bytes_.resize(num_rows * row_bytes);
  sums_.resize(num_rows * row_sums);
  units_.resize(num_rows);
  ParallelFor(static_cast<size_t>(group), [&](size_t q) {
    const size_t first = q * head_rows;
    HWY_DYNAMIC_DISPATCH(PackRowsImpl)
    (projection + q * static_cast<size_t>(dim), hidden, row_stride, dim, static_cast<int>(row_bytes),
     bytes_.data() + first * row_bytes, sums_.data() + first * row_sums, units_.data() + first);
  });
}

void ProjectedNorms(const float* values, int n, const PackedProjection& projection, float* norms) {
  const auto width = static_cast<size_t>(HWY_DYNAMIC_DISPATCH(NormWidthImpl)());
  const auto columns = hwy::AllocateAligned<int32_t>((width + 1) * static_cast<size_t>(projection.num_quads()));
  HWY_DYNAMIC_DISPATCH(ProjectedNormsImpl)(values, n, projection, columns.get(), norms);
}

}  // namespace pith::kernels
#endif  // HWY_ONCE
