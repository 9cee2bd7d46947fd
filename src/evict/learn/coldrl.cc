#include "evict/learn/coldrl.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "evict/learn/coldrl_lanes.h"

namespace pith::evict {
namespace {

constexpr float kLeastWorth = 0.01f;  // requests

}  // namespace

ColdRl::ColdRl(Model model) : model_(std::move(model)), buffers_(model_.net, kMostCandidates), features_{}, inputs_{} {
  PITH_CHECK(model_.net.inputs() == kInputs && model_.net.outputs() == kOutputs);
}

void ColdRl::Put(const ColdRlCandidate& candidate, size_t lane, Features16& features) {
  features[0][lane] = static_cast<float>(candidate.age);
  features[1][lane] = static_cast<float>(candidate.size / 1024);
  features[2][lane] = static_cast<float>(candidate.hits);
  features[3][lane] = static_cast<float>(candidate.idle);
  features[4][lane] = static_cast<float>(candidate.ttl);
  features[5][lane] = static_cast<float>(candidate.rtt);
}

void ColdRl::Features(const ColdRlCandidate* candidates, size_t count, float* features) {
  PITH_DCHECK(count <= kMostCandidates);
  for (size_t first = 0; first < count; first += kLanes) {
    Features16 block = {};
    const size_t lanes = std::min(kLanes, count - first);
    for (size_t lane = 0; lane < lanes; ++lane) Put(candidates[first + lane], lane, block);
    TakeLogarithms(block[0], kFeatures);
    for (size_t lane = 0; lane < lanes; ++lane) {
      for (size_t f = 0; f < kFeatures; ++f) features[(first + lane) * kFeatures + f] = block[f][lane];
    }
  }
}

void ColdRl::Take(const ColdRlCandidate* candidates, size_t count) {
  for (size_t c = 0; c < count; ++c) Put(candidates[c], c % kLanes, features_[c / kLanes]);
  for (size_t block = 0; block * kLanes < count; ++block) TakeLogarithms(features_[block][0], kFeatures);
}

void ColdRl::Normalize(size_t count) {
  float mean[kFeatures] = {};
  for (size_t block = 0; block * kLanes < count; ++block) {
    Inputs16& inputs = inputs_[block];
    Standardize(features_[block][0], model_.mean.data(), model_.deviation.data(), kFeatures, inputs[0]);
    const size_t lanes = std::min(kLanes, count - block * kLanes);
    for (size_t lane = 0; lane < lanes; ++lane) {
      for (size_t f = 0; f < kFeatures; ++f) mean[f] += inputs[f][lane];
    }
  }
  for (size_t f = 0; f < kFeatures; ++f) {
    const float all = mean[f] / static_cast<float>(count);
    for (size_t block = 0; block * kLanes < count; ++block) std::fill_n(inputs_[block][kFeatures + f], kLanes, all);
  }
}

void ColdRl::Inputs(const ColdRlCandidate* candidates, size_t count, float* inputs) {
  PITH_DCHECK(count <= kMostCandidates);
  Take(candidates, count);
  Normalize(count);
  for (size_t c = 0; c < count; ++c) {
    for (size_t i = 0; i < kInputs; ++i) inputs[c * kInputs + i] = inputs_[c / kLanes][i][c % kLanes];
  }
}

const float* ColdRl::Judge(size_t count) {
  Normalize(count);
  bool finite = true;
  for (size_t block = 0; block * kLanes < count; ++block) {
    const float* const q = ForwardColumns(model_.net, inputs_[block][0], buffers_);
    for (size_t c = block * kLanes; c < std::min(count, (block + 1) * kLanes); ++c) {
      const float outputs[kOutputs] = {q[c % kLanes], q[kLanes + c % kLanes], q[2 * kLanes + c % kLanes]};
      margins_[c] = Evict(outputs) - Keep(outputs);
      finite = finite && std::isfinite(margins_[c]);
    }
  }
  return finite ? margins_ : nullptr;
}

const float* ColdRl::MarginsOf(const float* features, size_t count) {
  PITH_DCHECK(count <= kMostCandidates);
  for (size_t c = 0; c < count; ++c) {
    for (size_t f = 0; f < kFeatures; ++f) features_[c / kLanes][f][c % kLanes] = features[c * kFeatures + f];
  }
  return Judge(count);
}

const float* ColdRl::Margins(const ColdRlCandidate* candidates, size_t count) {
  PITH_DCHECK(count <= kMostCandidates);
  Take(candidates, count);
  return Judge(count);
}

void OrderVictims(const ColdRlCandidate* candidates, const float* margins, size_t count, bool per_byte,
                  uint32_t* order) {
  float worths[ColdRl::kMostCandidates] = {};
  for (size_t c = 0; c < count; ++c) {
    worths[c] = -margins[c];
    // Of those that are as good as worthless, the largest.
    if (per_byte) worths[c] = std::max(worths[c], kLeastWorth) / static_cast<float>(std::max(1.0, candidates[c].size));
  }
  // Each one's place is the number of those before it: no branches, of which half would be guessed wrongly.
  uint32_t places[ColdRl::kMostCandidates];
  PlacesOf(worths, count, places);
  for (size_t c = 0; c < count; ++c) order[places[c]] = static_cast<uint32_t>(c);
}

}  // namespace pith::evict
