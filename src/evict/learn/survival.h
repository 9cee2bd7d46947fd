// How long until an object is asked for again, as a network foresees it at each request.
//
// Survival analysis in discrete time: gaps fall into bins, two an octave of moments, and the network gives for each the
// hazard, the probability that the next request comes in it, given that it did not come before. Objects that were not
// asked for again until the trace ended (or until now) say so for the bins that have passed: nothing need be known of
// the rest.
#ifndef PITH_EVICT_LEARN_SURVIVAL_H_
#define PITH_EVICT_LEARN_SURVIVAL_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "evict/learn/history.h"
#include "evict/learn/model_file.h"

namespace pith::evict {

class Survival {
 public:
  static constexpr size_t kBins = 38;

  // Of the gap: from 1, 2, 3, 4, 6, 8, 12, ... moments on. Requests of one moment count as one moment apart.
  static size_t BinOf(uint32_t gap);
  static uint32_t Begin(size_t bin) {
    const auto halves = static_cast<uint32_t>(bin + 1);
    return bin == 0 ? 1 : (2 + halves % 2) << (halves / 2 - 1);
  }

  // Hazard rates by bin, requests per moment.
  using Curve = std::array<float, kBins>;
  static Curve CurveOf(const float* outputs);

  // The most requests per moment that keeping an object of this age can earn, over all times up to `horizon` for
  // which one may keep it: P(asked for within t) / E[time until then, at most t], the largest over t. That is Gittins'
  // index, but for the horizon: what is foreseen for times that no cache of this size lives to see only adds noise.
  static float HitRate(const Curve& curve, uint32_t age, uint32_t horizon);

  // Slopes of -log likelihood by output of what was seen of one object: a request after `gap` moments, or none in
  // them. Returns the loss.
  static float Slopes(const float* outputs, uint32_t gap, bool asked, float* slopes);
};

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_SURVIVAL_H_
