// "learned" for traces of prompts: the block goes that is least likely to be asked for soon, as the prompt tells that
// had it last (evict/learn/prompt_learner.h), and never one that a stored block hangs on. The new prompt's blocks may
// be the victims.
#ifndef PITH_EVICT_POLICIES_LEARNED_PROMPTS_H_
#define PITH_EVICT_POLICIES_LEARNED_PROMPTS_H_

#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>

#include "evict/learn/prompt_learner.h"
#include "evict/registry.h"

namespace pith::evict {

// How long is foreseen, for evictors that rank by Survival::HitRate.
class Turnover {
 public:
  // With each eviction, of a cache that stores so many.
  void CountEviction(size_t stored, uint32_t now) {
    if (++evictions_ < stored) return;
    evictions_ = 0;
    last_ = now - began_;
    began_ = now;
  }
  // Twice the time in which as many objects were evicted as are stored.
  uint32_t Horizon(uint32_t now) const { return 2 * std::max({kLeast, last_, now - began_}); }

  // The age at which to look again: 1, 2, 3, 4, 6, 8, 12, 16, ...
  static uint64_t NextLook(uint32_t age) {
    const uint64_t octave = uint64_t{1} << (std::bit_width(age) - 1);
    return age < octave + octave / 2 ? octave + octave / 2 : 2 * octave;
  }

 private:
  static constexpr uint32_t kLeast = 128;  // moments
  uint64_t evictions_ = 0;                 // since began_
  uint32_t began_ = 0;                     // moment
  uint32_t last_ = 0;                      // moments that the last turn took
};

std::unique_ptr<Evictor> MakeLearnedPrompts(const Setup& setup, const PromptLearnerOptions& options);

}  // namespace pith::evict

#endif  // PITH_EVICT_POLICIES_LEARNED_PROMPTS_H_
