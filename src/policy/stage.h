// The stages that a policy is composed of, and what each may see.
//
//   attention, keys, values
//     | Scorer::Score (with an Aggregator where it reads the attention window)
//     | Modifier::Adjust                    budget unknown, inputs at hand
//   LayerScores                             kept by the engine until every layer is there, if needed
//     | Stage::Refine                       budget known
//     | Allocator::Allocate                 entries per layer and head
//     | Stage::Rerank                       head's own budget known
//   the best of each head stay              act=drop
//
// A stage is one file in score/, aggregate/, modify/, allocate/, act/ or prefill/ and one line in registry.inc. Its
// formulas may stand beside it in a file of their own, those of several folders in terms/. Stages never know one
// another. All methods are const and safe to call concurrently; loops over heads that take long are ParallelFor
// (base/parallel.h), which the engine's threads share. Rerank() is called side by side.
#ifndef PITH_POLICY_STAGE_H_
#define PITH_POLICY_STAGE_H_

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "policy/params.h"
#include "policy/policy.h"

namespace pith {

// How many entries of one head may stay, and how many of its best an allocator guaranteed it.
struct HeadBudget {
  int keep = 0;
  int floor = 0;
};

// One head's scores on their way to the selection. n entries; protected ones are +infinity.
struct HeadRank {
  int head = 0;
  HeadBudget budget;
  const LayerScores* layer = nullptr;  // pinned, notes, ...
  const HeadInputs* inputs = nullptr;  // null where only scores are left
  int key_dim = 0;
  std::span<float> scores;
  std::vector<float>* ties = nullptr;  // may be filled ([n]) where empty
  Status status = {};                  // of a stage that failed

  std::span<const uint8_t> pinned() const {
    if (layer->pinned.empty()) return {};
    return layer->pinned[static_cast<size_t>(head)];
  }
};

class Stage {
 public:
  virtual ~Stage() = default;

  virtual uint32_t needs() const { return 0; }
  virtual int window() const { return 0; }
  // One sentence where the stage cannot serve a model with so many global layers.
  virtual Status CheckLayers(int num_layers) const { return (void)num_layers, Status(); }
  // Once, before use: the window of the recipe's scorer, for stages without one of their own.
  virtual void AdoptWindow(int window) { (void)window; }

  // Changes the scores of a layer once the budget is known, before allocation.
  virtual void Refine(const Budget& budget, LayerScores& scores) const { (void)budget, (void)scores; }
  // Changes the order within one head once its own budget is known.
  virtual void Rerank(HeadRank& rank) const { (void)rank; }
};

// Attention of the window over the first `columns` entries of one kv head.
class WindowProbs {
 public:
  // The last min(rows, present) queries; columns = n - the window's own entries unless all.
  WindowProbs(const LayerInputs& layer, const HeadInputs& head, int rows, bool all_columns = false);

  int group() const { return group_; }
  int rows() const { return rows_; }
  int columns() const { return columns_; }
  const float* row(int g, int t) const {
    return data_ +
           (static_cast<size_t>(g) * static_cast<size_t>(present_) + static_cast<size_t>(present_ - rows_ + t)) *
               static_cast<size_t>(num_entries_);
  }

  size_t row_stride() const { return static_cast<size_t>(num_entries_); }

  // Over other numbers of the same shape, [group, rows, columns] packed.
  WindowProbs(const float* data, int group, int rows, int columns)
      : data_(data), group_(group), present_(rows), rows_(rows), columns_(columns), num_entries_(columns) {}

 private:
  const float* data_ = nullptr;
  int group_ = 0;
  int present_ = 0;
  int rows_ = 0;
  int columns_ = 0;
  int num_entries_ = 0;
};

// Mean over the rows of query head g, and the sum of squared differences from it, of each column.
void ColumnVariances(const WindowProbs& probs, int g, std::vector<double>& mean, std::vector<double>& squares);

struct Pooling {
  int width = 1;
  bool max = false;  // else mean, zero padding counted in the divisor
};

class Aggregator : public Stage {
 public:
  // One number per column from [group, rows] each. out: [columns].
  virtual void Aggregate(const WindowProbs& probs, const Pooling& pooling, std::span<float> out) const = 0;
  // What is called, for those that can fail (registered ones).
  virtual Status TryAggregate(const WindowProbs& probs, const Pooling& pooling, std::span<float> out) const {
    Aggregate(probs, pooling, out);
    return {};
  }
};

class Scorer : public Stage {
 public:
  virtual std::vector<ColumnSpec> columns() const { return {}; }
  // Of some consecutive entries of a head, all or a stretch: what one entry gets must not hang on the others.
  virtual void Observe(const Observation& seen, std::span<float* const> columns) const { (void)seen, (void)columns; }
  // Not null, with kNeedRepeat: how the prompt is read once more.
  virtual const RepeatOptions* repeat() const { return nullptr; }
  // True: Score() reads the attention window through an aggregator (mean unless the recipe says).
  virtual bool aggregates() const { return false; }
  // scores.heads has the heads' shapes already.
  virtual void Score(const LayerInputs& inputs, const Aggregator& aggregator, LayerScores& scores) const = 0;
};

class Modifier : public Stage {
 public:
  // Changes fresh scores while the inputs are at hand.
  virtual void Adjust(const LayerInputs& inputs, LayerScores& scores) const { (void)inputs, (void)scores; }
  // True: Rerank() reads HeadRank::inputs, so the allocator must be layer-local.
  virtual bool reranks_inputs() const { return false; }
};

// [layers][heads]
using Allocation = std::vector<std::vector<HeadBudget>>;

class Allocator : public Stage {
 public:
  virtual bool layer_local() const { return true; }
  // True: a layer's share only falls as further layers join, the total being the same.
  virtual bool cascades() const { return false; }
  // True: heads may end with different numbers of entries.
  virtual bool ragged() const { return true; }
  virtual bool keeps_everything() const { return false; }
  // Statistics of one layer that Allocate() wants (LayerScores::NotesOf).
  virtual void Prepare(const LayerInputs& inputs, LayerScores& scores) const { (void)inputs, (void)scores; }
  // One layer for layer-local allocators and for Select(); else all of them. The caller clips to n,
  // adds room for pinned entries and enforces the total.
  virtual void Allocate(std::span<const LayerScores> layers, const Budget& budget, Allocation& out) const = 0;
  // What is called, for those that can fail (registered ones).
  virtual Status TryAllocate(std::span<const LayerScores> layers, const Budget& budget, Allocation& out) const {
    Allocate(layers, budget, out);
    return {};
  }
};

// What happens to entries that do not stay.
class Action : public Stage {
 public:
  // Null: they are gone. Else they are merged into kept ones first (Policy::merge).
  virtual const MergeOptions* merge() const { return nullptr; }
  // Not null: some new entries, or kept ones, stand in for all of them (Policy::residue).
  virtual const ResidueOptions* residue() const { return nullptr; }
  // Not null: none goes; they are stored in fewer bits (Policy::demote).
  virtual const DemoteOptions* demote() const { return nullptr; }
  // Not null: keys of what stays lose channels (Policy::prune).
  virtual const PruneOptions* prune() const { return nullptr; }
  // Not null: they join a state beside their head (Policy::less).
  virtual const LessMaps* less() const { return nullptr; }
};

// Which stages there are. `make` gets declared parameters with checked values.
template <typename T>
struct StageInfo {
  std::string_view summary;
  std::vector<ParamSpec> params;
  std::unique_ptr<T> (*make)(const Params&) = nullptr;
  int num_sinks = 0;  // scorers and actions: first entries that the engine pins unless the recipe says
  Status (*check)(const Params&) = nullptr;  // what ranges cannot say; one sentence. Called before make
};

}  // namespace pith

#endif  // PITH_POLICY_STAGE_H_
