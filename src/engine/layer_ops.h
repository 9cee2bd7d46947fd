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

#include "base/parallel.h"
#include "base/team.h"
#include "cache/kv_cache.h"
#include "engine/prefill_pruner.h"
#include "engine/repeat.h"
#include "engine/scratch.h"
#include "engine/sequence.h"
#include "engine/value_projections.h"
#include "host/context.h"
#include "kernels/attention.h"
#include "policy/policy.h"

namespace pith {

// A recipe in use, with the place of its columns in every page.
struct ActiveRecipe {
  Recipe recipe;
  int first_column = 0;
  int num_columns = 0;  // that the scorer asked for
  int norm_column = -1;  // of the value norms, -1: it needs none
};

// A run of rows of one block that belong to one sequence.
struct RowGroup {
  Sequence* sequence = nullptr;
  int first_row = 0;
  int num_rows = 0;
  int num_sparse_rows = 0;  // first rows that may skip attention work (the prefill option); 0 while decoding
  bool cascades = false;  // layers are evicted from while the block is in the next ones
};

// Where the attention of a second reading goes.
struct RepeatObserver {
  const Policy& policy;
  const RepeatPass& pass;
  RepeatColumns& columns;
};

class LayerOps {
 public:
  // column_initials: columns whose value of a new entry is not 0.
  // prune: the recipe's prefill option, if it has one.
  LayerOps(const HostModel& model, KvCache& cache, std::vector<std::pair<int, float>> column_initials,
           const std::optional<CritiOptions>& prune);

  // Thread 0, between syncs. Makes room for the group's rows in the layer's heads and describes the
  // attention over them. kOutOfBudget: nothing has changed. global_layer: -1 where the layer is none.
  // num_parts: into how many stretches attention is cut, at least one for each thread.
  // observed: Need bits of what Observe() will want, 0: it will not be called.
  Status Prepare(const AttentionCall& call, const RowGroup& group, std::span<const int32_t> positions, int global_layer,
                 uint32_t observed, int num_parts);
  // All threads, after a sync: writes the group's keys and values.
  void Append(const AttentionCall& call, const RowGroup& group, const Team& team);
  // All threads, after a sync.
  void Attend(const Team& team);
  // Thread 0's time within Attend() that only Observe() has a use for.
  double observe_seconds() const { return observe_seconds_; }
  // All threads: gives what this block's queries paid to the recipes that observe every query.
  void Observe(int layer, const RowGroup& group, std::span<const ActiveRecipe> recipes, const Team& team);
  // All threads: the same for the rows of a second reading.
  void ObserveRepeat(int layer, int global_layer, const RowGroup& group, const RepeatObserver& observer, const Team& team);
  // All threads, their heads: full pages go to the low format. False if one found no room.
  bool Demote(int cache_id, int layer, const Team& team);
  // Thread 0: remembers the last queries.
  void KeepQueries(const AttentionCall& call, const RowGroup& group, int global_layer);

  // All threads, after Prepare(): the group's queries as they were before RoPE into the sequence's moments.
  void AddMoments(const AttentionCall& call, const RowGroup& group, int global_layer, const Team& team);

  // All threads: scores a layer by a recipe. inputs() stays valid until the next call; scores are there for all.
  // pin: entries that no recipe may drop are marked (sinks and pinned ranges).
  void Score(Sequence& sequence, int layer, int global_layer, int num_global_layers, const ActiveRecipe& active, uint64_t seed,
             int num_sinks, const Team& team, LayerScores& scores);
  const LayerInputs& inputs() const { return inputs_; }
  // Of the team that calls all this, between its calls.
  SharedLoops& loops() { return loops_; }

  // All threads: attention of the last `window` queries of one sequence over the entries of another cache.
  // output [window, H, Dv].
  void WindowOutputs(Sequence& queries_of, int cache_id, int layer, int global_layer, int window, float* output,
                     const Team& team);

 private:
  // Inputs of a policy.
  struct HeadBuffers {
    std::vector<int32_t> positions;
    std::vector<uint8_t> pinned;
    std::vector<float> keys, values, value_norms, columns, query_means, query_covariances;
    std::vector<float*> column_pointers;
    std::vector<float> window_queries;
    std::vector<int32_t> new_entries;  // without a value norm yet
    std::vector<float> new_values, new_norms;
    std::vector<float> chunk;  // probabilities over the chunk of a second reading
  };

  void DescribeHeads(int cache_id, int layer);
  // All threads: probabilities_ of `rows` rows of task_ from `from` on. heads: those of task_.
  void FindProbabilities(std::span<const HeadCache> heads, int from, int rows, const Team& team);
  void PlanObserved(uint32_t needs);
  // Of the stretch of a head that a thread is at.
  struct ObserveBuffers {
    std::vector<int32_t> positions;
    std::vector<float> columns;
    std::vector<float*> column_pointers;
  };
  // Give one observation of a head to all recipes that want it, out of what attention gathered (for the part-th of
  // num_parts stretches of the head's pages) ...
  void ObservePages(HeadCache& head, size_t part, size_t num_parts, Observation& seen,
                    std::span<const ActiveRecipe> recipes, ObserveBuffers& buffers) const;
  // ... or out of probabilities.
  void ObserveHead(HeadCache& head, Observation& seen, std::span<const ActiveRecipe> recipes,
                   ObserveBuffers& buffers) const;
  void ObserveChunk(int head_index, const HeadCache& head, int from, int rows, int layer, int global_layer,
                    const RepeatObserver& observer);
  void GatherHead(const Sequence& sequence, int layer, int global_layer, int head, const ActiveRecipe& active, int num_sinks);
  void GatherMoments(const Sequence& sequence, int layer, int global_layer, int head);
  void PrepareWindow(Sequence& sequence, int layer, int global_layer, int window);
  // Those of all gathered heads that are not known yet; they are computed and stay in the pages.
  void FindValueNorms(int cache_id, int layer, int column);

  const HostModel& model_;
  KvCache& cache_;
  const std::vector<std::pair<int, float>> column_initials_;

  kernels::AttentionTask task_;
  std::vector<kernels::Segment> segments_;
  std::vector<kernels::HeadEntries> heads_;
  std::vector<int32_t> positions_;       // of the group's rows
  Scratch attention_buffer_, moment_buffer_;
  float* moment_scratch_ = nullptr;
  std::byte* attention_scratch_ = nullptr;
  std::optional<PrefillPruner> pruner_;
  PrunedCall pruned_;

  Scratch observed_buffer_;
  std::vector<kernels::EntryAttention> observed_;  // of task_
  double observe_seconds_ = 0;

  // Attention parameters of each layer, as last seen: the window's probabilities need them.
  struct LayerParams {
    float scale = 1, soft_cap = 0;
    const float* sinks = nullptr;
    const float* alibi_slopes = nullptr;
  };
  std::vector<LayerParams> params_;

  SharedLoops loops_;
  std::vector<HeadBuffers> buffers_;
  ValueProjections projections_;
  std::vector<ObserveBuffers> observe_buffers_;  // of each thread
  std::vector<HeadInputs> head_inputs_;
  LayerInputs inputs_;
  Scratch probability_buffer_;
  std::vector<float*> probabilities_;
  std::vector<float> window_rows_;
  std::vector<int32_t> window_positions_;
  kernels::AttentionTask window_task_;
  int window_count_ = 0;
};

}  // namespace pith

#endif  // PITH_ENGINE_LAYER_OPS_H_
