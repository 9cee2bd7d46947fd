#include "evict/policies/learned_prompts.h"

#include <vector>

#include "evict/object_heap.h"

namespace pith::evict {
namespace {

struct Score {
  float rate = 0;  // requests per prompt
  uint32_t last_use = 0;
  bool operator<(const Score& other) const {
    return rate != other.rate ? rate < other.rate : last_use < other.last_use;
  }
};

class LearnedPrompts final : public Replayed<LearnedPrompts> {
 public:
  LearnedPrompts(const Setup& setup, const PromptLearnerOptions& options)
      : Replayed(setup.capacity),
        learner_(setup.num_objects, options),
        blocks_(setup.num_objects),
        leaves_(setup.num_objects),
        due_(setup.num_objects) {}

  bool Contains(uint32_t object) const override { return blocks_[object].stored; }
  uint64_t used_bytes() const override { return used_; }
  void OnHit(const Access& access) override {
    Begin(access);
    Touch(access);
  }
  void OnMiss(const Access& access) override {
    Begin(access);
    if (access.size > capacity_) return;
    Block& block = blocks_[access.object];
    block.stored = true;
    block.size = access.size;
    block.parent = access.depth > 0 ? ParentOf(access) : kNoObject;
    if (block.parent != kNoObject) {
      if (blocks_[block.parent].children++ == 0 && leaves_.Contains(block.parent)) Unlist(block.parent);
    }
    used_ += access.size;
    ++stored_;
    Touch(access);
    while (used_ > capacity_) {
      turnover_.CountEviction(stored_, now_);
      const uint32_t victim = Victim(access.object);
      Erase(victim);
      Evicted(victim);
    }
  }
  void Erase(uint32_t object) override {
    Block& block = blocks_[object];
    block.stored = false;
    used_ -= block.size;
    --stored_;
    if (leaves_.Contains(object)) Unlist(object);
    if (block.parent == kNoObject) return;
    const uint32_t parent = block.parent;
    block.parent = kNoObject;
    if (--blocks_[parent].children == 0 && blocks_[parent].stored) List(parent);
  }
  void Forget(uint32_t object) override { learner_.Forget(object); }

 private:
  struct Block {
    uint64_t size = 0;
    uint32_t parent = kNoObject;  // that counts it among its children; none: it is not stored, or stands first
    uint32_t children = 0;        // stored ones
    uint32_t last_use = 0;        // access
    uint32_t moment = 0;          // of it
    bool stored = false;
    Survival::Curve curve;  // of the last prompt that it was in
  };

  static bool IsDeepest(const Access& access) { return access.depth + 1 == access.chain; }
  static uint32_t ParentOf(const Access& access) { return access.blocks[access.chain - access.depth]; }

  void Begin(const Access& access) {
    now_ = access.moment;
    if (IsDeepest(access)) learner_.Watch(access);
  }

  void Touch(const Access& access) {
    Block& block = blocks_[access.object];
    block.curve = learner_.CurveAt(access.depth);
    block.last_use = ++accesses_;
    block.moment = now_;
    if (block.children == 0) List(access.object);
  }

  void List(uint32_t object) {
    const Block& block = blocks_[object];
    const uint32_t age = std::max(1u, now_ - block.moment);
    leaves_.Set(object, {Survival::HitRate(block.curve, age, turnover_.Horizon(now_)), block.last_use});
    due_.Set(object, uint64_t{block.moment} + Turnover::NextLook(age));
  }

  void Unlist(uint32_t object) {
    leaves_.Remove(object);
    due_.Remove(object);
  }

  // Of `fresh` and what is stored. Where a trace gives blocks now one parent, now another, each may hang on another.
  uint32_t Victim(uint32_t fresh) {
    while (!due_.empty() && due_.top_key() <= now_) List(due_.top());
    return leaves_.empty() ? fresh : leaves_.top();
  }

  PromptLearner learner_;
  std::vector<Block> blocks_;  // by object
  ObjectHeap<Score> leaves_;   // stored blocks without stored children
  ObjectHeap<uint64_t> due_;   // of them: the moment at which to look again
  Turnover turnover_;
  uint64_t used_ = 0;
  uint64_t stored_ = 0;
  uint32_t accesses_ = 0;
  uint32_t now_ = 0;  // the prompt's number
};

}  // namespace

std::unique_ptr<Evictor> MakeLearnedPrompts(const Setup& setup, const PromptLearnerOptions& options) {
  return std::make_unique<LearnedPrompts>(setup, options);
}

}  // namespace pith::evict
