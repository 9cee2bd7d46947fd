#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/tile_products.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Must come after foreach_target.h.
#include "hwy/highway.h"

#include <algorithm>

#include "kernels/tile_products.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {  // each file of a target has its own
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, kTileColumns>;
using DU = hn::RebindToUnsigned<DF>;
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;

// Into bf16 in the upper 16 bits of words whose others are 0. Rounds to nearest. A NaN as arithmetic makes it stays
// one.
HWY_INLINE void Split(VF x, VU* high, VU* low) {
  const DU du;
  const VU half = hn::Set(du, 0x8000u), mask = hn::Set(du, 0xFFFF0000u);
  *high = hn::And(hn::Add(hn::BitCast(du, x), half), mask);
  const VF rest = hn::Sub(x, hn::BitCast(DF(), *high));
  *low = hn::And(hn::Add(hn::BitCast(du, rest), half), mask);
}

HWY_ATTR void SplitRowImpl(const float* from, size_t count, float scale, uint16_t* high, uint16_t* low) {
  const DF df;
  const hn::Rebind<uint16_t, DF> d16;
  const size_t lanes = hn::Lanes(df);
  const VF factor = hn::Set(df, scale);
  const auto split = [&](const float* at, uint16_t* to_high, uint16_t* to_low) HWY_ATTR {
    VU upper, lower;
    Split(hn::Mul(hn::LoadU(df, at), factor), &upper, &lower);
    hn::StoreU(hn::TruncateTo(d16, hn::ShiftRight<16>(upper)), d16, to_high);
    hn::StoreU(hn::TruncateTo(d16, hn::ShiftRight<16>(lower)), d16, to_low);
  };
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) split(from + i, high + i, low + i);
  if (i == count) return;
  float rest[kTileColumns] = {};
  uint16_t rest_high[kTileColumns], rest_low[kTileColumns];
  std::copy(from + i, from + count, rest);
  split(rest, rest_high, rest_low);
  std::copy_n(rest_high, count - i, high + i);
  std::copy_n(rest_low, count - i, low + i);
}

HWY_ATTR void PackRightImpl(const float* from, size_t rows, size_t columns, size_t stride, uint32_t* to) {
  const DF df;
  const DU du;
  constexpr size_t kPlane = kTileWords / 2;
  for (size_t group = 0; group < rows; group += kTileDepth) {
    for (size_t column = 0; column < columns; column += kTileColumns, to += kTileWords) {
      for (size_t pair = 0; pair < kTileDepth / 2; ++pair) {
        const size_t row = group + 2 * pair;
        for (size_t c = 0; c < kTileColumns; c += hn::Lanes(df)) {
          const float* at = from + row * stride + column + c;
          VU even_high, even_low, odd_high, odd_low;
          Split(row < rows ? hn::LoadU(df, at) : hn::Zero(df), &even_high, &even_low);
          Split(row + 1 < rows ? hn::LoadU(df, at + stride) : hn::Zero(df), &odd_high, &odd_low);
          uint32_t* word = to + pair * kTileColumns + c;
          hn::StoreU(hn::Or(hn::ShiftRight<16>(even_high), odd_high), du, word);
          hn::StoreU(hn::Or(hn::ShiftRight<16>(even_low), odd_low), du, word + kPlane);
        }
      }
    }
  }
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <atomic>
#include <bit>
#include <cstring>

#include "kernels/target.h"
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pith::kernels {

HWY_EXPORT(SplitRowImpl);
HWY_EXPORT(PackRightImpl);

void SplitRow(const float* from, size_t count, float scale, uint16_t* high, uint16_t* low) {
  ApplyForcedTarget();
  HWY_DYNAMIC_DISPATCH(SplitRowImpl)(from, count, scale, high, low);
}

void PackRight(const float* from, size_t rows, size_t columns, size_t stride, uint32_t* to) {
  ApplyForcedTarget();
  HWY_DYNAMIC_DISPATCH(PackRightImpl)(from, rows, columns, stride, to);
}

namespace {

constexpr size_t kTileRows = 16;

// Four sums in flight, since one takes longer than the next three: rows in two tiles times columns in two.
// Unit: Zero<T>, Load<T>(from, stride in bytes), Store<T>(to, stride), Dot<C, A, B>, of tiles 0 .. 7.
template <class Unit>
void Multiply(const TileProduct& product) {
  Unit unit;
  const size_t left = product.left_stride * sizeof(uint16_t), sums = product.sum_stride * sizeof(float);
  const size_t below = kTileRows * product.left_stride;
  float* const lower = product.sums + kTileRows * product.sum_stride;
  if (product.add) {
    unit.template Load<0>(product.sums, sums);
    unit.template Load<1>(product.sums + kTileColumns, sums);
    unit.template Load<2>(lower, sums);
    unit.template Load<3>(lower + kTileColumns, sums);
  } else {
    unit.template Zero<0>();
    unit.template Zero<1>();
    unit.template Zero<2>();
    unit.template Zero<3>();
  }
  const auto dots = [&unit] {
    unit.template Dot<0, 4, 6>();
    unit.template Dot<1, 4, 7>();
    unit.template Dot<2, 5, 6>();
    unit.template Dot<3, 5, 7>();
  };
  constexpr size_t kRow = kTileColumns * sizeof(uint32_t), kPlane = kTileWords / 2;
  for (int group = 0; group < product.groups; ++group) {
    const uint16_t* high = product.high + static_cast<size_t>(group) * kTileDepth;
    const uint16_t* low = product.low + static_cast<size_t>(group) * kTileDepth;
    const uint32_t* right = product.right + static_cast<size_t>(group) * product.group_stride;
    unit.template Load<4>(low, left);
    unit.template Load<5>(low + below, left);
    unit.template Load<6>(right, kRow);
    unit.template Load<7>(right + kTileWords, kRow);
    dots();
    unit.template Load<4>(high, left);
    unit.template Load<5>(high + below, left);
    dots();
    unit.template Load<6>(right + kPlane, kRow);
    unit.template Load<7>(right + kTileWords + kPlane, kRow);
    dots();
  }
  unit.template Store<0>(product.sums, sums);
  unit.template Store<1>(product.sums + kTileColumns, sums);
  unit.template Store<2>(lower, sums);
  unit.template Store<3>(lower + kTileColumns, sums);
}

// Tiles in memory, 16 rows of 64 bytes.
class PlainTiles {
 public:
  template <int T>
  void Zero() {
    std::memset(tiles_[T], 0, sizeof(tiles_[T]));
  }
  template <int T>
  void Load(const void* from, size_t stride) {
    for (size_t r = 0; r < kTileRows; ++r)
      std::memcpy(tiles_[T][r], static_cast<const std::byte*>(from) + r * stride, 64);
  }
  template <int T>
  void Store(void* to, size_t stride) const {
    for (size_t r = 0; r < kTileRows; ++r) std::memcpy(static_cast<std::byte*>(to) + r * stride, tiles_[T][r], 64);
  }
  template <int C, int A, int B>
  void Dot() {
    for (size_t m = 0; m < kTileRows; ++m) {
      for (size_t k = 0; k < kTileRows; ++k) {
        const uint32_t a = tiles_[A][m][k];
        for (size_t n = 0; n < kTileColumns; ++n) {
          const uint32_t b = tiles_[B][k][n];
          float sum = std::bit_cast<float>(tiles_[C][m][n]);
          sum += Low(a) * Low(b);
          sum += High(a) * High(b);
          tiles_[C][m][n] = std::bit_cast<uint32_t>(sum);
        }
      }
    }
  }

 private:
  static float Low(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
  static float High(uint32_t pair) { return std::bit_cast<float>(pair & 0xFFFF0000u); }

  uint32_t tiles_[8][kTileRows][kTileColumns];
};

#if defined(__x86_64__) && defined(__linux__)

// The instructions are written out: they need no compiler flags then, and the number of a tile can be a parameter.
struct AmxTiles {
  template <int T>
  void Zero() const {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  void Load(const void* from, size_t stride) const {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  void Store(void* to, size_t stride) const {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
  }
  template <int C, int A, int B>
  void Dot() const {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

// All eight tiles of 16 rows and 64 bytes.
void BeginAmx() {
  struct alignas(64) Config {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static_assert(sizeof(Config) == 64);
  static constexpr Config kConfig;
  __asm__ volatile("ldtilecfg %0" ::"m"(kConfig));
}
void EndAmx() { __asm__ volatile("tilerelease"); }

// Linux hands the tiles' registers out on request only (Documentation/arch/x86/xstate.rst).
bool RequestAmx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kTile = 1u << 24, kBf16 = 1u << 22;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kTile) == 0 || (edx & kBf16) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

#endif

std::atomic<const TileUnit*>& UnitInUse() {
  static std::atomic<const TileUnit*> unit = ForcedTarget() == nullptr ? HardwareTileUnit() : nullptr;
  return unit;
}

}  // namespace

const TileUnit* HardwareTileUnit() {
#if defined(__x86_64__) && defined(__linux__)
  static constexpr TileUnit kUnit = {"AMX", &BeginAmx, &EndAmx, &Multiply<AmxTiles>};
  static const bool granted = RequestAmx();
  return granted ? &kUnit : nullptr;
#else
  return nullptr;
#endif
}

const TileUnit& PlainTileUnit() {
  static constexpr TileUnit kUnit = {"plain", [] {}, [] {}, &Multiply<PlainTiles>};
  return kUnit;
}

const TileUnit* GetTileUnit() { return UnitInUse().load(std::memory_order_relaxed); }
void SetTileUnitForTest(const TileUnit* unit) { UnitInUse().store(unit, std::memory_order_relaxed); }

}  // namespace pith::kernels
#endif  // HWY_ONCE
