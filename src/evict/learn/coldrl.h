// Cold-RL (arXiv:2508.12485): a dueling Q-network judges the K least recently used objects, keep or evict.
//
// The abstract gives the idea, the authors' code the features; that code trains and serves different things, so that
// the rest is ours (docs/simulation.md): the same weights for every candidate, which also sees the mean of all.
#ifndef PITH_EVICT_LEARN_COLDRL_H_
#define PITH_EVICT_LEARN_COLDRL_H_

#include <cstddef>
#include <cstdint>

#include "evict/learn/lanes.h"
#include "evict/learn/model_file.h"

namespace pith::evict {

struct ColdRlCandidate {
  double age = 0;   // s since it was stored
  double size = 0;  // bytes
  double hits = 0;  // since it was stored
  double idle = 0;  // s since it was last asked for
  double ttl = 0;   // s that it may still be served; NaN: unknown
  double rtt = 0;   // us that the origin took; NaN: unknown
};

class ColdRl {
 public:
  static constexpr size_t kFeatures = 6;
  static constexpr size_t kInputs = 2 * kFeatures;  // its own, and the mean over the candidates
  static constexpr size_t kOutputs = 3;             // value, advantages of keeping and of evicting
  static constexpr size_t kMostCandidates = 32;

  // ln(1 + x) of each, sizes in KiB: [count, kFeatures].
  static void Features(const ColdRlCandidate* candidates, size_t count, float* features);
  // Q(keep) and Q(evict) from the network's outputs.
  static float Keep(const float* outputs) { return outputs[0] + 0.5f * (outputs[1] - outputs[2]); }
  static float Evict(const float* outputs) { return outputs[0] + 0.5f * (outputs[2] - outputs[1]); }

  // A model of kind kColdRl.
  explicit ColdRl(Model model);

  // Rows of kInputs floats, normalized.
  void Inputs(const ColdRlCandidate* candidates, size_t count, float* inputs);
  // Q(evict) - Q(keep) of each, which must be read before the next call; null: no finite numbers.
  // At most kMostCandidates; allocates nothing.
  const float* Margins(const ColdRlCandidate* candidates, size_t count);
  // The same of what Features() gave of them [count, kFeatures].
  const float* MarginsOf(const float* features, size_t count);

  Model& model() { return model_; }

 private:
  static constexpr size_t kBlocks = kMostCandidates / kLanes;
  // Of kLanes candidates side by side, [kFeatures] or [kInputs].
  using Features16 = float[kFeatures][kLanes];
  using Inputs16 = float[kInputs][kLanes];

  static void Put(const ColdRlCandidate& candidate, size_t lane, Features16& features);
  // Fills features_.
  void Take(const ColdRlCandidate* candidates, size_t count);
  // In: features_ of `count` candidates. Fills inputs_.
  void Normalize(size_t count);
  const float* Judge(size_t count);

  Model model_;
  NetBuffers buffers_;
  Features16 features_[kBlocks];
  Inputs16 inputs_[kBlocks];
  float margins_[kMostCandidates];
};

// Victims in their order, for what has been judged. per_byte: of what keeping is worth more than evicting, the share of
// each byte counts; else all of it, as in the paper. Ties: the first, which is the oldest.
void OrderVictims(const ColdRlCandidate* candidates, const float* margins, size_t count, bool per_byte,
                  uint32_t* order);

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_COLDRL_H_
