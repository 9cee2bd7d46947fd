// Coded pages to float32: 32 streams at once, a symbol of each in a lane.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/page_kernels_coded.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// Must come after foreach_target.h.
#include <hwy/highway.h>

#include <algorithm>

#include "kernels/coded_pages.h"
#include "kernels/page_kernels-inl.h"
#include "kernels/page_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {

using DU = hn::RebindToUnsigned<DF>;
using VU = hn::Vec<DU>;

// Where all streams are, and the bits that come next in each, at the top of its lane.
class Streams {
 public:
  HWY_INLINE Streams(const uint8_t* bits, const uint32_t* at) : bits_(bits) {
    PITH_UNROLL for (int v = 0; v < kPageVectors; ++v) {
      at_[v] = hn::LoadU(DU(), at + v * kLanes);
      window_[v] = hn::Zero(DU());
    }
  }

  // 25 bits at least: two codes.
  HWY_INLINE void Refill() {
    const DU du;
    const DI di;
    const auto* const words = reinterpret_cast<const uint32_t*>(bits_ - 3);
    PITH_UNROLL for (int v = 0; v < kPageVectors; ++v) {
      const VI byte = hn::Neg(hn::BitCast(di, hn::ShiftRight<3>(at_[v])));
      window_[v] = hn::Shl(hn::GatherOffset(du, words, byte), hn::And(at_[v], hn::Set(du, 7)));
    }
  }

  // The next number of each stream.
  HWY_INLINE void Next(const CodeBook& book, VI* numbers) {
    const DU du;
    const DI di;
    VI word[kPageVectors], shift[kPageVectors];
    PITH_UNROLL for (int v = 0; v < kPageVectors; ++v) {
      word[v] = hn::BitCast(di, hn::ShiftRight<1>(window_[v]));
      shift[v] = hn::Set(di, book.shifts[0]);
    }
    for (int i = 1; i < book.num_lengths; ++i) {
      const VI first = hn::Set(di, book.firsts[static_cast<size_t>(i)]);
      const VI its_shift = hn::Set(di, book.shifts[static_cast<size_t>(i)]);
      PITH_UNROLL for (int v = 0; v < kPageVectors; ++v) {
        shift[v] = hn::IfThenElse(hn::Gt(first, word[v]), shift[v], its_shift);
      }
    }
    PITH_UNROLL for (int v = 0; v < kPageVectors; ++v) {
      const VI right = hn::And(shift[v], hn::Set(di, 31));
      const VI symbol = hn::Sub(hn::Shr(word[v], right), hn::ShiftRight<5>(shift[v]));
      const VU length = hn::BitCast(du, hn::Sub(hn::Set(di, 31), right));
      at_[v] = hn::Add(at_[v], length);
      window_[v] = hn::Shl(window_[v], length);
      const VI sign = hn::Neg(hn::And(symbol, hn::Set(di, 1)));
      numbers[v] = hn::Xor(hn::ShiftRight<1>(symbol), sign);
    }
  }

 private:
  const uint8_t* bits_;
  VU at_[kPageVectors], window_[kPageVectors];
};

// store(i, row, numbers) for the rows of each of `count` books.
template <class Store>
HWY_INLINE void ReadRows(const CodedPage& coded, const uint32_t* at, const uint8_t* books, int count, int rows,
                         const Store& store) {
  const auto& all = CodeBooks();
  Streams streams(coded.bits, at);
  VI numbers[kPageVectors];
  bool has_another = false;
  for (int i = 0; i < count; ++i) {
    const CodeBook& book = all[static_cast<size_t>(CodedPage::BookOf(books, i))];
    for (int row = 0; row < rows; ++row) {
      if (!has_another) streams.Refill();
      has_another = !has_another;
      streams.Next(book, numbers);
      store(i, row, numbers);
    }
  }
}

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

void ConvertKeys(const PageLayout& layout, const std::byte* page, float* keys) {
  const DF df;
  const CodedPage coded(layout, page);
  if (coded.kind == CodedKind::kHalves) {
    HalvesToFloats(coded.key_halves, static_cast<size_t>(layout.key_dim) * kPageEntries, keys);
    return;
  }
  const VF step = hn::Set(df, PowerOfTwo(coded.key_exponent));
  ReadRows(coded, coded.keys_at.data(), coded.key_books, layout.key_dim, 1, [&](int d, int, const VI* numbers) {
    const VI centre = hn::Set(DI(), coded.CentreOf(d));
    float* const to = keys + d * kPageEntries;
    PITH_UNROLL for (int v = 0; v < kPageVectors; ++v) {
      hn::StoreU(hn::Mul(hn::ConvertTo(df, hn::Add(numbers[v], centre)), step), df, to + v * kLanes);
    }
  });
}

void ConvertValues(const PageLayout& layout, const std::byte* page, int /*count: all*/, float* values, size_t stride) {
  const DF df;
  const CodedPage coded(layout, page);
  const auto dim = static_cast<size_t>(layout.value_dim);
  if (coded.kind == CodedKind::kHalves) {
    for (size_t j = 0; j < kPageEntries; ++j) {
      HalvesToFloats(coded.value_halves + j * dim, dim, values + j * stride);
      std::fill(values + j * stride + dim, values + (j + 1) * stride, 0.0F);
    }
    return;
  }
  const int groups = layout.value_groups();
  ReadRows(coded, coded.values_at.data(), coded.value_books, kPageEntries, groups,
           [&](int j, int group, const VI* numbers) {
             const VF step = hn::Set(df, PowerOfTwo(coded.value_exponents[j]));
             float* const to = values + static_cast<size_t>(j) * stride + group * kPageEntries;
             PITH_UNROLL for (int v = 0; v < kPageVectors; ++v) {
               hn::StoreU(hn::Mul(hn::ConvertTo(df, numbers[v]), step), df, to + v * kLanes);
             }
           });
}

SourceKernels TargetKernels() {
  SourceKernels kernels = {};
  kernels.convert_keys = &ConvertKeys;
  kernels.convert_values = &ConvertValues;
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
