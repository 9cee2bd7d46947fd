// The streams of coded pages (coded_pages.h): 32 lanes at once, in vectors of 16-bit windows onto what comes next in
// each.
#if defined(PITH_KERNELS_CODE_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PITH_KERNELS_CODE_LANES_INL_H_
#undef PITH_KERNELS_CODE_LANES_INL_H_
#else
#define PITH_KERNELS_CODE_LANES_INL_H_
#endif

#include <hwy/highway.h>

#include <array>
#include <cstdint>

#include "kernels/coded_pages.h"
#include "kernels/page_kernels-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {  // each file of a target has its own
using D16 = hn::CappedTag<uint16_t, kCodeLanes>;
using DI16 = hn::RebindToSigned<D16>;
using V16 = hn::Vec<D16>;
using VI16 = hn::Vec<DI16>;
inline constexpr int kWordLanes = static_cast<int>(hn::MaxLanes(D16()));
inline constexpr int kWordVectors = kCodeLanes / kWordLanes;
static_assert(kWordLanes == 2 * kLanes);

// Where a stream is, and each lane's window, with its next bits at the top. Numbers come kCodeBias higher.
#if HWY_TARGET == HWY_AVX3_DL
class Lanes {
 public:
  HWY_INLINE Lanes() = default;
  HWY_INLINE explicit Lanes(const uint8_t* from) : from_(from) {
    window_ = _mm512_setzero_si512();
    left_ = _mm512_set1_epi16(0x100 - kLongestCode);
  }

  // The next number of each lane.
  HWY_INLINE void Next(const CodeBook& book, VI16* numbers) {
    const CodeBook* const books[1] = {&book};
    NextOf<1>(this, books, numbers);
  }

  // Of S streams. What is not ready yet waits in a processor's window of some 100 instructions, so that each step is
  // made for all streams before the next one is.
  template <int S>
  static HWY_INLINE void NextOf(Lanes* lanes, const CodeBook* const* books, VI16* numbers) {
    constexpr __mmask64 kLower = 0x5555555555555555;
    __mmask64 needs[S];
    __m512i taken[S], slots[S], lengths[S];
    PITH_UNROLL for (int s = 0; s < S; ++s) needs[s] = _mm512_movepi8_mask(lanes[s].left_);
    PITH_UNROLL for (int s = 0; s < S; ++s) {
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes[s].from_));
      taken[s] = _mm512_maskz_expand_epi8(needs[s], _mm512_castsi256_si512(bytes));
      lanes[s].from_ += hwy::PopCount(static_cast<uint64_t>(needs[s]));
    }
    // A byte goes below the bits that are left, kLongestCode + left_ of them; 4 bits of a count count.
    PITH_UNROLL for (int s = 0; s < S; ++s) {
      taken[s] = _mm512_shrdv_epi16(_mm512_setzero_si512(), taken[s], lanes[s].left_);
      // Lanes with -8 to -1 get 8 more, the others have 0 to 7.
      lanes[s].left_ = _mm512_and_si512(lanes[s].left_, _mm512_set1_epi16(7));
    }
    PITH_UNROLL for (int s = 0; s < S; ++s) {
      lanes[s].window_ = _mm512_or_si512(lanes[s].window_, taken[s]);
      slots[s] = _mm512_srli_epi16(lanes[s].window_, 16 - kSlotBits);
    }
    // Of each lane the lower byte is looked up, of which 6 bits count; what the upper one finds is left out.
    PITH_UNROLL for (int s = 0; s < S; ++s) {
      lengths[s] = _mm512_maskz_permutexvar_epi8(kLower, slots[s], _mm512_load_si512(books[s]->slot_lengths.data()));
    }
    PITH_UNROLL for (int s = 0; s < S; ++s) {
      slots[s] = _mm512_permutexvar_epi8(slots[s], _mm512_load_si512(books[s]->slot_sums.data()));
    }
    PITH_UNROLL for (int s = 0; s < S; ++s) {
      lanes[s].left_ = _mm512_sub_epi8(lanes[s].left_, lengths[s]);
      const __m512i code = _mm512_shldv_epi16(_mm512_setzero_si512(), lanes[s].window_, lengths[s]);
      lanes[s].window_ = _mm512_sllv_epi16(lanes[s].window_, lengths[s]);
      numbers[s] = VI16{_mm512_maskz_add_epi8(kLower, code, slots[s])};
    }
  }

 private:
  const uint8_t* from_;
  __m512i window_, left_;  // left_: bits in the window, less kLongestCode, in the lower byte
};
#elif HWY_TARGET == HWY_AVX3
class Lanes {
 public:
  template <int S>
  static HWY_INLINE void NextOf(Lanes* lanes, const CodeBook* const* books, VI16* numbers) {
    PITH_UNROLL for (int s = 0; s < S; ++s) lanes[s].Next(*books[s], &numbers[s]);
  }
  HWY_INLINE Lanes() = default;
  HWY_INLINE explicit Lanes(const uint8_t* from) : from_(from) {
    window_ = _mm512_setzero_si512();
    room_ = _mm512_set1_epi16(kLongestCode);
  }

  HWY_INLINE void Next(const CodeBook& book, VI16* numbers) {
    Refill();
    const __m512i slot = _mm512_srli_epi16(window_, 16 - kSlotBits);
    const __m512i entry = _mm512_permutex2var_epi16(_mm512_load_si512(book.slots.data()), slot,
                                                    _mm512_load_si512(book.slots.data() + kCodeLanes));
    const __m512i length = _mm512_and_si512(entry, _mm512_set1_epi16(15));
    const __m512i code = _mm512_srlv_epi16(window_, _mm512_sub_epi16(_mm512_set1_epi16(16), length));
    numbers[0] = VI16{_mm512_add_epi16(code, _mm512_srai_epi16(entry, 4))};
    window_ = _mm512_sllv_epi16(window_, length);
    room_ = _mm512_add_epi16(room_, length);
  }

 private:
  HWY_INLINE void Refill() {
    const __mmask32 needs = _mm512_cmpgt_epi16_mask(room_, _mm512_setzero_si512());
    const __m256i low = TakeHalf(static_cast<__mmask16>(needs));
    const __m256i high = TakeHalf(static_cast<__mmask16>(needs >> 16));
    const __m512i taken = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    // Without need the room is 0 or less, which shifts everything out.
    window_ = _mm512_or_si512(window_, _mm512_sllv_epi16(taken, room_));
    room_ = _mm512_mask_sub_epi16(room_, needs, room_, _mm512_set1_epi16(8));
  }
  HWY_INLINE __m256i TakeHalf(__mmask16 needs) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from_));
    from_ += hwy::PopCount(static_cast<uint32_t>(needs));
    return _mm512_cvtepi32_epi16(_mm512_maskz_expand_epi32(needs, _mm512_cvtepu8_epi32(bytes)));
  }

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

#if HWY_TARGET == HWY_AVX2
// Slots, lengths and sums of all 32 lanes in one vector of bytes, in the order of packing two of words: lanes 0 to 7,
// 16 to 23, 8 to 15, 24 to 31.
class Lanes {
 public:
  HWY_INLINE explicit Lanes(const uint8_t* from) : from_(from) {
    window_[0] = window_[1] = _mm256_setzero_si256();
    room_ = _mm256_set1_epi8(kLongestCode);
  }

  HWY_INLINE void Next(const CodeBook& book, VI16* numbers) {
    const __m256i zero = _mm256_setzero_si256();
    Refill();
    const __m256i slots = _mm256_packus_epi16(_mm256_srli_epi16(window_[0], 16 - kSlotBits),
                                              _mm256_srli_epi16(window_[1], 16 - kSlotBits));
    // Where a quarter of the table has no such slot, the highest bit is set, which finds 0.
    __m256i lengths = zero, sums = zero;
    PITH_UNROLL for (int i = 0; i < 4; ++i) {
      const __m256i of_quarter = _mm256_xor_si256(slots, _mm256_set1_epi8(static_cast<char>(16 * i)));
      const __m256i index = _mm256_adds_epu8(of_quarter, _mm256_set1_epi8(0x70));
      lengths = _mm256_or_si256(lengths, _mm256_shuffle_epi8(Quarter(book.slot_lengths, i), index));
      sums = _mm256_or_si256(sums, _mm256_shuffle_epi8(Quarter(book.slot_sums, i), index));
    }
    room_ = _mm256_add_epi8(room_, lengths);
    const __m256i halves = HalfPowers(lengths);
    const __m256i powers[] = {Twice(_mm256_unpacklo_epi8(halves, zero)), Twice(_mm256_unpackhi_epi8(halves, zero))};
    const __m256i sum[] = {_mm256_unpacklo_epi8(sums, zero), _mm256_unpackhi_epi8(sums, zero)};
    PITH_UNROLL for (int v = 0; v < 2; ++v) {
      const __m256i number = _mm256_add_epi16(_mm256_mulhi_epu16(window_[v], powers[v]), sum[v]);
      numbers[v] = VI16{_mm256_and_si256(number, _mm256_set1_epi16(0xff))};
      window_[v] = _mm256_mullo_epi16(window_[v], powers[v]);
    }
  }

 private:
  static HWY_INLINE __m256i Quarter(const std::array<uint8_t, 1 << kSlotBits>& table, int i) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table.data() + 16 * i)));
  }
  // 2^(exponent - 1) for 1 to 8; 0 for 0 and for negative ones.
  static HWY_INLINE __m256i HalfPowers(__m256i exponents) {
    return _mm256_shuffle_epi8(
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0)), exponents);
  }
  static HWY_INLINE __m256i Twice(__m256i words) { return _mm256_add_epi16(words, words); }

  HWY_INLINE void Refill() {
    const __m256i zero = _mm256_setzero_si256();
    const __m256i is_short = _mm256_cmpgt_epi8(room_, zero);
    const auto needs = static_cast<uint32_t>(_mm256_movemask_epi8(is_short));
    const __m128i first = TakeEight(needs & 0xff), second = TakeEight(needs >> 16 & 0xff);
    const __m128i third = TakeEight(needs >> 8 & 0xff), fourth = TakeEight(needs >> 24);
    const __m256i taken[] = {_mm256_set_m128i(second, first), _mm256_set_m128i(fourth, third)};
    const __m256i halves = HalfPowers(room_);
    const __m256i power[] = {_mm256_unpacklo_epi8(halves, zero), _mm256_unpackhi_epi8(halves, zero)};
    PITH_UNROLL for (int v = 0; v < 2; ++v) {
      window_[v] = _mm256_or_si256(window_[v], Twice(_mm256_mullo_epi16(taken[v], power[v])));
    }
    room_ = _mm256_sub_epi8(room_, _mm256_and_si256(is_short, _mm256_set1_epi8(8)));
  }
  HWY_INLINE __m128i TakeEight(uint32_t needs) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from_));
    from_ += hwy::PopCount(needs);
    return _mm_shuffle_epi8(bytes, _mm_load_si128(reinterpret_cast<const __m128i*>(kTaken.of[needs].data())));
  }

  const uint8_t* from_;
  __m256i window_[2], room_;  // room_: in bytes
};
#else
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
      numbers[v] = hn::BitCast(di16, hn::And(number, hn::Set(d16, 0xff)));
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
#endif

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();
#endif

#endif  // per-target include guard
