// Coded pages to float32: 32 lanes at once, in vectors of 16-bit windows onto what comes next in each lane.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/page_kernels_coded.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// Must come after foreach_target.h.
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "kernels/coded_pages.h"
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
using D16 = hn::CappedTag<uint16_t, kCodeLanes>;
using DI16 = hn::RebindToSigned<D16>;
using V16 = hn::Vec<D16>;
using VI16 = hn::Vec<DI16>;
inline constexpr int kWordLanes = static_cast<int>(hn::MaxLanes(D16()));
inline constexpr int kWordVectors = kCodeLanes / kWordLanes;
static_assert(kWordLanes == 2 * kLanes);

// Where a stream is, and each lane's window, with its next bits at the top. room: kLongestCode less the bits it holds.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
class Lanes {
 public:
  HWY_INLINE explicit Lanes(const uint8_t* from) : from_(from) {
    window_ = _mm512_setzero_si512();
    room_ = _mm512_set1_epi16(kLongestCode);
  }

  // The next number of each lane.
  HWY_INLINE void Next(const CodeBook& book, VI16* numbers) {
    Refill();
    const __m512i slot = _mm512_srli_epi16(window_, 16 - kSlotBits);
    const __m512i entry = _mm512_permutex2var_epi16(_mm512_load_si512(book.slots.data()), slot,
                                                    _mm512_load_si512(book.slots.data() + kCodeLanes));
    const __m512i length = _mm512_and_si512(entry, _mm512_set1_epi16(15));
#if HWY_TARGET == HWY_AVX3_DL
    const __m512i code = _mm512_shldv_epi16(_mm512_setzero_si512(), window_, entry);  // of which 4 bits count
#else
    const __m512i code = _mm512_srlv_epi16(window_, _mm512_sub_epi16(_mm512_set1_epi16(16), length));
#endif
    numbers[0] = VI16{_mm512_add_epi16(code, _mm512_srai_epi16(entry, 4))};
    window_ = _mm512_sllv_epi16(window_, length);
    room_ = _mm512_add_epi16(room_, length);
  }

 private:
  HWY_INLINE void Refill() {
    const __mmask32 needs = _mm512_cmpgt_epi16_mask(room_, _mm512_setzero_si512());
#if HWY_TARGET == HWY_AVX3_DL
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from_));
    const __m512i taken = _mm512_maskz_expand_epi16(needs, _mm512_cvtepu8_epi16(bytes));
    from_ += hwy::PopCount(static_cast<uint32_t>(needs));
#else
    const __m256i low = TakeHalf(static_cast<__mmask16>(needs));
    const __m256i high = TakeHalf(static_cast<__mmask16>(needs >> 16));
    const __m512i taken = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#endif
    // Without need the room is 0 or less, which shifts everything out.
    window_ = _mm512_or_si512(window_, _mm512_sllv_epi16(taken, room_));
    room_ = _mm512_mask_sub_epi16(room_, needs, room_, _mm512_set1_epi16(8));
  }
#if HWY_TARGET == HWY_AVX3
  HWY_INLINE __m256i TakeHalf(__mmask16 needs) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from_));
    from_ += hwy::PopCount(static_cast<uint32_t>(needs));
    return _mm512_cvtepi32_epi16(_mm512_maskz_expand_epi32(needs, _mm512_cvtepu8_epi32(bytes)));
  }
#endif

  const uint8_t* from_;
  __m512i window_, room_;
};
#else
// [lanes that take a byte] Where eight 16-bit lanes find it among the next ones; elsewhere 0 comes.
struct TakenBytes {
  alignas(16) std::array<std::array<uint8_t, 16>, 256> of;
};
constexpr TakenBytes MakeTakenBytes() {
  TakenBytes taken = {};
  for (size_t needs = 0; needs < 256; ++needs) {
    uint8_t next = 0;
    for (size_t lane = 0; lane < 8; ++lane) {
      taken.of[needs][2 * lane] = (needs >> lane & 1) != 0 ? next++ : uint8_t{0x80};
      taken.of[needs][2 * lane + 1] = 0x80;
    }
  }
  return taken;
}
constexpr TakenBytes kTaken = MakeTakenBytes();

using D8 = hn::Repartition<uint8_t, D16>;
using V8 = hn::Vec<D8>;

// Of the table's 16 bytes the one that each lane's low byte names; 0 for negative ones.
HWY_INLINE V16 LookUp(V8 table, V16 index) {
  const D16 d16;
  const V16 low = hn::Or(index, hn::Set(d16, 0x8000));
  return hn::BitCast(d16, hn::TableLookupBytesOr0(table, hn::BitCast(D8(), low)));
}
// 2^exponent for 1 to 8, which bytes do not hold; 0 for negative ones.
HWY_INLINE V16 PowerOf(V16 exponent) {
  alignas(16) static constexpr uint8_t kHalves[16] = {0, 1, 2, 4, 8, 16, 32, 64, 128};
  const V16 half = LookUp(hn::LoadDup128(D8(), kHalves), exponent);
  return hn::Add(half, half);
}

class Lanes {
 public:
  HWY_INLINE explicit Lanes(const uint8_t* from) : from_(from) {
    const D16 d16;
    PITH_UNROLL for (int v = 0; v < kWordVectors; ++v) {
      window_[v] = hn::Zero(d16);
      room_[v] = hn::Set(d16, kLongestCode);
    }
  }

  HWY_INLINE void Next(const CodeBook& book, VI16* numbers) {
    const D16 d16;
    const DI16 di16;
    PITH_UNROLL for (int v = 0; v < kWordVectors; ++v) {
      const auto is_short = hn::Gt(hn::BitCast(di16, room_[v]), hn::Zero(di16));
      const V16 taken = Take(d16, is_short);
      V16 window = hn::Or(window_[v], hn::Mul(taken, PowerOf(hn::And(room_[v], hn::Set(d16, 0xff)))));
      const V16 slot = hn::ShiftRight<16 - kSlotBits>(window);
      const V16 length = OfSlot(book.slot_lengths, slot);
      const V16 power = PowerOf(length);
      const V16 number = hn::Add(hn::MulHigh(window, power), OfSlot(book.slot_sums, slot));
      numbers[v] = hn::ShiftRight<8>(hn::BitCast(di16, hn::ShiftLeft<8>(number)));
      window_[v] = hn::Mul(window, power);
      const V16 filled = hn::IfThenElseZero(hn::RebindMask(d16, is_short), hn::Set(d16, 8));
      room_[v] = hn::Add(hn::Sub(room_[v], filled), length);
    }
  }

 private:
  static HWY_INLINE V16 OfSlot(const std::array<uint8_t, 1 << kSlotBits>& table, V16 slot) {
    const D8 d8;
    const D16 d16;
    const V16 index = hn::And(slot, hn::Set(d16, 15));
    const auto is_odd = hn::TestBit(slot, hn::Set(d16, 16)), is_upper = hn::TestBit(slot, hn::Set(d16, 32));
    V16 quarters[4];
    PITH_UNROLL for (size_t i = 0; i < 4; ++i) quarters[i] = LookUp(hn::LoadDup128(d8, table.data() + 16 * i), index);
    return hn::IfThenElse(is_upper, hn::IfThenElse(is_odd, quarters[3], quarters[2]),
                          hn::IfThenElse(is_odd, quarters[1], quarters[0]));
  }

  // The next bytes, one for each lane that needs one.
  template <class D>
  HWY_INLINE hn::Vec<D> Take(D d, hn::Mask<DI16> needs) {
    uint8_t bits[8];
    hn::StoreMaskBits(DI16(), needs, bits);
    const auto low = TakeEight(bits[0]);
    if constexpr (hn::MaxLanes(D()) == 16) {
      return hn::Combine(d, TakeEight(bits[1]), low);
    } else {
      static_assert(hn::MaxLanes(D()) == 8);
      return low;
    }
  }
  using DEight = hn::CappedTag<uint16_t, 8>;
  HWY_INLINE hn::Vec<DEight> TakeEight(uint8_t needs) {
    const hn::Repartition<uint8_t, DEight> d8;
    const auto taken = hn::TableLookupBytesOr0(hn::LoadU(d8, from_), hn::Load(d8, kTaken.of[needs].data()));
    from_ += hwy::PopCount(static_cast<uint32_t>(needs));
    return hn::BitCast(DEight(), taken);
  }

  const uint8_t* from_;
  V16 window_[kWordVectors], room_[kWordVectors];
};
#endif

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
    const float centre = static_cast<float>(coded_.CentreOf(channel_++)) * step_;
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
    Store(numbers, hn::Set(DF(), PowerOfTwo(coded_.value_exponents[entry_])), hn::Zero(DF()),
          to_ + group_ * kCodeLanes);
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
// sum[i] + a[2i] * b[2i] + a[2i+1] * b[2i+1]
HWY_INLINE __m512i MulAddPairs(__m512i sum, __m512i a, __m512i b) {
#if HWY_TARGET == HWY_AVX3_DL
  // Highway 1.0.3 detects VNNI for this target but does not name it to the compiler, which refuses the intrinsic.
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
#else
  return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}

// Sums [32] over pairs of rows of 32 numbers, which lie as unpacking pairs leaves them until the end.
template <int R>
class PairSums {
 public:
  HWY_INLINE PairSums() { PITH_UNROLL for (int r = 0; r < R; ++r) low_[r] = high_[r] = _mm512_setzero_si512(); }
  // factors: pairs of 16 bits, a row's `stride` from the last one's.
  HWY_INLINE void Add(__m512i first, __m512i second, const int16_t* factors, size_t stride) {
    const __m512i low = _mm512_unpacklo_epi16(first, second), high = _mm512_unpackhi_epi16(first, second);
    PITH_UNROLL for (int r = 0; r < R; ++r) {
      int32_t pair;
      std::memcpy(&pair, factors + static_cast<size_t>(r) * stride, sizeof pair);
      const __m512i factor = _mm512_set1_epi32(pair);
      low_[r] = MulAddPairs(low_[r], low, factor);
      high_[r] = MulAddPairs(high_[r], high, factor);
    }
  }
  HWY_INLINE __m512 First(int r) const { return Join(r, _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0)); }
  HWY_INLINE __m512 Second(int r) const { return Join(r, _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4)); }

 private:
  HWY_INLINE __m512 Join(int r, __m512i order) const {
    return _mm512_cvtepi32_ps(_mm512_permutex2var_epi64(low_[r], order, high_[r]));
  }
  __m512i low_[R], high_[R];
};

// The sum over channels of queries [D] times centres.
HWY_INLINE float CentreScore(const CodedPage& coded, const float* queries, int dim) {
  const DF df;
  VF sum = hn::Zero(df);
  int d = 0;
  if (coded.kind == CodedKind::kNarrow) {
    const hn::Rebind<int8_t, DF> d8;
    for (; d + kLanes <= dim; d += kLanes) {
      const VI centres = hn::PromoteTo(DI(), hn::LoadU(d8, reinterpret_cast<const int8_t*>(coded.centres) + d));
      sum = hn::MulAdd(hn::ConvertTo(df, centres), hn::LoadU(df, queries + d), sum);
    }
  }
  float total = hn::GetLane(hn::SumOfLanes(df, sum));
  for (; d < dim; ++d) total += static_cast<float>(coded.CentreOf(d)) * queries[d];
  return total;
}

// A page on its way: rows of keys are summed, rows of values stored.
template <int R>
class CodedScore {
 public:
  HWY_INLINE CodedScore(const CodedPage& coded, const CodedScoreArgs& args)
      : coded_(coded),
        args_(args),
        books_(CodeBooks().data()),
        keys_(coded.key_codes),
        values_(coded.value_codes),
        to_(args.values) {}

  // Where keys have as many channels as 32 values have rows of codes: the rows of an entry's values, and as many of
  // keys.
  HWY_INLINE void Entry(int entry, int groups, size_t stride) {
    const CodeBook& book = books_[CodedPage::BookOf(coded_.value_books, entry)];
    for (int i = 0; i < groups; i += 2) {
      const int d = entry * groups + i;
      const uint8_t both = coded_.key_books[d / 2];
      const __m512i first = NextKey(books_[both & 15]);
      NextValue(book);
      const __m512i second = NextKey(books_[both >> 4]);
      NextValue(book);
      sums_.Add(first, second, args_.rounded + d, stride);
    }
  }

  void AnyShape(int dim, int groups, size_t stride) {
    for (int d = 0; d < dim; d += 2) {
      const __m512i first = NextKey(books_[CodedPage::BookOf(coded_.key_books, d)]);
      const bool has_second = d + 1 < dim;
      const __m512i second = has_second ? NextKey(books_[CodedPage::BookOf(coded_.key_books, d + 1)]) : __m512i();
      sums_.Add(first, second, args_.rounded + d, stride);
    }
    for (int row = 0; row < kPageEntries * groups; ++row) {
      NextValue(books_[CodedPage::BookOf(coded_.value_books, row / groups)]);
    }
  }

  HWY_INLINE void Finish(int dim) {
    const float step = PowerOfTwo(coded_.key_exponent);
    for (int r = 0; r < R; ++r) {
      const float* const query = args_.queries + static_cast<size_t>(r * dim);
      const __m512 centre = _mm512_set1_ps(step * CentreScore(coded_, query, dim));
      const __m512 unit = _mm512_set1_ps(step * args_.units[r]);
      float* const to = args_.scores + r * kStepEntries;
      _mm512_storeu_ps(to, _mm512_fmadd_ps(sums_.First(r), unit, centre));
      _mm512_storeu_ps(to + kLanes, _mm512_fmadd_ps(sums_.Second(r), unit, centre));
    }
    for (int j = 0; j < kPageEntries; j += kLanes) {
      const __m128i exponents = _mm_loadu_si128(reinterpret_cast<const __m128i*>(coded_.value_exponents + j));
      const __m512i biased = _mm512_add_epi32(_mm512_cvtepi8_epi32(exponents), _mm512_set1_epi32(127));
      _mm512_storeu_si512(args_.value_steps + j, _mm512_slli_epi32(biased, 23));
    }
  }

 private:
  HWY_INLINE __m512i NextKey(const CodeBook& book) {
    VI16 numbers;
    keys_.Next(book, &numbers);
    return numbers.raw;
  }
  HWY_INLINE void NextValue(const CodeBook& book) {
    VI16 numbers;
    values_.Next(book, &numbers);
    _mm512_store_si512(to_, numbers.raw);
    to_ += kCodeLanes;
  }

  const CodedPage& coded_;
  const CodedScoreArgs& args_;
  const CodeBook* const books_;
  Lanes keys_, values_;
  PairSums<R> sums_;
  int16_t* to_;
};

template <int R>
void ScoreCoded(CodedScoreArgs* pages, int count) {
  const PageLayout& layout = *pages[0].layout;
  const int dim = layout.key_dim, groups = layout.value_groups();
  const auto stride = static_cast<size_t>(dim + dim % 2);
  const CodedPage one(*pages[0].layout, pages[0].page), other(*pages[count - 1].layout, pages[count - 1].page);
  pages[0].is_read = one.kind != CodedKind::kHalves;
  pages[count - 1].is_read = other.kind != CodedKind::kHalves;
  const bool even = groups % 2 == 0 && dim == groups * kCodeLanes;
  if (even && count == 2 && pages[0].is_read && pages[1].is_read) {
    // Four streams wait for each other's latencies.
    CodedScore<R> first(one, pages[0]), second(other, pages[1]);
    for (int entry = 0; entry < kPageEntries; ++entry) {
      first.Entry(entry, groups, stride);
      second.Entry(entry, groups, stride);
    }
    first.Finish(dim);
    second.Finish(dim);
    return;
  }
  for (int i = 0; i < count; ++i) {
    if (!pages[i].is_read) continue;
    CodedScore<R> score(i == 0 ? one : other, pages[i]);
    if (even) {
      for (int entry = 0; entry < kPageEntries; ++entry) score.Entry(entry, groups, stride);
    } else {
      score.AnyShape(dim, groups, stride);
    }
    score.Finish(dim);
  }
}

template <int R>
void AccumulateCoded(const CodedAccumulateArgs& args) {
  constexpr float kGreatest = 32767;
  alignas(64) int16_t rounded[R][kPageEntries];
  float units[R];
  for (int r = 0; r < R; ++r) {
    const float* const weights = args.weights + r * kStepEntries;
    const __m512 low = _mm512_mul_ps(_mm512_loadu_ps(weights), _mm512_loadu_ps(args.value_steps));
    const __m512 high = _mm512_mul_ps(_mm512_loadu_ps(weights + kLanes), _mm512_loadu_ps(args.value_steps + kLanes));
    const float greatest = _mm512_reduce_max_ps(_mm512_max_ps(low, high));
    units[r] = greatest / kGreatest;
    const __m512 inverse = _mm512_set1_ps(greatest > 0 ? kGreatest / greatest : 0);
    const auto store = [&](__m512 products, int16_t* to) HWY_ATTR {
      const __m512i numbers = _mm512_cvtps_epi32(_mm512_mul_ps(products, inverse));
      _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtsepi32_epi16(numbers));
    };
    store(low, rounded[r]);
    store(high, rounded[r] + kLanes);
  }
  const auto stride = static_cast<size_t>(args.groups) * kCodeLanes;
  for (int group = 0; group < args.groups; ++group) {
    PairSums<R> sums;
    const int16_t* at = args.values + group * kCodeLanes;
    for (int j = 0; j < kPageEntries; j += 2, at += 2 * stride) {
      sums.Add(_mm512_load_si512(at), _mm512_load_si512(at + stride), rounded[0] + j, kPageEntries);
    }
    for (int r = 0; r < R; ++r) {
      float* const to = args.acc + static_cast<size_t>(r) * args.acc_stride + group * kCodeLanes;
      const __m512 unit = _mm512_set1_ps(units[r]);
      _mm512_storeu_ps(to, _mm512_fmadd_ps(sums.First(r), unit, _mm512_loadu_ps(to)));
      _mm512_storeu_ps(to + kLanes, _mm512_fmadd_ps(sums.Second(r), unit, _mm512_loadu_ps(to + kLanes)));
    }
  }
}

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
