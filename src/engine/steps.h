// What callers want read, cut into blocks: each item is checked by itself, room is made where a recipe has turns=, and
// logits go where they were asked for.
#ifndef PITH_ENGINE_STEPS_H_
#define PITH_ENGINE_STEPS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/block_rereader.h"
#include "engine/block_runner.h"
#include "engine/engine.h"
#include "engine/engine_core.h"
#include "engine/sequence.h"
#include "engine/sequence_table.h"
#include "engine/turn_keeper.h"
#include "pith/types.h"

namespace pith {

class Steps {
 public:
  // cancelled: reading ends between blocks.
  Steps(EngineCore& core, const SequenceTable& table, BlockRunner& runner, BlockRereader& rereader, TurnKeeper& turns,
        const std::atomic<bool>& cancelled)
      : core_(core), table_(table), runner_(runner), rereader_(rereader), turns_(turns), cancelled_(cancelled) {}

  // As Engine's functions of these names.
  void Step(std::span<const StepItem> items, std::span<Status> statuses);
  Status Prefill(SequenceId id, std::span<const int32_t> tokens, bool pin, std::vector<float>* all_logits,
                 const Progress& progress);
  Status PrefillTogether(std::span<const SequenceId> ids, std::span<const int32_t> tokens, size_t first_row,
                         std::vector<float>& logits, const Progress& progress);
  Status DecodeBatch(std::span<const SequenceId> ids, std::span<const int32_t> tokens);

 private:
  // Its sequence, or why it cannot be in the step whose items `before` were looked at already, and num_rows of them
  // taken.
  Result<Sequence*> Admit(const StepItem& item, std::span<const StepItem> before, size_t num_rows) const;
  Status CheckItem(const Sequence& sequence, const StepItem& item) const;
  // ends: a prompt ends with these rows. settles: then its sequence goes down to what its share keeps.
  void AddItem(Sequence& sequence, const StepItem& item, bool ends, bool settles);
  // Logits and hidden states that its caller wants.
  Status TakeRows(const RowGroup& group, const StepItem& item);
  // Runs what was added; item_of_group_ says whose it is.
  void RunItems(std::span<const StepItem> items, std::span<Status> statuses);
  // One block of a text that several sequences read, from `at` on.
  Status ReadTogether(std::span<const SequenceId> ids, std::span<const int32_t> tokens, size_t skipped);
  // Of a sequence, in one block: those of more make more of what was kept go than their repetition is worth.
  int RowsAtOnce(const Sequence& sequence) const;
  // Makes room for an item that has a block of its own, and reads it.
  Status ReadPiece(Sequence& sequence, const StepItem& piece, bool ends, bool settles);
  // Reads all but the last of an item's rows where they are more, in blocks of their own, and makes room for those.
  Status ReadAhead(Sequence& sequence, StepItem& item);
  // Before the block, which may take blocks of its own.
  Status MakeRoomForRows(Sequence& sequence, int num_rows);
  // After the block, likewise. settles: a prompt ends with its rows.
  Status MakeRoomBehind(Sequence& sequence, bool settles);
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

  EngineCore& core_;
  const SequenceTable& table_;
  BlockRunner& runner_;
  BlockRereader& rereader_;
  TurnKeeper& turns_;
  const std::atomic<bool>& cancelled_;
  std::vector<size_t> item_of_group_;
  std::vector<std::pair<size_t, bool>> behind_;  // items of MakeRoomBehind(), and whether their prompts end
  std::vector<StepItem> step_items_;   // without what was read ahead
  std::vector<StepItem> batch_items_;  // of DecodeBatch(), which allocates nothing
  std::vector<Status> batch_statuses_;
};

}  // namespace pith

#endif  // PITH_ENGINE_STEPS_H_
