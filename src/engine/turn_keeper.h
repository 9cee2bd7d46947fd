// What a recipe does between the turns of a conversation (policy/turns/turns.h).
//
// flowkv, entries of one head by position:
//
//   [ pinned | turn 1, frozen | turn 2, frozen | ... | the running turn, whole, f16 ]
//                                                    turn_start            next_position
//
// EndTurn() compresses the running turn among its own entries and freezes it. Where rows would find no room, it is
// closed early, and then the oldest turns go (MakeRoomForRows(), within a step; MakeRoomOn(), before it, by pieces).
// epicache: where rows would find no room, all entries are judged by the guide, and what goes makes room for a block.
#ifndef PITH_ENGINE_TURN_KEEPER_H_
#define PITH_ENGINE_TURN_KEEPER_H_

#include <cstdint>
#include <optional>
#include <span>

#include "engine/compressor.h"
#include "engine/engine_core.h"
#include "engine/layer_ops.h"
#include "engine/sequence.h"
#include "pith/types.h"

namespace pith {

class TurnKeeper {
 public:
  TurnKeeper(EngineCore& core, Compressor& compressor) : core_(core), compressor_(compressor) {}

  // As Engine's functions of these names, of a sequence that can be used.
  Status EndTurn(Sequence& sequence);
  Result<bool> EndTurnOn(Sequence& sequence);
  Status SetGuide(Sequence& sequence, std::span<const int32_t> tokens);

  // Before rows are read into a sequence whose recipe has turns=: what it holds is compressed, where there would be no
  // room for them.
  Status MakeRoomForRows(Sequence& sequence, int num_rows);
  // Rows between two looks at the room that is left.
  int RowsAtOnce(const Sequence& sequence) const;
  Result<bool> MakeRoomOn(Sequence& sequence, int num_rows);
  bool HasRoomFor(const Sequence& sequence, int num_rows) const;
  // What EndTurn() would have to read again; the oldest turns, which it would drop, are dropped. None: nothing. A
  // sequence without turns: all of it.
  Result<std::optional<EntryGuard>> PartToRead(Sequence& sequence);

 private:
  // None: nothing was read in it.
  std::optional<TurnPlan> PlanTurn(const Sequence& sequence) const;
  bool HasRoomForRows(const Sequence& sequence, int num_rows) const;
  // Into sequence.compression, for GoOn(); null: there is no turn.
  Status BeginTurn(Sequence& sequence);
  Status BeginPlanned(Sequence& sequence, const TurnPlan& plan);
  // The same of the oldest turns, and of none where the plan's has no tokens.
  static void BeginDropping(Sequence& sequence, const TurnPlan& plan);
  Status BeginBlock(Sequence& sequence);
  Result<bool> GoOn(Sequence& sequence);
  Status Close(Sequence& sequence, Status begun);
  Status DropOldestTurn(Sequence& sequence);
  // By a piece: layers that hold so many entries. True: that was the last one. A turn of which some layers hold nothing
  // any more is a turn as before.
  Result<bool> DropOldestTurnOn(Sequence& sequence, int64_t most_entries);
  double EntriesPerHead(const Sequence& sequence, FrozenTurn turn) const;
  // Entries per head that turns which are over may hold.
  double TurnCap(const Sequence& sequence) const;

  EngineCore& core_;
  Compressor& compressor_;
};

}  // namespace pith

#endif  // PITH_ENGINE_TURN_KEEPER_H_
