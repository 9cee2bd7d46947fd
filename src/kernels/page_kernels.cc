// Softmax and the table of each target. Micro-kernels are in page_kernels-inl.h, those of groups in group_*-inl.h; each
// source of pages compiles its own in page_kernels_NAME.cc, since all of them together take minutes.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/page_kernels.cc"
#include "kernels/page_kernels.h"

#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <cmath>
#include <limits>

#include "kernels/page_kernels-inl.h"
#include "kernels/target.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {  // each file of a target has its own

inline constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// Some targets reduce from the lowest finite value on, so it stands for -inf.
HWY_INLINE float MaxOf(VF v) {
  const float max = hn::GetLane(hn::MaxOfLanes(DF(), v));
  return max == std::numeric_limits<float>::lowest() ? kMinusInf : max;
}
HWY_INLINE float SumOf(VF v) { return hn::GetLane(hn::SumOfLanes(DF(), v)); }

// One vector of scores, lane 0 being slot `slot` of the page.
HWY_INLINE VF AdjustVector(VF s, int slot, const RowRule& rule, const StepPage& page, float soft_cap, bool alibi) {
  const DF df;
  const DI di;
  if (soft_cap != 0.0f) s = hn::Mul(Tanh(s), hn::Set(df, soft_cap));
  const VI position = hn::LoadU(di, page.positions + slot);
  const VI last = hn::Set(di, rule.last);
  if (alibi) {
    const VF distance = hn::ConvertTo(df, hn::Sub(last, position));
    s = hn::NegMulAdd(distance, hn::Set(df, rule.slope), s);
  }
  if (page.masked) {
    const auto future = hn::Gt(position, last);
    const auto past = hn::Lt(position, hn::Set(di, rule.first));
    const auto unused = hn::Gt(hn::Iota(di, slot), hn::Set(di, page.count - 1));
    const auto hidden = hn::RebindMask(df, hn::Or(hn::Or(future, past), unused));
    s = hn::IfThenElse(hidden, hn::Set(df, kMinusInf), s);
  }
  return s;
}

void Adjust(float* scores, const RowRule& rule, const StepPage& page, float soft_cap, bool alibi) {
  for (int slot = 0; slot < kPageEntries; slot += kLanes) {
    const VF s = AdjustVector(hn::LoadU(DF(), scores + slot), slot, rule, page, soft_cap, alibi);
    hn::StoreU(s, DF(), scores + slot);
  }
}

float AdjustedMax(float* scores, const SoftmaxArgs& args, const RowRule& rule) {
  const DF df;
  VF max = hn::Set(df, kMinusInf);
  for (int p = 0; p < args.num_pages; ++p) {
    const StepPage& page = args.pages[p];
    float* at = scores + p * kPageEntries;
    if (page.masked || args.alibi || args.soft_cap != 0.0f) {
      Adjust(at, rule, page, args.soft_cap, args.alibi);
    }
    for (int slot = 0; slot < kPageEntries; slot += kLanes) max = hn::Max(max, hn::LoadU(df, at + slot));
  }
  return MaxOf(max);
}

void SoftmaxStep(const SoftmaxArgs& args) {
  const DF df;
  for (int r = 0; r < args.rows; ++r) {
    float* scores = args.scores + static_cast<size_t>(r) * kStepEntries;
    const float former = args.max[r];
    const float max = std::max(former, AdjustedMax(scores, args, args.rules[r]));
    // A row that has seen nothing yet: any finite maximum makes all weights 0.
    const VF shift = hn::Set(df, max == kMinusInf ? 0.0f : max);
    VF sum = hn::Zero(df);
    for (int p = 0; p < args.num_pages; ++p) {
      float* at = scores + p * kPageEntries;
      const float* scales = args.pages[p].value_scales;
      PITH_UNROLL for (int slot = 0; slot < kPageEntries; slot += kLanes) {
        VF weight = Exp2(hn::Sub(hn::LoadU(df, at + slot), shift));
        sum = hn::Add(sum, weight);
        if (scales != nullptr) weight = hn::Mul(weight, hn::LoadU(df, scales + slot));
        hn::StoreU(weight, df, at + slot);
      }
    }
    const float alpha = former == max ? 1.0f : std::exp2(former - max);
    args.alpha[r] = alpha;
    args.max[r] = max;
    args.sum[r] = args.sum[r] * alpha + SumOf(sum);
  }
}

// Sums alone: a multiply-add for each vector of weights.
void ObserveSums(const ObserveArgs& args) {
  const DF df;
  const float share = 1.0f / static_cast<float>(args.group);
  VF sums[kPageVectors];
  for (int v = 0; v < kPageVectors; ++v) sums[v] = hn::LoadU(df, args.sum + v * kLanes);
  const float* weights = args.weights;
  for (int row = 0; row < args.num_queries * args.group; ++row, weights += kStepEntries) {
    const VF factor = hn::Set(df, args.factors[row] * share);
    for (int v = 0; v < kPageVectors; ++v) sums[v] = hn::MulAdd(hn::LoadU(df, weights + v * kLanes), factor, sums[v]);
  }
  for (int v = 0; v < kPageVectors; ++v) hn::StoreU(sums[v], df, args.sum + v * kLanes);
}

// A vector's maxima wait for each other, so that several go side by side.
void ObserveAll(const ObserveArgs& args) {
  constexpr int kAbreast = HWY_MIN(kPageVectors, 2);
  const DF df;
  const VF share = hn::Set(df, 1.0f / static_cast<float>(args.group));
  for (int slot = 0; slot < kPageEntries; slot += kAbreast * kLanes) {
    const float* weights = args.weights + slot;
    const float* factor = args.factors;
    VF sum[kAbreast], squares[kAbreast], largest[kAbreast];
    for (int v = 0; v < kAbreast; ++v) {
      sum[v] = hn::LoadU(df, args.sum + slot + v * kLanes);
      squares[v] = hn::LoadU(df, args.squares + slot + v * kLanes);
      largest[v] = hn::LoadU(df, args.largest + slot + v * kLanes);
    }
    for (int t = 0; t < args.num_queries; ++t) {
      VF total[kAbreast];
      for (int v = 0; v < kAbreast; ++v) total[v] = hn::Zero(df);
      for (int g = 0; g < args.group; ++g, weights += kStepEntries) {
        const VF scale = hn::Set(df, *factor++);
        for (int v = 0; v < kAbreast; ++v) {
          const VF p = hn::Mul(hn::LoadU(df, weights + v * kLanes), scale);
          largest[v] = hn::Max(largest[v], p);
          total[v] = hn::Add(total[v], p);
        }
      }
      for (int v = 0; v < kAbreast; ++v) {
        const VF mean = hn::Mul(total[v], share);
        sum[v] = hn::Add(sum[v], mean);
        squares[v] = hn::MulAdd(mean, mean, squares[v]);
      }
    }
    for (int v = 0; v < kAbreast; ++v) {
      hn::StoreU(sum[v], df, args.sum + slot + v * kLanes);
      hn::StoreU(squares[v], df, args.squares + slot + v * kLanes);
      hn::StoreU(largest[v], df, args.largest + slot + v * kLanes);
    }
  }
}

void Observe(const ObserveArgs& args) { args.squares != nullptr ? ObserveAll(args) : ObserveSums(args); }

void SoftmaxRow(float* scores, int64_t count, float sink) {
  const DF df;
  const int64_t whole = count / kLanes * kLanes;
  VF max = hn::Set(df, kMinusInf);
  for (int64_t i = 0; i < whole; i += kLanes) max = hn::Max(max, hn::LoadU(df, scores + i));
  float top = MaxOf(max);
  for (int64_t i = whole; i < count; ++i) top = std::max(top, scores[i]);
  const bool blind = top == kMinusInf;
  top = blind ? 0.0f : std::max(top, sink);
  const VF shift = hn::Set(df, top);
  HWY_ALIGN float tail[kLanes];
  for (int i = 0; i < kLanes; ++i) tail[i] = whole + i < count ? scores[whole + i] : kMinusInf;
  const VF tail_weight = Exp2(hn::Sub(hn::Load(df, tail), shift));
  VF sums = tail_weight;
  for (int64_t i = 0; i < whole; i += kLanes) {
    const VF weight = Exp2(hn::Sub(hn::LoadU(df, scores + i), shift));
    sums = hn::Add(sums, weight);
    hn::StoreU(weight, df, scores + i);
  }
  const float sum = SumOf(sums) + std::exp2(sink - top);
  const VF factor = hn::Set(df, blind ? 0.0f : 1.0f / sum);
  for (int64_t i = 0; i < whole; i += kLanes) {
    hn::StoreU(hn::Mul(hn::LoadU(df, scores + i), factor), df, scores + i);
  }
  hn::Store(hn::Mul(tail_weight, factor), df, tail);
  for (int64_t i = whole; i < count; ++i) scores[i] = tail[i - whole];
}

void Scale(float* values, size_t count, float factor) {
  const DF df;
  const VF f = hn::Set(df, factor);
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) hn::StoreU(hn::Mul(hn::LoadU(df, values + i), f), df, values + i);
  for (; i < count; ++i) values[i] *= factor;
}

void PositionRange(const int32_t* positions, int count, int32_t* least, int32_t* greatest) {
  const DI di;
  if (count < kPageEntries) {
    *least = *std::min_element(positions, positions + count);
    *greatest = *std::max_element(positions, positions + count);
    return;
  }
  VI low = hn::LoadU(di, positions);
  VI high = low;
  for (int i = kLanes; i < kPageEntries; i += kLanes) {
    const VI p = hn::LoadU(di, positions + i);
    low = hn::Min(low, p);
    high = hn::Max(high, p);
  }
  *least = hn::GetLane(hn::MinOfLanes(di, low));
  *greatest = hn::GetLane(hn::MaxOfLanes(di, high));
}

PageKernels MakeKernels() {
  PageKernels kernels = {};
  kernels.target_name = hwy::TargetName(HWY_TARGET);
  kernels.block_rows = kBlockRows;
#define PITH_KV_FORMAT(id, ...) kernels.sources[static_cast<int>(Source::k##id)] = KernelsOf##id();
#include "kernels/kv_formats.inc"
#undef PITH_KV_FORMAT
  kernels.sources[static_cast<int>(Source::kF32)] = KernelsOfF32();
  kernels.sources[static_cast<int>(Source::kCoded)] = KernelsOfCoded();
  kernels.softmax = &SoftmaxStep;
  kernels.observe = &Observe;
  kernels.adjust = &Adjust;
  kernels.softmax_row = &SoftmaxRow;
  kernels.scale = &Scale;
  kernels.position_range = &PositionRange;
  return kernels;
}

const PageKernels* TargetKernels() {
  static const PageKernels kernels = MakeKernels();
  return &kernels;
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pith::kernels {

HWY_EXPORT(TargetKernels);

const PageKernels& GetPageKernels() {
  ApplyForcedTarget();
  return *HWY_DYNAMIC_DISPATCH(TargetKernels)();
}

}  // namespace pith::kernels
#endif  // HWY_ONCE
