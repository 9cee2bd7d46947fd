#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/entropy.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Must come after foreach_target.h.
#include "hwy/highway.h"

#include "hwy/contrib/math/math-inl.h"

#include "kernels/entropy.h"
#include "kernels/load_up_to-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Floats are added up over short stretches only.
constexpr size_t kStretch = 256;

HWY_ATTR double EntropyImpl(const float* p, size_t n) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  const auto least = hn::Set(d, 1e-10f);
  double total = 0;
  for (size_t begin = 0; begin < n; begin += kStretch) {
    const size_t end = HWY_MIN(n, begin + kStretch);
    auto sum = hn::Zero(d);
    for (size_t i = begin; i < end; i += lanes) {
      const auto x = LoadUpTo(d, p, i, end);
      sum = hn::MulAdd(x, hn::Log(d, hn::Add(x, least)), sum);
    }
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }
  return -total;
}

}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pith::kernels {

HWY_EXPORT(EntropyImpl);

double Entropy(std::span<const float> p) { return HWY_DYNAMIC_DISPATCH(EntropyImpl)(p.data(), p.size()); }

}  // namespace pith::kernels
#endif  // HWY_ONCE
