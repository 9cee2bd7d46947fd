// The sequences of an engine: their names, their bytes, how they come and go. What one borrows, another may claim.
#ifndef PITH_ENGINE_SEQUENCE_TABLE_H_
#define PITH_ENGINE_SEQUENCE_TABLE_H_

#include <cstddef>
#include <map>
#include <memory>

#include "engine/engine.h"
#include "engine/engine_core.h"
#include "engine/evictor.h"
#include "engine/sequence.h"
#include "pith/types.h"

namespace pith {

class SequenceTable {
 public:
  SequenceTable(EngineCore& core, Evictor& evictor) : core_(core), evictor_(evictor) {}
  SequenceTable(const SequenceTable&) = delete;
  SequenceTable& operator=(const SequenceTable&) = delete;
  ~SequenceTable();

  // As Engine's functions of these names, of sequences that can be used.
  Result<SequenceId> New(const SequenceOptions& options);
  Result<SequenceId> New();
  Result<Admission> Admit(const SequenceOptions& options, size_t num_tokens) const;
  Status SetBudget(Sequence& sequence, size_t floor_bytes, size_t ceiling_bytes);
  Result<SequenceId> Fork(const Sequence& source);
  void Free(SequenceId id);

  // Null: there is none of that name.
  Sequence* Lookup(SequenceId id) const;
  // The sequence, or why it cannot be used.
  Result<Sequence*> Find(SequenceId id) const;
  // visit(sequence) for each, in the order of their names.
  template <typename Visit>
  void ForEach(const Visit& visit) const {
    for (const auto& [id, sequence] : sequences_) visit(*sequence);
  }
  // By which the user of a sequence knows the budget that may be full.
  size_t LimitBytes(const Sequence& sequence) const {
    return sequences_.size() == 1 ? core_.plan.budget_bytes : sequence.ceiling_bytes;
  }

  // Makes borrowed bytes free until so many are: sequences that drop go back to their floors and what the running step
  // guarantees them, but for one (null: for none). False: they are not there; where all that is borrowed is too little,
  // nobody has dropped anything.
  bool Reclaim(size_t bytes, const Sequence* except);
  // For a step, `bytes` of the sequence's become its share of what it keeps.
  void PlanShareOf(Sequence& sequence, size_t bytes) const;

 private:
  using SetupPtr = std::shared_ptr<const SequenceSetup>;
  // The engine's options with a sequence's own in place of the default ones.
  EngineOptions WithDefaults(const SequenceOptions& options) const;
  Result<SequenceId> Add(const SetupPtr& setup, size_t floor_bytes, size_t ceiling_bytes);
  Result<std::unique_ptr<Sequence>> MakeEmpty(const SetupPtr& setup, size_t floor_bytes, size_t ceiling_bytes);
  Result<std::unique_ptr<Sequence>> MakeFork(const Sequence& source);
  // An account, a slot and what is remembered beside pages; no cache yet. kOutOfBudget.
  Result<std::unique_ptr<Sequence>> Make(const SetupPtr& setup, size_t floor_bytes, size_t ceiling_bytes);
  Status HoldOwnBytes(Sequence& sequence) const;
  void ReserveTables(const Sequence& sequence) const;
  // That Reclaim() may make free.
  size_t BorrowedBytes(const Sequence* except) const;
  // Rows in flight of sequences that are there no more, or did not come to be, are not promised for.
  void SettleFlight();
  size_t FlightBytesOf(const SequenceSetup& setup) const;
  // Under the next name, once it was made.
  Result<SequenceId> Register(Result<std::unique_ptr<Sequence>> made);

  EngineCore& core_;
  Evictor& evictor_;
  std::map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  SequenceId next_id_ = 0;
};

}  // namespace pith

#endif  // PITH_ENGINE_SEQUENCE_TABLE_H_
