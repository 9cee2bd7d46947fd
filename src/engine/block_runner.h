// Blocks: rows that pass through libllama's graph together, and what becomes of those that fail.
//
//   reserve    the bytes that the rows may take; who cannot have them is left out before anything has changed
//   run        libllama's graph, with OnAttention() in every layer (block_layers.cc, block_echo.h)
//   finish     eviction by recipes that compare layers; logits
//   roll back  a group that failed in the graph: its rows are cut off again, or its sequence is lost
#ifndef PITH_ENGINE_BLOCK_RUNNER_H_
#define PITH_ENGINE_BLOCK_RUNNER_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/team.h"
#include "base/thread_governor.h"
#include "engine/block_echo.h"
#include "engine/cancel_list.h"
#include "engine/engine_core.h"
#include "engine/evictor.h"
#include "engine/layer_ops.h"
#include "engine/row_group.h"
#include "engine/sequence_table.h"
#include "engine/statistics_undo.h"
#include "host/context.h"
#include "pith/types.h"

namespace pith {

class BlockRunner final : public AttentionSink {
 public:
  BlockRunner(EngineCore& core, SequenceTable& table, Evictor& evictor)
      : core_(core), table_(table), evictor_(evictor), echo_(core) {}
  // When the number of threads is known, before the first block.
  void Init();

  // A block without rows; the groups of the one before are gone.
  void Begin();
  // Rows of one more sequence: their logits are wanted from first_logits on, and the first num_sparse_rows may skip
  // attention work. Ends a second reading of the sequence.
  RowGroup& Add(Sequence& sequence, std::span<const int32_t> tokens, size_t first_logits, int num_sparse_rows);
  // What the output layer gets for the rows is wanted, too.
  void WantHidden() { wants_hidden_ = true; }
  // Runs it; errors are in groups().
  void Run();
  // One block of a pass of a second reading, which observer sees. No group is left behind.
  Status RunPass(Sequence& fork, std::span<const int32_t> tokens, const RepeatObserver& observer);

  std::span<RowGroup> groups() { return groups_; }
  // Of a group's i-th row whose logits were wanted, [vocab]; valid until the next block runs.
  std::span<const float> logits(const RowGroup& group, int i) const {
    return core_.context->logits(group.first_output + i);
  }
  // Appended to `to`: those of all of them ...
  void CopyLogits(const RowGroup& group, std::vector<float>& to) const;
  // ... and hidden states. kUnsupported: the architecture has none.
  Status CopyHidden(const RowGroup& group, std::vector<float>& to) const;
  // BlockEcho::TakeQueries().
  ReferenceQueries TakeEchoedQueries(const Sequence& sequence) { return echo_.TakeQueries(sequence); }
  // The last rows' logits of all sequences outlive the next block.
  void KeepLogits();

  // The running block gives the sequence up, and so do later ones. Any thread.
  CancelList& cancels() { return cancels_; }
  // Of the next block with a token for each sequence.
  int decode_threads() const { return token_governor_->threads(); }

  void OnAttention(const AttentionCall& call, const Team& team) override;
  bool ShouldStop() override;

 private:
  size_t num_rows() const { return tokens_.size(); }
  std::span<const uint8_t> WantsOf(const RowGroup& group) const {
    return std::span(wants_logits_).subspan(static_cast<size_t>(group.first_row), static_cast<size_t>(group.num_rows));
  }

  // Holds the bytes that the block's rows take; a group that cannot have them fails.
  void Reserve();
  Status ReserveGroup(const RowGroup& group);
  void Release();
  // Room for what statistics were, as far as there is any.
  void PlanUndo();
  void LeaveOutFailed();
  void RunGraph();
  void BeginGroup(RowGroup& group, size_t index);
  Status CheckHostBytes();
  void FinishGroup(RowGroup& group);
  // Takes back what a failed group's rows have left in the cache, or declares its sequence lost.
  void RollBack(RowGroup& group);
  void TakeCancels();

  // In a layer (block_layers.cc).
  // Those of all threads, whether all of them run now or not.
  int NumParts(int nth) const { return std::min(std::max(nth, core_.options.num_threads), nth * kernels::kMaxMembers); }
  void PrepareLayer(const AttentionCall& call, const Team& team);
  void ClearOutput(const AttentionCall& call, const RowGroup& group, const Team& team) const;
  // Thread 0: the last queries of all groups, for recipes that look at them.
  void KeepQueries(const AttentionCall& call, int global_layer);
  void ActInLayer(const AttentionCall& call, const Team& team);
  void ActInGlobalLayer(const AttentionCall& call, int global_layer, const Team& team);
  void LeaveLayer(int layer, const Team& team);
  void ObservePass(const AttentionCall& call, int global_layer, const Team& team);

  EngineCore& core_;
  SequenceTable& table_;
  Evictor& evictor_;
  BlockEcho echo_;
  CancelList cancels_;
  std::optional<ThreadGovernor> token_governor_, block_governor_;  // of blocks with a row per sequence; of others

  // Of the block.
  std::vector<int32_t> tokens_, positions_, slots_;
  std::vector<uint8_t> wants_logits_;
  std::vector<RowGroup> groups_;
  bool wants_hidden_ = false;
  const RepeatObserver* observer_ = nullptr;  // of a second reading's block, else null
  bool in_graph_ = false;
  std::vector<StatisticsUndo> undos_;  // of each group; they stay, for their room
};

}  // namespace pith

#endif  // PITH_ENGINE_BLOCK_RUNNER_H_
