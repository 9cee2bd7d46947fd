// Micro-kernels over pages that were converted to float32.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/page_kernels_f32.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// Must come after foreach_target.h.
#include <hwy/highway.h>

#include "kernels/page_kernels-inl.h"
#include "kernels/page_kernels.h"

// In trees with ASan these kernels, a third to two thirds of an engine's time there, are compiled without it
// (src/CMakeLists.txt) and ask instead, once a call, about all that they will touch.
#ifdef PITH_KERNELS_ASK_ASAN
#include <sanitizer/asan_interface.h>
#endif

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {

struct LoadF32 {
  static constexpr Source kSource = Source::kF32;
  using T = float;
  static HWY_INLINE VF Load(const T* from) { return hn::LoadU(DF(), from); }
};

#ifdef PITH_KERNELS_ASK_ASAN
void Ask(const float* from, size_t count, bool is_written) {
  void* const bad = __asan_region_is_poisoned(const_cast<float*>(from), count * sizeof(float));
  if (bad == nullptr) return;
  void* const frame = __builtin_frame_address(0);
  __asan_report_error(__builtin_return_address(0), frame, frame, bad, is_written ? 1 : 0, sizeof(float));
}

template <int R>
void AskedScorePage(const ScoreArgs& args) {
  Ask(args.queries, args.key_dim * R, false);
  Ask(static_cast<const float*>(args.keys), args.key_dim * kPageEntries, false);
  for (int r = 0; r < R; ++r) Ask(args.scores + r * kStepEntries, kPageEntries, true);
  ScorePage<LoadF32, R>(args);
}

template <int R>
void AskedAccumulatePage(const AccumulateArgs& args) {
  const size_t width = (args.value_dim + kLanes - 1) / kLanes * kLanes;
  if (args.count > 0) {
    Ask(static_cast<const float*>(args.values), static_cast<size_t>(args.count - 1) * args.value_stride + width, false);
  }
  for (int r = 0; r < R; ++r) {
    Ask(args.weights + r * kStepEntries, static_cast<size_t>(args.count), false);
    Ask(args.acc + static_cast<size_t>(r) * args.acc_stride, width, true);
  }
  AccumulatePage<LoadF32, R>(args);
}

template <int... R>
SourceKernels AskedKernels(std::integer_sequence<int, R...>) {
  SourceKernels kernels = {};
  ((kernels.score[R + 1] = &AskedScorePage<R + 1>), ...);
  ((kernels.accumulate[R + 1] = &AskedAccumulatePage<R + 1>), ...);
  return kernels;
}
SourceKernels TargetKernels() { return AskedKernels(std::make_integer_sequence<int, kBlockRows>()); }
#else
SourceKernels TargetKernels() { return KernelsOf<LoadF32>(); }
#endif

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pith::kernels {

HWY_EXPORT(TargetKernels);

SourceKernels KernelsOfF32() { return HWY_DYNAMIC_DISPATCH(TargetKernels)(); }

}  // namespace pith::kernels
#endif  // HWY_ONCE
