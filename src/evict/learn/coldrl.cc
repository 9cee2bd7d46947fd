#include "evict/learn/coldrl.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "evict/learn/fast_math.h"

namespace pith::evict {
namespace {

constexpr float kLn2 = 0.693147f;
constexpr float kLeastWorth = 0.01f;  // requests

}  // namespace

ColdRl::ColdRl(Model model) : model_(std::move(model)), buffers_(model_.net, kMostCandidates) {
  PITH_CHECK(model_.net.inputs() == kInputs && model_.net.outputs() == kOutputs);
}

void ColdRl::Features(const ColdRlCandidate& candidate, float* features) {
  const double values[kFeatures] = {candidate.age,  candidate.size / 1024, candidate.hits,
                                    candidate.idle, candidate.ttl,         candidate.rtt};
  // An infinite time to live is no more than a long one.
  for (size_t f = 0; f < kFeatures; ++f) {
    const double value = std::isnan(values[f]) ? values[f] : std::clamp(values[f], 0.0, 1e12);
    features[f] = std::isnan(value) ? std::nanf("") : kLn2 * FastLog2(1 + static_cast<float>(value));
  }
}

void ColdRl::Inputs(const ColdRlCandidate* candidates, size_t count, float* inputs) const {
  float mean[kFeatures] = {};
  for (size_t c = 0; c < count; ++c) {
    float features[kInputs];
    Features(candidates[c], features);
    float* own = inputs + c * kInputs;
    for (size_t f = 0; f < kFeatures; ++f) {
      const float z = (features[f] - model_.mean[f]) / model_.deviation[f];
      own[f] = std::isnan(z) ? 0 : std::clamp(z, -5.0f, 5.0f);
      mean[f] += own[f];
    }
  }
  for (float& m : mean) m /= static_cast<float>(count);
  for (size_t c = 0; c < count; ++c) std::copy_n(mean, kFeatures, inputs + c * kInputs + kFeatures);
}

const float* ColdRl::Margins(const ColdRlCandidate* candidates, size_t count) {
  PITH_DCHECK(count <= kMostCandidates);
  Inputs(candidates, count, inputs_);
  const float* outputs = Forward(model_.net, inputs_, count, buffers_);
  bool finite = true;
  for (size_t c = 0; c < count; ++c) {
    const float* q = outputs + c * model_.net.output_stride();
    margins_[c] = Evict(q) - Keep(q);
    finite = finite && std::isfinite(margins_[c]);
  }
  return finite ? margins_ : nullptr;
}

void OrderVictims(const ColdRlCandidate* candidates, const float* margins, size_t count, bool per_byte,
                  uint32_t* order) {
  float worth[ColdRl::kMostCandidates];
  for (size_t c = 0; c < count; ++c) {
    worth[c] = -margins[c];
    order[c] = static_cast<uint32_t>(c);
    // Of those that are as good as worthless, the largest.
    if (per_byte) worth[c] = std::max(worth[c], kLeastWorth) / static_cast<float>(std::max(1.0, candidates[c].size));
  }
  // Insertion: few, and equals keep their order.
  for (size_t c = 1; c < count; ++c) {
    const uint32_t moved = order[c];
    size_t at = c;
    for (; at > 0 && worth[order[at - 1]] > worth[moved]; --at) order[at] = order[at - 1];
    order[at] = moved;
  }
}

}  // namespace pith::evict
