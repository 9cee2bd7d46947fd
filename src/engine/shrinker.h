// A sequence is scored by a recipe, and what it selects stays: there, or in forks that share its entries.
#ifndef PITH_ENGINE_SHRINKER_H_
#define PITH_ENGINE_SHRINKER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/team.h"
#include "engine/engine_core.h"
#include "engine/layer_ops.h"
#include "engine/merger.h"
#include "engine/sequence.h"
#include "pith/types.h"
#include "policy/policy.h"

namespace pith {

// Of a piece, so that it takes about as long as a few steps of a small model.
inline constexpr int64_t kEntriesAtOnce = 1 << 15;

// One sequence to shrink by the scores of another (or its own).
struct Shrink {
  Sequence* sequence = nullptr;
  std::optional<Budget> budget = {};      // none: the running one
  std::optional<PageFormat> format = {};  // that what stays is converted to
  std::optional<PageFormat> lower = {};   // that what does not stay is converted to (act=demote)
};

// What a policy has selected, or why it has not: thread 0's word to the others.
template <typename Kept>
struct Selection {
  Kept kept;
  Status status;

  // Thread 0, before a sync.
  void Take(Result<Kept> selected) {
    status = selected ? Status() : Status(tl::unexpected(selected.error()));
    kept = selected ? std::move(*selected) : Kept();
  }
  bool ok() const { return status.has_value(); }
};

// A sequence that is shrunk by its own scores in pieces, between steps of others: layers are judged, then what is kept
// of each head follows, layer by layer. Policies that do not compare layers do both layer by layer.
struct ShrinkPieces {
  EntryGuard guard;
  Budget budget;
  std::optional<PageFormat> format;  // as Shrink's
  std::vector<LayerScores> scores;   // [global layers] of those that are judged
  std::vector<KeptHeads> kept;  // [global layers] what stays, of those that are selected from; indices of the cache
  std::vector<int> stand_ins;   // [global layers] new entries of each head
  int num_judged = 0;           // global layers
  int num_kept = 0;             // global layers that are done
  size_t num_kept_heads = 0;    // of the next one

  size_t bytes() const;  // that scores and indices take
};

// Of a sequence's `entries` in so many heads, what the running recipe keeps.
Budget BlockBudget(const Sequence& sequence, int64_t entries, int64_t heads);
// The same at the end of a prompt: in no more bytes than so many entries of each head take, of which those that fill no
// page of few bits stay in the format in which they arrived.
Budget SettledBudget(const EngineCore& core, const Sequence& sequence, int64_t entries, int64_t heads);

// Of one head: what does not stay joins its state, where the recipe has states.
Status KeepInHead(const EngineCore& core, const Policy& policy, int layer, size_t h, HeadCache& head,
                  std::span<const int32_t> kept);

class Shrinker {
 public:
  explicit Shrinker(EngineCore& core) : core_(core) {}

  // Between blocks: scores every global layer of `source` once and keeps what the recipe selects of it in each target;
  // what a target has read since it was forked stays. The source, if it is a target, must be the last one.
  // kOutOfBudget, kInvalidArgument (a stage of a program failed): layers before have changed.
  Status Run(Sequence& source, const ActiveRecipe& active, const EntryGuard& guard, std::span<const Shrink> targets);

  // The same of a sequence's own scores, by a piece: some layers, or as many heads as there are threads where entries
  // are fitted, which takes longest. True: that was the last one. After an error the others are not to be had.
  Result<bool> RunPiece(Sequence& source, const ActiveRecipe& active, ShrinkPieces& pieces);

  // All threads: `kept` of the layer's entries stay, and those of `target` beyond the ones of `source`. kept is
  // thread 0's, written before a sync. The status is thread 0's too.
  Status KeepHeads(const Policy& policy, const Sequence& source, Sequence& target, int layer, KeptHeads& kept,
                   const Team& team);
  // Thread 0: from the order of time to that of the cache, where they differ.
  void ToIndices(const Sequence& source, int layer, KeptHeads& kept) const;

 private:
  // What is the same for all targets.
  struct Task {
    Sequence& source;
    const Policy& policy;
    const EntryGuard& guard;
  };
  // All threads; the status is thread 0's.
  Status RunOnTeam(const Task& task, const ActiveRecipe& active, std::span<const Shrink> targets, const Team& team);
  Status RunPieceOnTeam(const Task& task, const ActiveRecipe& active, const Shrink& target, ShrinkPieces& pieces,
                        const Team& team);
  // Into in_layer_ and in_all_, with num_stand_ins_. False, for all threads, where the policy has selected nothing.
  bool SelectInLayer(const Task& task, std::span<const LayerScores> scores, const Budget& budget, int layer,
                     const Team& team);
  bool SelectInAll(const Task& task, std::span<const LayerScores> scores, const Budget& budget, const Team& team);
  // Of the heads [first, end) of a layer.
  using HeadRange = std::pair<size_t, size_t>;
  Status FitAndKeep(const Task& task, const Shrink& target, int num_stand_ins, int layer, HeadRange range,
                    KeptHeads& kept, const Team& team);
  Status KeepRange(const Policy& policy, const Sequence& source, Sequence& target, int layer, HeadRange range,
                   KeptHeads& kept, const Team& team);
  Status LowerHeads(const DemoteOptions& demote, std::span<const HeadCache> scored, int layer,
                    std::span<HeadCache> heads, const KeptHeads& kept, const Team& team);
  // Of the slice of the heads that was judged, as entries of whole heads, with those beside it.
  void WidenToHeads(const Task& task, int layer, KeptHeads& kept) const;
  // Before KeepHeads(): entries that stand in for what goes take the places of some of it, which are then kept, too.
  Status MakeStandIns(const Task& task, const Shrink& target, int count, int layer, HeadRange range, KeptHeads& kept,
                      const Team& team);
  int StandInsBeside(const Task& task, int first_layer, std::span<const KeptHeads> layers, const Budget& budget) const;
  void ForgetValueNorms(const Sequence& sequence, std::span<HeadCache> heads) const;

  EngineCore& core_;
  std::vector<LayerScores> scores_;  // of all global layers
  Selection<KeptHeads> in_layer_;
  Selection<std::vector<KeptHeads>> in_all_;
  int num_stand_ins_ = 0;  // of each head for which new entries are made
  Merger merger_;
};

}  // namespace pith

#endif  // PITH_ENGINE_SHRINKER_H_
