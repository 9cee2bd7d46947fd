// What happens to one layer of one sequence while a block runs: append, attend,
// observe, score. Runs inside the model's graph, on ggml's threads.
#ifndef PITH_ENGINE_LAYER_OPS_H_
#define PITH_ENGINE_LAYER_OPS_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/aligned.h"
#include "base/parallel.h"
#include "base/team.h"
#include "cache/kv_cache.h"
#include "engine/latent_reader.h"
#include "engine/repeat.h"
#include "engine/row_group.h"
#include "engine/sequence.h"
#include "engine/value_projections.h"
#include "host/context.h"
#include "kernels/attention.h"
#include "policy/policy.h"

namespace pith {

// Which entries no recipe may drop: the first ones, pinned ranges, and whatever lies outside the part [from, to), of
// which a recipe sees nothing.
struct EntryGuard {
  int num_sinks = 0;
  int32_t from = 0, to = INT32_MAX;

  bool Guards(const Sequence& sequence, int32_t position) const {
    return position < num_sinks || GuardsBesideSinks(sequence, position);
  }
  // Whoever wants sinks or not.
  bool GuardsBesideSinks(const Sequence& sequence, int32_t position) const {
    return position < from || position >= to || sequence.IsPinned(position);
  }
  // The entries of a head that a recipe sees, [first, last): those of the part.
  std::pair<int, int> SliceOf(const HeadCache& head) const;
  bool operator==(const EntryGuard&) const = default;
};

// Where the attention of a second reading goes.
struct RepeatObserver {
  const Policy& policy;
  const RepeatPass& pass;
  RepeatColumns& columns;
};

class LayerOps {
 public:
  LayerOps(const HostModel& model, KvCache& cache);

  // Thread 0, between syncs, for each group of a block that is well (a prefix of them may be missing): makes room for
  // the group's rows in the layer's heads and describes the attention over them. kOutOfBudget: nothing has changed.
  // index: of the group in its block. global_layer: -1 where the layer is none. num_parts: into how many stretches
  // attention is cut, at least one for each thread. observed: Need bits of what Observe() will want, 0: it will not be
  // called. pass: of a second reading, whose rows may see a part of the entries only.
  void BeginLayer();
  Status Prepare(const AttentionCall& call, const RowGroup& group, size_t index, std::span<const int32_t> positions,
                 int global_layer, uint32_t observed, const RepeatPass* pass, int num_parts);
  // Of a policy that is asked for what a second reading shows.
  static uint32_t RepeatNeeds(const Policy& policy);
  // Thread 0, after the last group of a layer.
  void EndPrepare(int num_parts);
  // All threads, after a sync: writes the group's keys and values.
  void Append(const AttentionCall& call, const RowGroup& group, size_t index, const Team& team);
  // All threads, likewise: features of the group's queries, where heads have states of entries that are gone.
  void MapQueries(const RowGroup& group, size_t index, int global_layer, const Team& team);
  // Some prepared group has latents, which are read before Attend(): all threads, after a sync; syncs.
  bool has_latents() const { return has_latents_; }
  void ReadLatents(std::span<const RowGroup> groups, const Team& team);
  // All threads, after a sync: the attention of all prepared groups.
  void Attend(std::span<const RowGroup> groups, const Team& team);
  // Thread 0's time within Attend() that only Observe() has a use for.
  double observe_seconds() const;
  // All threads: gives what this block's queries paid to the recipes that observe every query, and syncs.
  void Observe(int layer, int global_layer, std::span<const RowGroup> groups, const Team& team);
  // All threads: the same for the rows of a second reading.
  void ObserveRepeat(int layer, int global_layer, const RowGroup& group, size_t index, const RepeatObserver& observer,
                     const Team& team);
  // Thread 0: their queries, as far as they are kept.
  void KeepReferences(const AttentionCall& call, const RowGroup& group, size_t index, int global_layer,
                      const RepeatPass& pass, ReferenceQueries& references);
  // Attention parameters of a layer, as last seen.
  struct LayerParams {
    float scale = 1, soft_cap = 0;
    const float* sinks = nullptr;
    const float* alibi_slopes = nullptr;
  };
  const LayerParams& params(int layer) const { return params_[static_cast<size_t>(layer)]; }
  // All threads, their heads: full pages go to the low format. False if one found no room.
  bool Demote(int cache_id, int layer, const Team& team);
  // All threads: old pages of a layer whose keys lose channels lose them. False: the budget does not hold some copies.
  bool Prune(int cache_id, int layer, const Team& team);
  // Thread 0: remembers the last queries.
  void KeepQueries(const AttentionCall& call, const RowGroup& group, size_t index, int global_layer);

  // All threads, after Prepare(): the group's queries as they were before RoPE into the sequence's moments.
  void AddMoments(const AttentionCall& call, const RowGroup& group, size_t index, int global_layer, const Team& team);

  // All threads: scores a layer by a recipe. inputs() stays valid until the next call; scores are there for all.
  // guard: entries that no recipe may drop are marked.
  void Score(const Sequence& sequence, int layer, int global_layer, int num_global_layers, const ActiveRecipe& active,
             const EntryGuard& guard, const Team& team, LayerScores& scores);
  const LayerInputs& inputs() const { return inputs_; }
  // The last one did, and LayerScores::fault says why. For all threads, until the next Score().
  bool score_failed() const { return score_failed_; }
  // Of the team that calls all this, between its calls.
  SharedLoops& loops() { return loops_; }

  // All threads: attention of the last `window` queries of one sequence over the entries of another.
  // output [window, H, Dv].
  void WindowOutputs(const Sequence& queries_of, const Sequence& entries_of, int layer, int global_layer, int window,
                     float* output, const Team& team);

 private:
  // Inputs of a policy.
  struct HeadBuffers {
    std::vector<int32_t> positions;
    std::vector<uint8_t> pinned;
    std::vector<float> keys, values, value_norms, columns, query_means, query_covariances;
    std::vector<float*> column_pointers;
    std::vector<float> window_queries, window_slice;
    std::vector<int32_t> new_entries;  // without a value norm yet
    std::vector<float> new_values, new_norms;
    std::vector<float> chunk;  // probabilities over the chunk of a second reading
    std::vector<int32_t> order;  // of time, where entries stand in another one
  };

  // One group's part of the layer at hand.
  struct GroupWork {
    kernels::AttentionTask task;
    std::vector<kernels::Segment> segments;
    std::vector<kernels::HeadEntries> heads;
    std::span<const int32_t> positions;  // of the group's rows
    Scratch observed_buffer;
    std::vector<kernels::EntryAttention> observed;  // of task
    double observe_seconds = 0;
    int first_of_chunk = -1;  // of a second reading's chunk, among the task's entries, where these are what is observed
    PrunedCall pruned;
    LatentReader latents;
    Scratch feature_buffer;  // of the queries: task.features
  };
  // The rows of a pass see its chunk, the prefix, and themselves.
  static void LimitToChunk(std::span<const HeadCache> heads, const RepeatPass& pass, GroupWork& work);
  void ObserveGatheredChunk(const GroupWork& work, int head_index, int rows, int layer, int global_layer,
                            const RepeatObserver& observer);

  static void DescribeHeads(std::span<HeadCache> heads, std::vector<kernels::Segment>& segments,
                            std::vector<kernels::HeadEntries>& entries);
  // The states of a sequence's heads, and room for the features of the task's queries where there is any of them.
  static void AddStates(const Sequence& sequence, std::span<const HeadCache> heads,
                        std::vector<kernels::HeadEntries>& entries, Scratch& features, kernels::AttentionTask& task);
  static void MapQueries(const Sequence& sequence, int global_layer, const kernels::AttentionTask& task, int first_item,
                         float* features, const Team& team);
  // All threads: probabilities_ of `rows` rows of a task from `from` on. heads: those of the task.
  void FindProbabilities(const GroupWork& work, std::span<const HeadCache> heads, int from, int rows, const Team& team);
  static void PlanObserved(GroupWork& work, uint32_t needs);
  // What attention did not gather is computed row by row.
  void ObserveRows(int layer, int global_layer, const RowGroup& group, GroupWork& work, const Team& team);
  void ObserveGathered(int layer, int global_layer, const RowGroup& group, GroupWork& work, const Team& team);
  // Of the stretch of a head that a thread is at.
  struct ObserveBuffers {
    std::vector<int32_t> positions;
    std::vector<float> columns;
    std::vector<float*> column_pointers;
  };
  // Where the statistics of a head are saved before they change; undo: may be null.
  struct SavedHead {
    StatisticsUndo* undo = nullptr;
    int global_layer = 0;
    size_t head = 0;
  };
  // Give one observation of a head to all recipes that want it, out of what attention gathered (for the part-th of
  // num_parts stretches of the head's pages) ...
  static void ObservePages(HeadCache& head, const kernels::EntryAttention& received, size_t part, size_t num_parts,
                           Observation& seen, std::span<const ActiveRecipe> recipes, const SavedHead& saved,
                           ObserveBuffers& buffers);
  // ... or out of probabilities.
  static void ObserveHead(HeadCache& head, Observation& seen, std::span<const ActiveRecipe> recipes,
                          const SavedHead& saved, ObserveBuffers& buffers);
  void ObserveChunk(const GroupWork& work, int head_index, const HeadCache& head, int from, int rows, int layer,
                    int global_layer, const RepeatObserver& observer);
  void ObserveScattered(const GroupWork& work, int head_index, int from, int rows, int layer, int global_layer,
                        const RepeatObserver& observer);
  void GatherHead(const Sequence& sequence, int layer, int global_layer, int head, const ActiveRecipe& active,
                  const EntryGuard& guard);
  // What was gathered, to the order of time.
  void SortByTime(const HeadCache& head, int head_index);
  // What latents refer to and the newest entries, as act=delta has them, are no candidates either.
  void PinReferences(const Sequence& sequence, const HeadCache& head, const DemoteOptions& demote,
                     HeadBuffers& buffers) const;
  // Entries that act=demote has lowered are no candidates.
  void LeaveOutLowered(std::span<const HeadCache> heads, LayerScores& scores) const;
  void GatherMoments(const Sequence& sequence, int layer, int global_layer, int head);
  void GatherWindowQueries(const LayerShape& shape, int head);
  void PrepareWindow(const Sequence& sequence, int layer, int global_layer, int window);
  // All threads, after a sync: latents that the window task's segments point to; syncs.
  void ReadWindowLatents(const Team& team);
  // Those of all gathered heads that are not known yet; they are computed and stay in the pages (column -1: nowhere).
  void FindValueNorms(int cache_id, int layer, int column);

  const HostModel& model_;
  KvCache& cache_;

  std::vector<std::unique_ptr<GroupWork>> works_;  // of the block's groups
  std::vector<kernels::AttentionTask> tasks_;      // of those that nothing is pruned from
  Scratch attention_buffer_, moment_buffer_;
  float* moment_scratch_ = nullptr;
  std::byte* attention_scratch_ = nullptr;
  bool has_latents_ = false;

  std::vector<LayerParams> params_;  // of each layer

  SharedLoops loops_;
  std::vector<HeadBuffers> buffers_;
  ValueProjections projections_;
  std::vector<ObserveBuffers> observe_buffers_;  // of each thread
  std::vector<HeadInputs> head_inputs_;
  LayerInputs inputs_;
  bool score_failed_ = false;
  Scratch probability_buffer_;
  std::vector<float*> probabilities_;
  std::vector<float> window_rows_;
  std::vector<int32_t> window_positions_;
  kernels::AttentionTask window_task_;
  std::vector<kernels::Segment> window_segments_;
  std::vector<kernels::HeadEntries> window_heads_;
  LatentReader window_latents_;
  Scratch window_features_;
  int window_count_ = 0;
};

}  // namespace pith

#endif  // PITH_ENGINE_LAYER_OPS_H_
