// A Policy made of stages.
#ifndef PITH_POLICY_COMPOSED_H_
#define PITH_POLICY_COMPOSED_H_

#include <memory>
#include <span>
#include <vector>

#include "policy/stage.h"

namespace pith {

struct PolicyParts {
  std::unique_ptr<Scorer> scorer;
  std::unique_ptr<Aggregator> aggregator;
  std::vector<std::unique_ptr<Modifier>> modifiers;  // in the order of application
  std::unique_ptr<Allocator> allocator;
  std::unique_ptr<Action> action;
};

class ComposedPolicy final : public Policy {
 public:
  explicit ComposedPolicy(PolicyParts parts);

  uint32_t needs() const override { return needs_; }
  int window() const override;
  std::vector<ColumnSpec> columns() const override { return parts_.scorer->columns(); }
  bool layer_local() const override { return parts_.allocator->layer_local(); }
  // What is merged twice is another entry than what is merged once.
  bool cascades() const override {
    return parts_.allocator->cascades() && merge() == nullptr && residue() == nullptr && demote() == nullptr;
  }
  bool ragged() const override { return parts_.allocator->ragged(); }
  bool keeps_everything() const override { return parts_.allocator->keeps_everything(); }
  bool decodes() const override { return !needs_whole_prompt(); }
  const RepeatOptions* repeat() const override;
  const MergeOptions* merge() const override { return parts_.action->merge(); }
  const ResidueOptions* residue() const override { return parts_.action->residue(); }
  const DemoteOptions* demote() const override { return parts_.action->demote(); }
  const PruneOptions* prune() const override { return parts_.action->prune(); }
  const LessMaps* less() const override { return parts_.action->less(); }
  int StandIns(const Budget& budget) const override;
  Status CheckLayers(int num_layers) const override;
  void Observe(const Observation& seen, std::span<float* const> columns) const override {
    parts_.scorer->Observe(seen, columns);
  }
  void Score(const LayerInputs& inputs, LayerScores& scores) const override;
  void Refine(const Budget& budget, LayerScores& scores) const override;
  Result<KeptHeads> Select(const LayerInputs& inputs, const LayerScores& scores, const Budget& budget) const override;
  Result<std::vector<KeptHeads>> SelectAll(std::span<const LayerScores> scores, const Budget& budget) const override;
  std::vector<LayerScores> Rank(const LayerInputs* inputs, std::span<const LayerScores> scores,
                                const Budget& budget) const override;

 private:
  struct Ranked {
    std::vector<LayerScores> layers;
    Allocation budgets;
    Status status;  // of the stages
  };
  // What is left to choose, with the number of entries that are made.
  Budget WithoutStandIns(const Budget& budget) const;
  // Fills in what each head keeps of the layers that are refined.
  Status Divide(const Budget& budget, Ranked& ranked) const;
  // Lets stages change the order within the heads of one layer. inputs: may be null.
  Status Rerank(const LayerInputs* inputs, std::span<const HeadBudget> budgets, LayerScores& layer) const;
  Ranked RankAll(const LayerInputs* inputs, std::span<const LayerScores> scores, const Budget& budget) const;
  std::vector<const Stage*> stages() const;

  PolicyParts parts_;
  uint32_t needs_ = 0;
};

}  // namespace pith

#endif  // PITH_POLICY_COMPOSED_H_
