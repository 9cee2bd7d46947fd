#include "evict/learn/survival.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "evict/learn/fast_math.h"

namespace pith::evict {
namespace {

constexpr float kLog2E = 1.442695f;

}  // namespace

size_t Survival::BinOf(uint32_t gap) {
  if (gap < 2) return 0;
  const auto octave = static_cast<size_t>(std::bit_width(gap)) - 1;
  return std::min(2 * octave - 1 + ((gap >> (octave - 1)) & 1), kBins - 1);
}

Survival::Curve Survival::CurveOf(const float* outputs) {
  Curve curve;
  for (size_t k = 0; k < kBins; ++k) {
    // -ln(1 - sigmoid(x)) = ln(1 + e^x), which is e^x where that is small.
    const float x = std::clamp(outputs[k], -20.0f, 20.0f);
    const float power = x > 0 ? 1 / FastExp2(-x * kLog2E) : FastExp2(x * kLog2E);
    const float hazard = power < 0.01f ? power : FastLog2(1 + power) / kLog2E;
    curve[k] = hazard / static_cast<float>(Begin(k + 1) - Begin(k));
  }
  return curve;
}

float Survival::HitRate(const Curve& curve, uint32_t age, uint32_t horizon) {
  float best = 0;
  float alive = 1;
  float time = 0;
  auto start = static_cast<float>(std::max(1u, age));
  const float until = start + static_cast<float>(horizon);
  for (size_t k = BinOf(age); k < kBins; ++k) {
    const float end = std::min(static_cast<float>(Begin(k + 1)), until);
    if (start >= end) break;  // the horizon, or older than the last bin
    const float width = end - start;
    const float expected = curve[k] * width;  // requests, if it could not leave
    // The share that leaves, and how long one is there on average; for small ones without a difference of equals.
    const float share = expected < 0.01f ? expected * (1 - 0.5f * expected) : 1 - FastExp2(-expected * kLog2E);
    time += alive * (expected < 0.01f ? width * (1 - 0.5f * expected) : share / curve[k]);
    alive -= alive * share;
    best = std::max(best, (1 - alive) / time);
    start = end;
  }
  return best;
}

float Survival::Slopes(const float* outputs, uint32_t gap, bool asked, float* slopes) {
  std::fill(slopes, slopes + kBins, 0.0f);
  const size_t last = BinOf(gap);
  float loss = 0;
  for (size_t k = 0; k <= last; ++k) {
    const bool event = asked && k == last;
    if (k == last && !asked) break;  // has not passed
    const float hazard = 1 / (1 + std::exp(-outputs[k]));
    slopes[k] = hazard - (event ? 1.0f : 0.0f);
    loss -= std::log(std::max(event ? hazard : 1 - hazard, 1e-7f));
  }
  return loss;
}

}  // namespace pith::evict
