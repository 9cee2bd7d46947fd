// Coded pages to float32, and times few rows of queries and of weights.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/page_kernels_coded.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// Must come after foreach_target.h.
#include <hwy/highway.h>

#include <algorithm>
#include <utility>

#include "kernels/code_lanes-inl.h"
#include "kernels/coded_pages.h"
#include "kernels/coded_products-inl.h"
#include "kernels/page_kernels-inl.h"
#include "kernels/page_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR
void ConvertKeys(const PageLayout& layout, const std::byte* page, float* keys) {
  DecodeKeysReference(layout, page, keys);
}
void ConvertValues(const PageLayout& layout, const std::byte* page, int /*count: all*/, float* values, size_t stride) {
  DecodeValuesReference(layout, page, values, stride);
}
void ConvertPage(const PageLayout& layout, const std::byte* page, float* keys, float* values, size_t stride) {
  DecodeKeysReference(layout, page, keys);
  DecodeValuesReference(layout, page, values, stride);
}
#else
// to[0 .. 31] = numbers * step + shift, which float32 holds.
HWY_INLINE void Store(const VI16* numbers, VF step, VF shift, float* to) {
  const DF df;
  const DI di;
  const hn::Half<DI16> half;
  PITH_UNROLL for (int v = 0; v < kWordVectors; ++v) {
    const VI low = hn::PromoteTo(di, hn::LowerHalf(half, numbers[v]));
    const VI high = hn::PromoteTo(di, hn::UpperHalf(half, numbers[v]));
    hn::StoreU(hn::MulAdd(hn::ConvertTo(df, low), step, shift), df, to + 2 * v * kLanes);
    hn::StoreU(hn::MulAdd(hn::ConvertTo(df, high), step, shift), df, to + (2 * v + 1) * kLanes);
  }
}

// The rows of a page's keys [D][P], one channel each.
class KeyRows {
 public:
  HWY_INLINE KeyRows(const CodedPage& coded, float* to)
      : coded_(coded),
        books_(CodeBooks().data()),
        lanes_(coded.key_codes),
        step_(PowerOfTwo(coded.key_exponent)),
        to_(to) {}
  HWY_INLINE void Next() {
    VI16 numbers[kWordVectors];
    lanes_.Next(books_[CodedPage::BookOf(coded_.key_books, channel_)], numbers);
    const float centre = static_cast<float>(coded_.CentreOf(channel_++) - kCodeBias) * step_;
    Store(numbers, hn::Set(DF(), step_), hn::Set(DF(), centre), to_);
    to_ += kPageEntries;
  }

 private:
  const CodedPage& coded_;
  const CodeBook* const books_;
  Lanes lanes_;
  int channel_ = 0;
  float step_;
  float* to_;
};

// The rows of a page's values [P][stride], 32 channels of an entry each.
class ValueRows {
 public:
  HWY_INLINE ValueRows(const CodedPage& coded, int groups, float* to, size_t stride)
      : coded_(coded),
        books_(CodeBooks().data()),
        lanes_(coded.value_codes),
        groups_(groups),
        to_(to),
        stride_(stride) {}
  HWY_INLINE void Next() {
    VI16 numbers[kWordVectors];
    lanes_.Next(books_[CodedPage::BookOf(coded_.value_books, entry_)], numbers);
    const float step = PowerOfTwo(coded_.value_exponents[entry_]);
    Store(numbers, hn::Set(DF(), step), hn::Set(DF(), -kCodeBias * step), to_ + group_ * kCodeLanes);
    if (++group_ < groups_) return;
    group_ = 0;
    ++entry_;
    to_ += stride_;
  }

 private:
  const CodedPage& coded_;
  const CodeBook* const books_;
  Lanes lanes_;
  int groups_, group_ = 0, entry_ = 0;
  float* to_;
  size_t stride_;
};

void HalvesToFloats(const uint16_t* from, size_t count, float* to) {
  const DF df;
  const hn::Rebind<hwy::float16_t, DF> d16;
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    hn::StoreU(hn::PromoteTo(df, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(from + i))), df, to + i);
  }
  for (; i < count; ++i) {
    const hn::CappedTag<float, 1> d1;
    const hn::Rebind<hwy::float16_t, decltype(d1)> h1;
    to[i] = hn::GetLane(hn::PromoteTo(d1, hn::LoadU(h1, reinterpret_cast<const hwy::float16_t*>(from + i))));
  }
}

void KeyHalves(const PageLayout& layout, const CodedPage& coded, float* keys) {
  HalvesToFloats(coded.key_halves, static_cast<size_t>(layout.key_dim) * kPageEntries, keys);
}

void ValueHalves(const PageLayout& layout, const CodedPage& coded, float* values, size_t stride) {
  const auto dim = static_cast<size_t>(layout.value_dim);
  for (size_t j = 0; j < kPageEntries; ++j) {
    HalvesToFloats(coded.value_halves + j * dim, dim, values + j * stride);
    std::fill(values + j * stride + dim, values + (j + 1) * stride, 0.0F);
  }
}

void ConvertKeys(const PageLayout& layout, const std::byte* page, float* keys) {
  const CodedPage coded(layout, page);
  if (coded.kind == CodedKind::kHalves) return KeyHalves(layout, coded, keys);
  KeyRows rows(coded, keys);
  for (int i = 0; i < layout.key_dim; ++i) rows.Next();
}

void ConvertValues(const PageLayout& layout, const std::byte* page, int /*count: all*/, float* values, size_t stride) {
  const CodedPage coded(layout, page);
  if (coded.kind == CodedKind::kHalves) return ValueHalves(layout, coded, values, stride);
  ValueRows rows(coded, layout.value_groups(), values, stride);
  for (int i = 0; i < kPageEntries * layout.value_groups(); ++i) rows.Next();
}

// The two streams wait for each other's latencies.
void ConvertPage(const PageLayout& layout, const std::byte* page, float* keys, float* values, size_t stride) {
  const CodedPage coded(layout, page);
  if (coded.kind == CodedKind::kHalves) {
    KeyHalves(layout, coded, keys);
    ValueHalves(layout, coded, values, stride);
    return;
  }
  KeyRows key_rows(coded, keys);
  ValueRows value_rows(coded, layout.value_groups(), values, stride);
  const int num_keys = layout.key_dim, num_values = kPageEntries * layout.value_groups();
  const int both = std::min(num_keys, num_values);
  for (int i = 0; i < both; ++i) {
    key_rows.Next();
    value_rows.Next();
  }
  for (int i = both; i < num_keys; ++i) key_rows.Next();
  for (int i = both; i < num_values; ++i) value_rows.Next();
}

#endif

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
template <int... R>
void AddIntegers(SourceKernels& kernels, std::integer_sequence<int, R...>) {
  ((kernels.score_coded[R + 1] = &ScoreCoded<R + 1>), ...);
  ((kernels.accumulate_coded[R + 1] = &AccumulateCoded<R + 1>), ...);
}
#endif

SourceKernels TargetKernels() {
  SourceKernels kernels = {};
  kernels.convert_keys = &ConvertKeys;
  kernels.convert_values = &ConvertValues;
  kernels.convert_page = &ConvertPage;
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  AddIntegers(kernels, std::make_integer_sequence<int, kMaxCodedRows>());
#endif
  return kernels;
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pith::kernels {

HWY_EXPORT(TargetKernels);

SourceKernels KernelsOfCoded() { return HWY_DYNAMIC_DISPATCH(TargetKernels)(); }

}  // namespace pith::kernels
#endif  // HWY_ONCE
