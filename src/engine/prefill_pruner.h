// Attention of a block of a prompt over those earlier blocks of keys that matter
// (CritiPrefill, policy/prefill/criti.h). What is not chosen is never read.
//
// The rows of a call are cut into segments. For each segment and kv head:
//
//   pages   | 0 | 1 | 2 | 3 | ... |  own  |      blocks that lie wholly before the segment compete,
//   read    |   | x |   | x | ... | x x x |      everything else is read and masked by position
//
// Bounds of the keys are computed anew for every call, from the pages as they
// lie: nothing has to follow when entries move, and no byte of the KV budget is
// needed. It costs one pass over the keys per call, about a hundredth of the
// dense attention of 512 queries.
#ifndef PITH_ENGINE_PREFILL_PRUNER_H_
#define PITH_ENGINE_PREFILL_PRUNER_H_

#include <cstdint>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "base/team.h"
#include "kernels/attention.h"
#include "policy/prefill/criti.h"

namespace pith {

// What a call may skip.
struct PrunedCall {
  int num_sparse_rows = 0;  // at the front; the others attend to everything
  int layer = 0;            // among the layers that are pruned at all
  bool complete = true;     // every head holds all entries of its sequence, so blocks are the same in all layers
};

class PrefillPruner {
 public:
  explicit PrefillPruner(const CritiOptions& options) : options_(options) {}

  // RunAttention(task) with work skipped. All threads, with the same arguments; the task must be causal
  // and its heads in time order within each segment. Equal to RunAttention bit by bit where nothing is
  // skipped.
  void Run(const kernels::AttentionTask& task, const PrunedCall& call, const Team& team);

  // Of the last Run: entries offered to each query and kv head, as a share of those there. For tests.
  double read_share() const {
    return pairs_all_ == 0 ? 1 : static_cast<double>(pairs_read_) / static_cast<double>(pairs_all_);
  }

 private:
  // A block of keys that may be skipped.
  struct Block {
    const kernels::Segment* segment = nullptr;
    int first_page = 0;         // of the segment
    int32_t last_position = 0;
  };
  struct Head {
    std::vector<Block> blocks;  // ascending last position
    float* greatest = nullptr;  // tables of the blocks' bounds
    float* least = nullptr;
  };
  // One segment of queries over one kv head.
  struct Choice {
    std::vector<double> criticality;  // [allowed blocks]; that of the layer before until fused
    std::vector<double> fresh;
    std::vector<float> scores;        // [G, allowed]
    std::vector<int32_t> chosen;
    std::vector<uint8_t> is_chosen;   // [allowed]
    std::vector<const std::byte*> pages;
    std::vector<kernels::Segment> segments;
    int allowed = 0;
    bool pruned = false;
    int layer = -1;                   // that criticality was computed in
    int32_t position = -1;            // of the first query then
  };
  // Rows that run as one attention task.
  struct Stretch {
    int first_row = 0;
    int num_rows = 0;
    bool pruned = false;
    std::vector<kernels::HeadEntries> heads;
  };

  void Plan(const kernels::AttentionTask& task, const PrunedCall& call, int nth);
  void ListBlocks(const kernels::AttentionTask& task, int32_t before);
  void AddStretch(int first_row, int num_rows, bool pruned);
  int SegmentRows(const kernels::AttentionTask& task, int s) const;
  bool PlanSegment(const kernels::AttentionTask& task, int s);
  void Summarise(const kernels::AttentionTask& task, const Team& team);
  void Choose(const kernels::AttentionTask& task, const PrunedCall& call, int s, int h);
  void ListPages(const kernels::AttentionTask& task, int s, int h);
  Choice& choice(int s, int h) { return choices_[static_cast<size_t>(s) * heads_.size() + static_cast<size_t>(h)]; }

  const CritiOptions options_;
  std::vector<Head> heads_;
  std::vector<Choice> choices_;  // [segments of the call][kv heads], kept for the next layer
  std::vector<Stretch> stretches_;
  size_t num_stretches_ = 0;
  int num_segments_ = 0;  // that may be pruned
  int num_pruned_ = 0;
  Scratch bounds_, centres_, pages_, attention_;
  float* centre_rows_ = nullptr;  // [segments][H, D]
  float* page_rows_ = nullptr;    // [threads][D, P] and two rows of bounds
  std::byte* attention_scratch_ = nullptr;
  int64_t pairs_read_ = 0, pairs_all_ = 0;
};

}  // namespace pith

#endif  // PITH_ENGINE_PREFILL_PRUNER_H_
