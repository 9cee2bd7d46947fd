// When a prompt will be gone on from, as a network foresees it that learns from the prompts which pass.
//
// Blocks of a prompt stand and fall together: who goes on with a conversation asks for all of them. So one prompt is
// one sample, a few features of its turn are what the network sees, and what it learns is how many prompts later the
// deepest whole block was asked for again (evict/learn/survival.h; what was not asked for until now says so for the
// time that has passed). It begins with hazards that fall as 1 / age, which is LRU, and knows nothing of any trace.
#ifndef PITH_EVICT_LEARN_PROMPT_LEARNER_H_
#define PITH_EVICT_LEARN_PROMPT_LEARNER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "evict/learn/net.h"
#include "evict/learn/survival.h"
#include "evict/random.h"
#include "evict/trace.h"

namespace pith::evict {

struct PromptLearnerOptions {
  float rate = 1e-3f;       // Adam; 0: nothing is learned
  uint32_t batches = 2;     // of 16 remembered prompts, with each prompt
  uint32_t hidden = 32;     // width of the two inner layers
  uint32_t kept = 1 << 14;  // prompts that are remembered
};

class PromptLearner {
 public:
  // num_objects: blocks are numbers below it. Allocates all that it ever needs.
  PromptLearner(size_t num_objects, const PromptLearnerOptions& options);

  // With the deepest block of each prompt, in order. Hazards of the request that goes on from it, by bins of prompts.
  const Survival::Curve& Watch(const Access& deepest);
  // Of the last prompt's deepest block, which is another one when the conversation goes on, unless it is full.
  const Survival::Curve& deepest() const { return deepest_; }
  // The number is another block's from now on.
  void Forget(uint32_t object) { blocks_[object] = {}; }

 private:
  static constexpr size_t kFeatures = 13;
  static constexpr size_t kBatch = 16;
  static constexpr uint32_t kNone = UINT32_MAX;
  struct Block {
    uint32_t prompt = kNone;   // the last one that it was in
    uint32_t waiting = kNone;  // the prompt of which it is the deepest (whole) block, until it is asked for again
    uint32_t count = 0;        // of prompts
  };
  struct Sample {
    std::array<float, kFeatures> features{};
    uint32_t prompt = kNone;
    uint32_t gap = 0;      // prompts until it was gone on from; 0: not yet
    bool teaches = false;  // it has a whole block that is not the first one
    bool partial = false;  // its deepest block is not full
    uint32_t chain = 0;    // blocks
    uint32_t turn = 0;
    uint32_t pause = 0;   // prompts since the one that it goes on from; 0: none
    uint32_t tokens = 0;  // of the prompt
    uint32_t answer = 0;  // tokens
  };

  Sample* Find(uint32_t prompt);
  void Describe(const Access& deepest, uint32_t known, Sample& sample);
  void Resolve(Block& block, uint32_t depth, uint32_t now);
  void Learn(uint32_t now);

  const PromptLearnerOptions options_;
  Net net_;
  NetBuffers buffers_;
  Adam adam_;
  Random random_{1};
  std::vector<Block> blocks_;    // by object
  std::vector<Sample> samples_;  // a ring, by prompt
  std::vector<float> gradient_;
  std::vector<float> rows_;
  std::vector<float> slopes_;
  Survival::Curve curve_{};
  Survival::Curve deepest_{};
  uint32_t seen_ = 0;          // prompts so far
  uint32_t block_tokens_ = 1;  // of a full block: the most that any prompt had by block
  // Deepest blocks that were asked for again: of those that are not full, and whole ones.
  uint64_t partial_again_ = 0;
  uint64_t whole_again_ = 0;
};

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_PROMPT_LEARNER_H_
