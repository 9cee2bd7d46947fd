// What goes while text is read or written, and when (eviction_schedule.h): in a layer right after its attention, in
// several while the block is in the next ones, or in all when it has run.
#ifndef PITH_ENGINE_EVICTOR_H_
#define PITH_ENGINE_EVICTOR_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/team.h"
#include "engine/engine_core.h"
#include "engine/row_group.h"
#include "engine/sequence.h"
#include "engine/shrinker.h"
#include "pith/types.h"
#include "policy/cascade.h"

namespace pith {

class Evictor {
 public:
  Evictor(EngineCore& core, Shrinker& shrinker) : core_(core), shrinker_(shrinker) {}

  // Before a block, whose index-th group may have to be evicted from layer by layer by a recipe that compares layers.
  void BeginGroup(RowGroup& group, size_t index);
  // The group has rows in this global layer, which its recipe judges by itself: more than the budget between evictions
  // allows.
  bool HoldsTooMuch(const RowGroup& group, int layer) const;
  // All threads, after the attention of a global layer: of groups that hold too much there ...
  void EvictInLayer(RowGroup& group, int layer, const Team& team);
  // ... and of those that cascade. The group fails with its error.
  void CascadeInLayer(RowGroup& group, size_t index, int layer, const Team& team);
  // When the block has run: window layers of models that share caches, recipes that need every layer's scores.
  void FinishGroup(RowGroup& group);

  // Between blocks, down to what the sequence's share keeps, whatever its schedule says. Nothing where it drops
  // nothing. kOutOfBudget: it cannot be judged, or its pages not be converted.
  Status EvictToShare(Sequence& sequence);

 private:
  // All threads, right after LayerOps::Score() into scores_. True: it failed, and so has the group.
  bool FailByFault(RowGroup& group, const Team& team);
  // All threads, after a loop in which thread 0 took a selection. True: it was none, and the group has failed.
  static bool FailBySelection(const Status& selected, RowGroup& group, const Team& team);
  void Score(const RowGroup& group, int layer, const Team& team);
  Status EvictAcrossLayers(const RowGroup& group);
  // By the running recipe, to what its share keeps; a budget says otherwise.
  Status EvictAll(Sequence& sequence, const std::optional<Budget>& budget);
  // Of all global layers and heads, before an eviction.
  int64_t MostEntries(const RowGroup& group) const;

  EngineCore& core_;
  Shrinker& shrinker_;
  LayerScores scores_;  // of the layer at hand
  Selection<KeptHeads> in_layer_;
  Selection<std::vector<KeptHeads>> in_first_layers_;
  std::vector<Cascade> cascades_;  // of each group of rows
};

}  // namespace pith

#endif  // PITH_ENGINE_EVICTOR_H_
