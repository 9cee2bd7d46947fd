// What the engine remembers of one sequence beside its pages.
#ifndef PITH_ENGINE_SEQUENCE_H_
#define PITH_ENGINE_SEQUENCE_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/ledger.h"
#include "engine/engine.h"
#include "engine/plan.h"
#include "engine/prefill_pruner.h"
#include "engine/query_moments.h"
#include "engine/query_ring.h"
#include "engine/repeat.h"
#include "engine/resolved.h"

namespace pith {

// A recipe in use, with the place of its columns in the sequence's pages.
struct ActiveRecipe {
  ResolvedRecipe recipe;
  int first_column = 0;
  int num_columns = 0;   // that the scorer asked for
  int norm_column = -1;  // of the value norms, -1: it needs none, or they are computed each time
};

// What follows from a sequence's options: the same for its forks, and fixed.
struct SequenceSetup : ResolvedSequence {
  FlightShape flight;
  std::vector<ActiveRecipe> active;                    // the running recipe first, then those for Compress()
  int num_columns = 0;                                 // of all of them, in pages
  std::vector<std::pair<int, float>> column_initials;  // columns whose value of a new entry is not 0
  int ring_window = 0;
  uint32_t observed_needs = 0;  // of the recipes that observe every query
  bool counts_moments = false;
  bool reads_again = false;  // a recipe may want a second reading, so tokens are remembered

  // Errors of Resolve().
  static Result<std::shared_ptr<const SequenceSetup>> Make(const ModelInfo& info, const EngineOptions& options);

  // Null: none of this text.
  const ActiveRecipe* Find(const ResolvedRecipe& recipe) const;
};

// A part of a conversation that is over and was compressed.
struct FrozenTurn {
  int32_t from = 0, to = 0;
};

struct SecondReading;
struct Compression;

struct Sequence {
  SequenceId id = -1;
  std::shared_ptr<const SequenceSetup> setup;
  std::unique_ptr<MemoryAccount> own_account;
  MemoryAccount* account = nullptr;           // own_account
  SharePlan share;                            // of the bytes it has now
  size_t planned_bytes = 0;                   // that share was made for
  size_t floor_bytes = 0, ceiling_bytes = 0;  // between steps
  size_t step_bytes = 0;                      // guaranteed beside the floor while a step runs: its rows' flight
  int cache_id = -1;
  int slot = -1;  // of the host context
  int32_t next_position = 0;
  int logits_row = -1;  // in the last block; -1: none
  int64_t entries_seen = 0;
  bool evicts = true;  // SetEviction()
  bool in_passing = false;  // reads for others to observe it: its rows leave each layer when that is done
  bool prompt_continues = false;
  std::vector<std::pair<int32_t, int32_t>> pinned;  // [from, to) positions, ascending
  std::vector<FrozenTurn> turns;  // of a recipe with turns=flowkv, ascending; the oldest may be gone
  int32_t turn_start = 0;         // what was read from here on is no such turn yet
  int32_t exact_from = 0;         // with turns: no going back to less, since what was there is gone
  std::vector<int32_t> guide;     // Engine::SetGuide()
  HeldBytes query_bytes, token_bytes, logit_bytes, scratch_bytes;
  QueryRing queries;
  int32_t queries_from = 0;  // those of positions before are not in the ring any more
  QueryMoments moments;                   // empty where no recipe reads them
  std::vector<double> merge_thresholds;   // act=merge: of each global layer, NaN before its first eviction
  std::vector<float> kept_logits;  // [vocab] of the last token, where its block is not the context's last; else empty
  std::vector<int32_t> tokens;            // all that was read, where a recipe reads it again; else empty
  std::shared_ptr<RepeatColumns> repeat;  // what a second reading found, until the sequence changes
  // What goes on in pieces, until then: reset() gives back what it holds.
  std::shared_ptr<SecondReading> reading;
  std::shared_ptr<Compression> compression;
  std::unique_ptr<PrefillPruner> pruner;  // of a recipe with a prefill option
  std::unique_ptr<float[]> undo;          // for StatisticsUndo, of undo_bytes
  size_t undo_bytes = 0;
  std::optional<Error> lost;              // it cannot go on; every call says so

  // The sequence is about to change otherwise.
  void EndPieces() {
    reading.reset();
    if (compression != nullptr) repeat.reset();  // of entries that may be gone
    compression.reset();
  }
  // What share says, in the account.
  [[nodiscard]] bool HoldScratch() { return scratch_bytes.Hold(account, MemoryTag::kQueries, share.scratch_bytes); }
  // Room for so many floats of StatisticsUndo, null where fewer are charged.
  float* UndoMemory(size_t count) {
    const size_t charged = scratch_bytes.bytes() >= share.scratch_bytes ? share.undo_bytes : 0;
    if (charged != undo_bytes) {
      undo.reset();
      undo = std::make_unique_for_overwrite<float[]>(charged / sizeof(float));
      undo_bytes = charged;
    }
    return count * sizeof(float) <= undo_bytes ? undo.get() : nullptr;
  }
  // What the running recipe drops while text is read.
  bool evicts_while_running() const { return setup->style.evicts && evicts; }
  // Of the ledger's, beyond what the sequence is guaranteed.
  size_t borrowed_bytes() const {
    const size_t held = std::max(account->used_bytes(), account->floor_bytes()), guaranteed = floor_bytes + step_bytes;
    return held - std::min(held, guaranteed);
  }
  int most_entries() const { return share.keep_entries + share.slack_entries; }  // per kv head, before an eviction

  bool IsPinned(int32_t position) const {
    const auto next = std::upper_bound(pinned.begin(), pinned.end(), position,
                                       [](int32_t at, const auto& range) { return at < range.first; });
    return next != pinned.begin() && position < std::prev(next)->second;
  }
  // How many of the last queries are known, and whether those are all that a window of so many would hold.
  int known_queries() const { return std::min(queries.window(), next_position - queries_from); }
  // The first `width` numbers of the last `count` queries, which are known, in float32: [count, width].
  void ReadQueries(int global_layer, int count, size_t width, float* rows) const;
  bool Knows(int window) const { return known_queries() >= std::min(window, next_position); }
  // The last `count` tokens have overwritten older queries, and are about to be taken back.
  void ForgetQueriesOf(int count) {
    if (queries.window() == 0) return;  // none are ever asked for
    queries_from = std::min(std::max(queries_from, next_position - queries.window()), next_position - count);
  }
  // What lies outside its cache and its queries forgets the tokens from this one on.
  void EndAt(int32_t position, int64_t num_global_heads);
  // Everything that a sequence with the same setup has read so far; its cache apart.
  void CopyHistory(const Sequence& from);

  int64_t num_pinned() const {
    int64_t count = 0;
    for (const auto& [from, to] : pinned) count += to - from;
    return count;
  }
};

// kInvalidArgument: the context does not hold so many more tokens.
Status CheckRoom(const Sequence& sequence, size_t num_tokens);
// kOutOfBudget: the pinned tokens and `more` of them do not fit into what stays.
Status CheckPinned(const Sequence& sequence, int64_t more);
// What to say where no bytes are left of a budget that its user knows by `limit_bytes`.
Error BudgetFull(const Sequence& sequence, size_t limit_bytes);

}  // namespace pith

#endif  // PITH_ENGINE_SEQUENCE_H_
