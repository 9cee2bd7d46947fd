// Coded pages times few rows of queries and of weights, in integers: for AVX-512, there with VNNI if present.
#if defined(PITH_KERNELS_CODED_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PITH_KERNELS_CODED_PRODUCTS_INL_H_
#undef PITH_KERNELS_CODED_PRODUCTS_INL_H_
#else
#define PITH_KERNELS_CODED_PRODUCTS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "kernels/code_lanes-inl.h"
#include "kernels/coded_pages.h"
#include "kernels/page_kernels-inl.h"
#include "kernels/page_kernels.h"

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {  // each file of a target has its own
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
  HWY_INLINE PairSums() = default;
  // first: [R] what sums begin with.
  HWY_INLINE explicit PairSums(const int32_t* first) {
    PITH_UNROLL for (int r = 0; r < R; ++r) low_[r] = high_[r] = _mm512_set1_epi32(first[r]);
  }
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

// What the bias of numbers adds to the sum of their products with `factors`, negated.
HWY_INLINE int32_t BiasOf(const int16_t* factors, size_t count) {
  int32_t sum = 0;
  for (size_t i = 0; i < count; ++i) sum += factors[i];
  return -kCodeBias * sum;
}

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

// From sums over keys to scores, and steps of values to float32.
template <int R>
HWY_INLINE void FinishScores(const CodedPage& coded, const CodedScoreArgs& args, const PairSums<R>& sums, int dim) {
  const float step = PowerOfTwo(coded.key_exponent);
  for (int r = 0; r < R; ++r) {
    const float* const query = args.queries + static_cast<size_t>(r * dim);
    const __m512 centre = _mm512_set1_ps(step * CentreScore(coded, query, dim));
    const __m512 unit = _mm512_set1_ps(step * args.units[r]);
    float* const to = args.scores + r * kStepEntries;
    _mm512_storeu_ps(to, _mm512_fmadd_ps(sums.First(r), unit, centre));
    _mm512_storeu_ps(to + kLanes, _mm512_fmadd_ps(sums.Second(r), unit, centre));
  }
  for (int j = 0; j < kPageEntries; j += kLanes) {
    const __m128i exponents = _mm_loadu_si128(reinterpret_cast<const __m128i*>(coded.value_exponents + j));
    const __m512i biased = _mm512_add_epi32(_mm512_cvtepi8_epi32(exponents), _mm512_set1_epi32(127));
    _mm512_storeu_si512(args.value_steps + j, _mm512_slli_epi32(biased, 23));
  }
}

// Where the book of each row is, from the first one, in bytes: of a page's keys, and of its values' entries.
constexpr int kMostDim = 512;
HWY_INLINE void ListBooks(const uint8_t* books, int count, uint16_t* offsets) {
  static_assert(sizeof(CodeBook) == 256);
  int i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(books + i / 2)));
    const __m512i first = _mm512_and_si512(_mm512_slli_epi32(pairs, 8), _mm512_set1_epi32(0xf00));
    const __m512i second = _mm512_and_si512(_mm512_slli_epi32(pairs, 20), _mm512_set1_epi32(0xf000000));
    _mm512_storeu_si512(offsets + i, _mm512_or_si512(first, second));
  }
  for (; i < count; ++i) offsets[i] = static_cast<uint16_t>(CodedPage::BookOf(books, i) * 256);
}
struct BookLists {
  uint16_t keys[kMostDim], values[kPageEntries];
};
HWY_INLINE const CodeBook& BookAt(const std::byte* books, size_t offset) {
  return *reinterpret_cast<const CodeBook*>(books + offset);
}

// N pages on their way, whose streams wait for each other's latencies: some rows of all are decoded, values to where
// they will be weighed, then these keys are multiplied.
template <int R, int N>
class CodedScores {
 public:
  CodedScores(const CodedPage* const* coded, const CodedScoreArgs* const* args, int dim, int groups)
      : coded_(coded),
        args_(args),
        books_(reinterpret_cast<const std::byte*>(CodeBooks().data())),
        dim_(dim),
        groups_(groups) {
    int32_t first[R];
    for (int r = 0; r < R; ++r) first[r] = BiasOf(args_[0]->rounded + static_cast<size_t>(r) * Stride(), Stride());
    PITH_UNROLL for (int n = 0; n < N; ++n) {
      lanes_[2 * n] = Lanes(coded[n]->key_codes);
      lanes_[2 * n + 1] = Lanes(coded[n]->value_codes);
      to_[n] = args[n]->values;
      ListBooks(coded[n]->key_books, dim, lists_[n].keys);
      ListBooks(coded[n]->value_books, kPageEntries, lists_[n].values);
      sums_[n] = PairSums<R>(first);
    }
  }

  // Where keys have as many channels as 32 values have rows of codes, whole pairs an entry.
  void EvenShape() {
    int entries = kPageEntries;
    while (entries > 1 && entries * groups_ > kRowsAtOnce) entries /= 2;
    for (int entry = 0; entry < kPageEntries; entry += entries) {
      DecodeEntries(entry, entries);
      Multiply(entry * groups_, entries * groups_);
    }
  }

  void AnyShape() {
    static_assert(kRowsAtOnce % 2 == 0);
    for (int d = 0; d < dim_; d += kRowsAtOnce) {
      const int count = std::min(dim_ - d, kRowsAtOnce);
      for (int n = 0; n < N; ++n) {
        for (int i = 0; i < count; ++i) lanes_[2 * n].Next(BookAt(books_, lists_[n].keys[d + i]), &numbers_[n][i]);
        if (count % 2 != 0) numbers_[n][count] = VI16{_mm512_setzero_si512()};
      }
      Multiply(d, count);
    }
    for (int n = 0; n < N; ++n) {
      for (int row = 0; row < kPageEntries * groups_; ++row) {
        VI16 numbers;
        lanes_[2 * n + 1].Next(BookAt(books_, lists_[n].values[row / groups_]), &numbers);
        _mm512_store_si512(to_[n] + row * kCodeLanes, numbers.raw);
      }
    }
  }

  void Finish() const {
    for (int n = 0; n < N; ++n) FinishScores<R>(*coded_[n], *args_[n], sums_[n], dim_);
  }

 private:
  size_t Stride() const { return static_cast<size_t>(dim_ + dim_ % 2); }

  void DecodeEntries(int begin, int count) {
    Lanes lanes[2 * N];
    int16_t* to[N];
    const std::byte* const books = books_;
    PITH_UNROLL for (int i = 0; i < 2 * N; ++i) lanes[i] = lanes_[i];
    PITH_UNROLL for (int n = 0; n < N; ++n) to[n] = to_[n];
    const int groups = groups_;
    int row = begin * groups;
    VI16* numbers = numbers_[0];
    size_t at = static_cast<size_t>(row * kCodeLanes);
    for (int entry = begin; entry < begin + count; ++entry) {
      for (int i = 0; i < groups; ++i, ++row, ++numbers, at += kCodeLanes) {
        // A line a row, of each page in turn.
        const Prefetch& prefetch = args_[row % N]->prefetch;
        const auto line = static_cast<size_t>(row / N) * 64;
        if (line < prefetch.bytes) __builtin_prefetch(prefetch.at + line, 0, 2);
        // In fours, of which masks and registers suffice.
        constexpr int kPages = std::min(N, 2);
        PITH_UNROLL for (int n = 0; n < N; n += kPages) {
          const CodeBook* both[2 * kPages];
          PITH_UNROLL for (int k = 0; k < kPages; ++k) {
            both[2 * k] = &BookAt(books, lists_[n + k].keys[row]);
            both[2 * k + 1] = &BookAt(books, lists_[n + k].values[entry]);
          }
          VI16 decoded[2 * kPages];
          Lanes::NextOf<2 * kPages>(lanes + 2 * n, both, decoded);
          PITH_UNROLL for (int k = 0; k < kPages; ++k) {
            numbers[(n + k) * kRowsAtOnce] = decoded[2 * k];
            _mm512_store_si512(to[n + k] + at, decoded[2 * k + 1].raw);
          }
        }
      }
    }
    PITH_UNROLL for (int i = 0; i < 2 * N; ++i) lanes_[i] = lanes[i];
  }

  // The keys of channels d on, which numbers_ holds, of two pages at once for the latencies of their sums.
  HWY_INLINE void Multiply(int d, int count) {
    constexpr int kTogether = N % 2 == 0 ? 2 : 1;
    for (int n = 0; n < N; n += kTogether) {
      PairSums<R> sums[kTogether];
      PITH_UNROLL for (int k = 0; k < kTogether; ++k) sums[k] = sums_[n + k];
      for (int i = 0; i < count; i += 2) {
        PITH_UNROLL for (int k = 0; k < kTogether; ++k) {
          sums[k].Add(numbers_[n + k][i].raw, numbers_[n + k][i + 1].raw, args_[0]->rounded + d + i, Stride());
        }
      }
      PITH_UNROLL for (int k = 0; k < kTogether; ++k) sums_[n + k] = sums[k];
    }
  }

  static constexpr int kRowsAtOnce = 32;
  const CodedPage* const* const coded_;
  const CodedScoreArgs* const* const args_;
  const std::byte* const books_;
  const int dim_, groups_;
  Lanes lanes_[2 * N];  // of each page the keys and the values
  int16_t* to_[N];
  BookLists lists_[N];
  PairSums<R> sums_[N];
  VI16 numbers_[N][kRowsAtOnce];  // of keys
};

template <int R, int N>
void ScorePages(const CodedPage* const* coded, const CodedScoreArgs* const* args, int dim, int groups) {
  CodedScores<R, N> scores(coded, args, dim, groups);
  scores.EvenShape();
  scores.Finish();
}

template <int R>
void ScoreCoded(CodedScoreArgs* pages, int count) {
  const PageLayout& layout = *pages[0].layout;
  const int dim = layout.key_dim, groups = layout.value_groups();
  std::optional<CodedPage> coded[kStepPages];
  const CodedPage* read[kStepPages];
  const CodedScoreArgs* args[kStepPages];
  int num_read = 0;
  for (int i = 0; i < count; ++i) {
    coded[i].emplace(layout, pages[i].page);
    pages[i].is_read = coded[i]->kind != CodedKind::kHalves;
    if (!pages[i].is_read) continue;
    read[num_read] = &*coded[i];
    args[num_read++] = &pages[i];
  }
  const bool even = groups % 2 == 0 && dim == groups * kCodeLanes && groups <= 16;
  int i = 0;
  for (; even && num_read - i >= 4; i += 4) ScorePages<R, 4>(read + i, args + i, dim, groups);
  for (; even && num_read - i >= 2; i += 2) ScorePages<R, 2>(read + i, args + i, dim, groups);
  for (; i < num_read; ++i) {
    CodedScores<R, 1> scores(read + i, args + i, dim, groups);
    if (even) {
      scores.EvenShape();
    } else {
      scores.AnyShape();
    }
    scores.Finish();
  }
}

// Adds the sums over entries of `G` groups of channels. rounded: weights [R][P] in units.
template <int R, int G>
HWY_INLINE void AccumulateGroups(const CodedAccumulateArgs& args, int group, const int16_t* rounded,
                                 const int32_t* first, const float* units) {
  const auto stride = static_cast<size_t>(args.groups) * kCodeLanes;
  PairSums<R> sums[G];
  PITH_UNROLL for (int g = 0; g < G; ++g) sums[g] = PairSums<R>(first);
  const int16_t* at = args.values + group * kCodeLanes;
  for (int j = 0; j < kPageEntries; j += 2, at += 2 * stride) {
    PITH_UNROLL for (int g = 0; g < G; ++g) {
      sums[g].Add(_mm512_load_si512(at + g * kCodeLanes), _mm512_load_si512(at + stride + g * kCodeLanes), rounded + j,
                  kPageEntries);
    }
  }
  for (int r = 0; r < R; ++r) {
    const __m512 unit = _mm512_set1_ps(units[r]);
    PITH_UNROLL for (int g = 0; g < G; ++g) {
      float* const to = args.acc + static_cast<size_t>(r) * args.acc_stride + (group + g) * kCodeLanes;
      _mm512_storeu_ps(to, _mm512_fmadd_ps(sums[g].First(r), unit, _mm512_loadu_ps(to)));
      _mm512_storeu_ps(to + kLanes, _mm512_fmadd_ps(sums[g].Second(r), unit, _mm512_loadu_ps(to + kLanes)));
    }
  }
}

template <int R>
void AccumulateCoded(const CodedAccumulateArgs& args) {
  constexpr float kGreatest = 32767;
  alignas(64) int16_t rounded[R][kPageEntries];
  float units[R];
  int32_t first[R];
  for (int r = 0; r < R; ++r) {
    const float* const weights = args.weights + r * kStepEntries;
    const __m512 low = _mm512_mul_ps(_mm512_loadu_ps(weights), _mm512_loadu_ps(args.value_steps));
    const __m512 high = _mm512_mul_ps(_mm512_loadu_ps(weights + kLanes), _mm512_loadu_ps(args.value_steps + kLanes));
    const float greatest = _mm512_reduce_max_ps(_mm512_max_ps(low, high));
    units[r] = greatest / kGreatest;
    const __m512 inverse = _mm512_set1_ps(greatest > 0 ? kGreatest / greatest : 0);
    const __m512i numbers[] = {_mm512_cvtps_epi32(_mm512_mul_ps(low, inverse)),
                               _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse))};
    for (int i = 0; i < 2; ++i) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(rounded[r] + i * kLanes), _mm512_cvtsepi32_epi16(numbers[i]));
    }
    first[r] = -kCodeBias * _mm512_reduce_add_epi32(_mm512_add_epi32(numbers[0], numbers[1]));
  }
  int group = 0;
  for (; group + 2 <= args.groups; group += 2) AccumulateGroups<R, 2>(args, group, rounded[0], first, units);
  if (group < args.groups) AccumulateGroups<R, 1>(args, group, rounded[0], first, units);
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();
#endif

#endif  // per-target include guard
