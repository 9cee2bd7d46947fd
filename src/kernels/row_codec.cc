// Rows in and out of pages: transposing keys, converting formats.
//
// Keys are transposed in squares of 8 entries x 8 channels of 16-bit lanes,
// which 16- and 8-bit formats share (int8 is widened). What does not fill a square is
// done one element at a time. Groups are in group_codec.cc.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/row_codec.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kernels/attention.h"
#include "kernels/coded_pages.h"
#include "kernels/group_codec.h"
#include "kernels/target.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {  // each file of a target has its own
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
inline constexpr size_t kLanes = hn::MaxLanes(DF());

#if HWY_TARGET == HWY_SCALAR
inline constexpr bool kHasSquares = false;
#else
inline constexpr bool kHasSquares = true;
#endif
inline constexpr int kSquare = 8;

inline float ToFloat(uint16_t bits) {
  const hn::CappedTag<float, 1> df;
  const hn::Rebind<uint16_t, decltype(df)> d16;
  const hn::Rebind<hwy::float16_t, decltype(df)> dh;
  return hn::GetLane(hn::PromoteTo(df, hn::BitCast(dh, hn::Set(d16, bits))));
}

inline uint16_t ToHalf(float value) {
  const hn::CappedTag<float, 1> df;
  const hn::Rebind<uint16_t, decltype(df)> d16;
  const hn::Rebind<hwy::float16_t, decltype(df)> dh;
  return hn::GetLane(hn::BitCast(d16, hn::DemoteTo(dh, hn::Set(df, value))));
}

// The value that is quantised comes one element at a time or a vector at a time.
struct F16Row {
  const uint16_t* at;
  float operator[](size_t i) const { return ToFloat(at[i]); }
  HWY_INLINE hn::Vec<DF> Load(size_t i) const {
    const hn::Rebind<hwy::float16_t, DF> d16;
    return hn::PromoteTo(DF(), hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(at + i)));
  }
};
struct F32Row {
  const float* at;
  float operator[](size_t i) const { return at[i]; }
  HWY_INLINE hn::Vec<DF> Load(size_t i) const { return hn::LoadU(DF(), at + i); }
};

template <class Row>
float AbsMax(const Row& row, size_t dim) {
  const DF df;
  auto max = hn::Zero(df);
  size_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) max = hn::Max(max, hn::Abs(row.Load(i)));
  float result = hn::GetLane(hn::MaxOfLanes(df, max));
  for (; i < dim; ++i) result = std::max(result, std::abs(row[i]));
  return result;
}

inline int8_t QuantizeOne(float value, float inverse) {
  return static_cast<int8_t>(std::clamp(std::nearbyint(value * inverse), -127.0f, 127.0f));
}

// Quantises row[0..dim) by absmax / 127 to `to`, `stride` elements apart. Returns the scale.
template <class Row>
float QuantizeRow(const Row& row, size_t dim, int8_t* to, size_t stride) {
  const DF df;
  const hn::Rebind<int32_t, DF> di;
  const float max = AbsMax(row, dim);
  const float inverse = max > 0.0f ? 127.0f / max : 0.0f;
  size_t i = 0;
  HWY_ALIGN int32_t whole[kLanes];
  for (; i + kLanes <= dim; i += kLanes) {
    const auto scaled = hn::Mul(row.Load(i), hn::Set(df, inverse));
    hn::Store(hn::NearestInt(scaled), di, whole);
    for (size_t k = 0; k < kLanes; ++k) to[(i + k) * stride] = static_cast<int8_t>(std::clamp(whole[k], -127, 127));
  }
  for (; i < dim; ++i) to[i * stride] = QuantizeOne(row[i], inverse);
  return max / 127.0f;
}

void ToF16(const float* from, size_t count, uint16_t* to, size_t stride) {
  const DF df;
  const hn::Rebind<hwy::float16_t, DF> d16;
  HWY_ALIGN hwy::float16_t halves[kLanes];
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    hn::Store(hn::DemoteTo(d16, hn::LoadU(df, from + i)), d16, halves);
    for (size_t k = 0; k < kLanes; ++k) std::memcpy(to + (i + k) * stride, &halves[k], sizeof(uint16_t));
  }
  for (; i < count; ++i) to[i * stride] = ToHalf(from[i]);
}

inline uint16_t ToBf16(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);  // to nearest, ties to even
}

void StoreHalves(const F16Row& row, size_t dim, uint16_t* to, size_t stride) {
  for (size_t i = 0; i < dim; ++i) to[i * stride] = row.at[i];
}
void StoreHalves(const F32Row& row, size_t dim, uint16_t* to, size_t stride) { ToF16(row.at, dim, to, stride); }

template <class Row>
void WriteKey(const PageLayout& layout, std::byte* page, int slot, const Row& key) {
  const auto dim = static_cast<size_t>(layout.key_dim);
  std::byte* part = page + layout.key_offset;
  switch (InfoOf(layout.format.key).element) {
    case KvElement::kHalf:
      return StoreHalves(key, dim, reinterpret_cast<uint16_t*>(part) + slot, kPageEntries);
    case KvElement::kBfloat:
      for (size_t d = 0; d < dim; ++d) reinterpret_cast<uint16_t*>(part)[d * kPageEntries + slot] = ToBf16(key[d]);
      return;
    case KvElement::kByte:
      reinterpret_cast<float*>(page + layout.key_scale_offset)[slot] =
          QuantizeRow(key, dim, reinterpret_cast<int8_t*>(part) + slot, kPageEntries);
      return;
    case KvElement::kCode:
      PITH_CHECK(false);  // keys in groups are written a page at a time
  }
}

template <class Row>
void WriteValue(const PageLayout& layout, std::byte* page, int slot, const Row& value) {
  const auto dim = static_cast<size_t>(layout.value_dim);
  std::byte* row = page + layout.value_offset + static_cast<size_t>(slot) * layout.value_row_bytes();
  switch (InfoOf(layout.format.value).element) {
    case KvElement::kHalf:
      return StoreHalves(value, dim, reinterpret_cast<uint16_t*>(row), 1);
    case KvElement::kBfloat:
      for (size_t c = 0; c < dim; ++c) reinterpret_cast<uint16_t*>(row)[c] = ToBf16(value[c]);
      return;
    case KvElement::kByte:
      reinterpret_cast<float*>(page + layout.value_scale_offset)[slot] =
          QuantizeRow(value, dim, reinterpret_cast<int8_t*>(row), 1);
      return;
    case KvElement::kCode:
      float group[kGroupElements];
      for (size_t begin = 0; begin < dim; begin += kGroupElements) {
        const size_t count = std::min<size_t>(kGroupElements, dim - begin);
        for (size_t i = 0; i < count; ++i) group[i] = value[begin + i];
        WriteValueGroup(layout, page, slot, static_cast<int>(begin / kGroupElements), {group, count});
      }
  }
}

void WriteMetadata(const PageLayout& layout, std::byte* page, int slot, int32_t position) {
  layout.positions(page)[slot] = position;
  for (int c = 0; c < layout.num_columns; ++c) layout.column(page, c)[slot] = 0.0f;
}

void WriteF16(const PageLayout& layout, std::byte* page, int slot, const uint16_t* key, const uint16_t* value,
              int32_t position) {
  WriteMetadata(layout, page, slot, position);
  WriteKey(layout, page, slot, F16Row{key});
  WriteValue(layout, page, slot, F16Row{value});
}

void WriteF32(const PageLayout& layout, std::byte* page, int slot, const float* key, const float* value,
              int32_t position) {
  WriteMetadata(layout, page, slot, position);
  WriteKey(layout, page, slot, F32Row{key});
  WriteValue(layout, page, slot, F32Row{value});
}

void WriteValueF32(const PageLayout& layout, std::byte* page, int slot, const float* value) {
  WriteValue(layout, page, slot, F32Row{value});
}

#if HWY_TARGET != HWY_SCALAR
using D16 = hn::CappedTag<uint16_t, kSquare>;
using V16 = hn::Vec<D16>;

// rows[i] lane k becomes rows[k] lane i.
HWY_INLINE void TransposeSquare(V16 (&rows)[kSquare]) {
  const D16 d16;
  const hn::Repartition<uint32_t, D16> d32;
  const hn::Repartition<uint64_t, D16> d64;
  V16 pairs[kSquare];
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = hn::InterleaveLower(d16, rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = hn::InterleaveUpper(d16, rows[2 * i], rows[2 * i + 1]);
  }
  V16 quads[kSquare];
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 2; ++i) {
      const auto a = hn::BitCast(d32, pairs[4 * half + i]);
      const auto b = hn::BitCast(d32, pairs[4 * half + 2 + i]);
      quads[4 * half + 2 * i] = hn::BitCast(d16, hn::InterleaveLower(d32, a, b));
      quads[4 * half + 2 * i + 1] = hn::BitCast(d16, hn::InterleaveUpper(d32, a, b));
    }
  }
  for (int i = 0; i < 4; ++i) {
    const auto a = hn::BitCast(d64, quads[i]);
    const auto b = hn::BitCast(d64, quads[4 + i]);
    rows[2 * i] = hn::BitCast(d16, hn::InterleaveLower(d64, a, b));
    rows[2 * i + 1] = hn::BitCast(d16, hn::InterleaveUpper(d64, a, b));
  }
}

// Keys of 8 entries, `stride` halves apart, to slots slot .. slot+7. Returns the channels done.
int WriteKeySquares(const uint16_t* from, size_t stride, int dim, uint16_t* to) {
  const D16 d16;
  int d = 0;
  for (; d + kSquare <= dim; d += kSquare) {
    V16 rows[kSquare];
    for (int i = 0; i < kSquare; ++i) rows[i] = hn::LoadU(d16, from + static_cast<size_t>(i) * stride + d);
    TransposeSquare(rows);
    for (int i = 0; i < kSquare; ++i) hn::StoreU(rows[i], d16, to + (d + i) * kPageEntries);
  }
  return d;
}

// The next 8 channels of 8 entries of a page as 16-bit lanes: f16 bits or widened int8.
HWY_INLINE V16 LoadSquareRow(const uint16_t* from) { return hn::LoadU(D16(), from); }
HWY_INLINE V16 LoadSquareRow(const int8_t* from) {
  const hn::RebindToSigned<D16> d16;
  const hn::Rebind<int8_t, decltype(d16)> d8;
  return hn::BitCast(D16(), hn::PromoteTo(d16, hn::LoadU(d8, from)));
}

template <class V>
HWY_INLINE hn::Vec<hn::CappedTag<float, 4>> HalfToFloat(const uint16_t*, V v) {
  const hn::CappedTag<float, 4> df;
  return hn::PromoteTo(df, hn::BitCast(hn::Rebind<hwy::float16_t, decltype(df)>(), v));
}
template <class V>
HWY_INLINE hn::Vec<hn::CappedTag<float, 4>> HalfToFloat(const int8_t*, V v) {
  const hn::CappedTag<float, 4> df;
  const hn::RebindToSigned<decltype(df)> di;
  return hn::ConvertTo(df, hn::PromoteTo(di, hn::BitCast(hn::Rebind<int16_t, decltype(df)>(), v)));
}

// Keys of 8 entries to float32 rows. Returns the channels done.
template <class T>
int ReadKeySquares(const T* from, const float* scales, int dim, float* to) {
  const hn::Half<D16> half;
  const hn::CappedTag<float, 4> df;
  int d = 0;
  for (; d + kSquare <= dim; d += kSquare) {
    V16 rows[kSquare];
    for (int i = 0; i < kSquare; ++i) rows[i] = LoadSquareRow(from + (d + i) * kPageEntries);
    TransposeSquare(rows);
    for (int i = 0; i < kSquare; ++i) {
      const auto scale = hn::Set(df, scales != nullptr ? scales[i] : 1.0f);
      float* row = to + static_cast<size_t>(i) * static_cast<size_t>(dim) + d;
      hn::StoreU(hn::Mul(HalfToFloat(from, hn::LowerHalf(half, rows[i])), scale), df, row);
      hn::StoreU(hn::Mul(HalfToFloat(from, hn::UpperHalf(half, rows[i])), scale), df, row + 4);
    }
  }
  return d;
}
#else
int WriteKeySquares(const uint16_t*, size_t, int, uint16_t*) { return 0; }
template <class T>
int ReadKeySquares(const T*, const float*, int, float*) {
  return 0;
}
#endif

void WriteManyF16(const PageLayout& layout, std::byte* page, int slot, int count, const uint16_t* keys,
                  size_t key_stride, const uint16_t* values, size_t value_stride, const int32_t* positions) {
  if (!(layout.format == PageFormat(KvFormat::kF16))) {
    for (int i = 0; i < count; ++i) {
      WriteF16(layout, page, slot + i, keys + static_cast<size_t>(i) * key_stride,
               values + static_cast<size_t>(i) * value_stride, positions[i]);
    }
    return;
  }
  auto* key_to = reinterpret_cast<uint16_t*>(page + layout.key_offset) + slot;
  int i = 0;
  for (; kHasSquares && i + kSquare <= count; i += kSquare) {
    const uint16_t* from = keys + static_cast<size_t>(i) * key_stride;
    for (int d = WriteKeySquares(from, key_stride, layout.key_dim, key_to + i); d < layout.key_dim; ++d) {
      for (int k = 0; k < kSquare; ++k)
        key_to[d * kPageEntries + i + k] = from[static_cast<size_t>(k) * key_stride + static_cast<size_t>(d)];
    }
  }
  for (; i < count; ++i) {
    const uint16_t* from = keys + static_cast<size_t>(i) * key_stride;
    for (int d = 0; d < layout.key_dim; ++d) key_to[d * kPageEntries + i] = from[d];
  }
  auto* value_to = reinterpret_cast<uint16_t*>(page + layout.value_offset) + slot * layout.value_dim;
  for (i = 0; i < count; ++i) {
    std::memcpy(value_to + i * layout.value_dim, values + static_cast<size_t>(i) * value_stride,
                sizeof(uint16_t) * static_cast<size_t>(layout.value_dim));
    WriteMetadata(layout, page, slot + i, positions[i]);
  }
}

inline float ElementToFloat(uint16_t bits) { return ToFloat(bits); }
inline float ElementToFloat(int8_t value) { return value; }

template <class T>
void ReadKeysOf(const T* from, const float* scales, int dim, int count, float* keys) {
  for (int j = 0; j < count; ++j) {
    int d = 0;
    if (kHasSquares && j % kSquare == 0 && j + kSquare <= count) {
      const int done = ReadKeySquares(from + j, scales != nullptr ? scales + j : nullptr, dim, keys + j * dim);
      for (int k = 0; k < kSquare; ++k) {
        const float scale = scales != nullptr ? scales[j + k] : 1.0f;
        for (d = done; d < dim; ++d) keys[(j + k) * dim + d] = ElementToFloat(from[d * kPageEntries + j + k]) * scale;
      }
      j += kSquare - 1;
      continue;
    }
    const float scale = scales != nullptr ? scales[j] : 1.0f;
    for (; d < dim; ++d) keys[j * dim + d] = ElementToFloat(from[d * kPageEntries + j]) * scale;
  }
}

void ReadKeysConverted(const PageLayout& layout, const std::byte* page, int count, float* keys) {
  const auto dim = static_cast<size_t>(layout.key_dim);
  for (int j = 0; j < count; ++j) ReadKey(layout, page, j, keys + static_cast<size_t>(j) * dim, 1);
}

void ReadPageKeys(const PageLayout& layout, const std::byte* page, int count, float* keys) {
  const std::byte* from = page + layout.key_offset;
  switch (InfoOf(layout.format.key).element) {
    case KvElement::kHalf:
      return ReadKeysOf(reinterpret_cast<const uint16_t*>(from), nullptr, layout.key_dim, count, keys);
    case KvElement::kByte:
      return ReadKeysOf(reinterpret_cast<const int8_t*>(from),
                        reinterpret_cast<const float*>(page + layout.key_scale_offset), layout.key_dim, count, keys);
    case KvElement::kBfloat:
    case KvElement::kCode:
      return ReadKeysConverted(layout, page, count, keys);
  }
}

void ReadPageValues(const PageLayout& layout, const std::byte* page, int count, float* values) {
  const DF df;
  const auto dim = static_cast<size_t>(layout.value_dim);
  const size_t total = static_cast<size_t>(count) * dim;
  if (InfoOf(layout.format.value).element == KvElement::kHalf) {
    const F16Row from{reinterpret_cast<const uint16_t*>(page + layout.value_offset)};
    size_t i = 0;
    for (; i + kLanes <= total; i += kLanes) hn::StoreU(from.Load(i), df, values + i);
    for (; i < total; ++i) values[i] = from[i];
    return;
  }
  if (!HasEntryScales(layout.format.value)) {
    for (int j = 0; j < count; ++j) ReadValue(layout, page, j, values + static_cast<size_t>(j) * dim);
    return;
  }
  const hn::Rebind<int32_t, DF> di;
  const hn::Rebind<int8_t, DF> d8;
  const auto* scales = reinterpret_cast<const float*>(page + layout.value_scale_offset);
  for (size_t j = 0; j < static_cast<size_t>(count); ++j) {
    const auto* from = reinterpret_cast<const int8_t*>(page + layout.value_offset) + j * dim;
    size_t c = 0;
    for (; c + kLanes <= dim; c += kLanes) {
      const auto v = hn::ConvertTo(df, hn::PromoteTo(di, hn::LoadU(d8, from + c)));
      hn::StoreU(hn::Mul(v, hn::Set(df, scales[j])), df, values + j * dim + c);
    }
    for (; c < dim; ++c) values[j * dim + c] = static_cast<float>(from[c]) * scales[j];
  }
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pith::kernels {

HWY_EXPORT(WriteF16);
HWY_EXPORT(WriteF32);
HWY_EXPORT(WriteValueF32);
HWY_EXPORT(WriteManyF16);
HWY_EXPORT(ReadPageKeys);
HWY_EXPORT(ReadPageValues);

void WriteEntryF16(const PageLayout& layout, std::byte* page, int slot, const uint16_t* key, const uint16_t* value,
                   int32_t position) {
  ApplyForcedTarget();
  HWY_DYNAMIC_DISPATCH(WriteF16)(layout, page, slot, key, value, position);
}

void WriteEntryF32(const PageLayout& layout, std::byte* page, int slot, const float* key, const float* value,
                   int32_t position) {
  ApplyForcedTarget();
  HWY_DYNAMIC_DISPATCH(WriteF32)(layout, page, slot, key, value, position);
}

void WriteValueRow(const PageLayout& layout, std::byte* page, int slot, const float* value) {
  ApplyForcedTarget();
  HWY_DYNAMIC_DISPATCH(WriteValueF32)(layout, page, slot, value);
}

void WriteEntriesF16(const PageLayout& layout, std::byte* page, int slot, int count, const uint16_t* keys,
                     size_t key_stride, const uint16_t* values, size_t value_stride, const int32_t* positions) {
  ApplyForcedTarget();
  HWY_DYNAMIC_DISPATCH(WriteManyF16)(layout, page, slot, count, keys, key_stride, values, value_stride, positions);
}

void ReadKeys(const PageLayout& layout, const std::byte* page, int count, float* keys) {
  if (layout.format.coded()) return ReadCodedKeys(layout, page, count, keys);
  ApplyForcedTarget();
  HWY_DYNAMIC_DISPATCH(ReadPageKeys)(layout, page, count, keys);
}

void ReadValues(const PageLayout& layout, const std::byte* page, int count, float* values) {
  if (layout.format.coded()) return ReadCodedValues(layout, page, count, values);
  ApplyForcedTarget();
  HWY_DYNAMIC_DISPATCH(ReadPageValues)(layout, page, count, values);
}

}  // namespace pith::kernels
#endif  // HWY_ONCE
