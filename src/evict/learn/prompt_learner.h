// When a prompt will be gone on from, as a network foresees it that learns from the prompts which pass.
//
// Blocks of a prompt stand and fall together: who goes on with a conversation asks for all of them. So one prompt is
// one lesson, a few features of its turn are what the network sees, and what it learns is how many prompts later the
// deepest whole block was asked for again (evict/learn/survival.h; what was not asked for until now says so for the
// time that has passed). It begins with hazards that fall as 1 / age, which is LRU, and knows nothing of any trace.
// What it says of a time that few lessons have reached yet is drawn to how often prompts were gone on from then:
// otherwise a cache that holds more than the network has lived through is worse than LRU's.
//
// But where prompts part, as with a document about which several questions are asked, the blocks up to there are asked
// for by whoever goes on from any of them. Each prompt that passes through such a fork is a lesson of another network,
// which sees how often and when the fork was asked for beside the prompt's features. Few prompts may teach it, and then
// what is foreseen of the turn counts for forks, too.
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
  uint32_t batches = 2;     // of 16 remembered lessons, with each prompt
  uint32_t hidden = 32;     // width of the two inner layers
  uint32_t kept = 1 << 14;  // prompts that are remembered, and lessons
};

class PromptLearner {
 public:
  // num_objects: blocks are numbers below it. Allocates all that it ever needs.
  PromptLearner(size_t num_objects, const PromptLearnerOptions& options);

  // With the deepest block of each prompt, in order.
  void Watch(const Access& deepest);
  // Hazards of the last prompt's block at this depth, by bins of prompts until it is asked for again.
  const Survival::Curve& CurveAt(uint32_t depth) const;
  // The number is another block's from now on.
  void Forget(uint32_t object) { blocks_[object] = {}; }

 private:
  static constexpr size_t kTurnFeatures = 13;
  static constexpr size_t kFeatures = kTurnFeatures + 5;  // those of a fork
  static constexpr size_t kBatch = 16;
  static constexpr size_t kMostForks = 4;  // of a prompt that count, the deepest ones
  static constexpr uint32_t kNone = UINT32_MAX;
  // Lessons that weigh as much as what is believed without them: how often any prompt was gone on from then, the first
  // guess of that, and, of forks, what is foreseen of the turn.
  static constexpr float kDoubt = 50, kFirstDoubt = 100, kForkDoubt = 200;
  using Features = std::array<float, kFeatures>;
  using Outputs = std::array<float, Survival::kBins>;  // log-odds by bin
  struct Block {
    uint32_t prompt = kNone;   // the last one that it was in
    uint32_t pause = 0;        // prompts between the last two; 0: there was one
    uint32_t waiting = kNone;  // the lesson that is about it, until it is asked for again
    uint32_t count = 0;        // of prompts
    bool is_fork = false;      // prompts have parted behind it
    bool as_fork = false;      // what waits is a lesson of a fork
    bool ended = false;        // the last prompt ended with it, and it was not full
  };
  struct Turn {
    uint32_t prompt = kNone;
    uint32_t chain = 0;   // blocks
    uint32_t turn = 0;    // prompts before it that it goes on from
    uint32_t pause = 0;   // prompts since the last of them; 0: none
    uint32_t tokens = 0;  // of the prompt
    uint32_t answer = 0;  // tokens
  };
  struct Lesson {
    Features features{};
    uint32_t number = kNone;
    uint32_t prompt = 0;
    uint32_t gap = 0;  // prompts until the block was asked for again; 0: not yet
  };
  // A network and what it learns from.
  class Pupil {
   public:
    explicit Pupil(const PromptLearnerOptions& options);
    // Returns the lesson's number.
    uint32_t Add(const Features& features, uint32_t now);
    void Asked(uint32_t number, uint32_t now);
    void Learn(uint32_t now);
    // What the network says, drawn to how often anything was asked for in each bin where few lessons have reached it.
    Outputs Foresee(const Features& features);
    uint32_t lessons() const { return count_; }

   private:
    // Counts the bins that lessons have passed by now.
    void Pass(uint32_t now);

    const PromptLearnerOptions options_;
    Net net_;
    NetBuffers buffers_;
    Adam adam_;
    Random random_{1};
    std::vector<Lesson> lessons_;  // a ring, by number
    uint32_t count_ = 0;           // so far
    struct Past {
      uint32_t next = 0;  // the first lesson that has not passed the bin
      uint32_t reached = 0, asked = 0;
    };
    std::array<Past, Survival::kBins> past_{};
    std::vector<float> gradient_;
    std::vector<float> rows_;
    std::vector<float> slopes_;
  };
  struct Fork {
    uint32_t depth = 0;
    Survival::Curve curve{};
  };

  Turn* TurnOf(uint32_t prompt);
  // Of a turn. Marks the block at which the prompt parts from an older one.
  void Describe(const Access& deepest, uint32_t known, Features& features);
  static void DescribeFork(const Block& fork, uint32_t depth, uint32_t now, Features& features);
  void Resolve(Block& block, uint32_t now);
  // The lesson is when the block is asked for again.
  void Teach(Block& block, bool as_fork, const Features& features, uint32_t now);

  const PromptLearnerOptions options_;
  Pupil of_turns_, of_forks_;
  std::vector<Block> blocks_;  // by object
  std::vector<Turn> turns_;    // a ring, by prompt
  // Of the last prompt: of its deepest block where that is not full, of its forks, the deepest first, and of all
  // others.
  Survival::Curve partial_{};
  std::array<Fork, kMostForks> forks_;
  size_t num_forks_ = 0;
  Survival::Curve curve_{};
  uint32_t partial_depth_ = kNone;
  uint32_t block_tokens_ = 1;  // of a full block: the most that any prompt had by block
  // Deepest blocks that were asked for again: of those that are not full, and whole ones.
  uint64_t partial_again_ = 0;
  uint64_t whole_again_ = 0;
};

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_PROMPT_LEARNER_H_
