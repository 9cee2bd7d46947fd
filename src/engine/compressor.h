// Compression of what was read: once or again, of a sequence, some of its forks, or a part of it.
#ifndef PITH_ENGINE_COMPRESSOR_H_
#define PITH_ENGINE_COMPRESSOR_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/engine_core.h"
#include "engine/flight.h"
#include "engine/page_changes.h"
#include "engine/second_reader.h"
#include "engine/sequence.h"
#include "engine/sequence_table.h"
#include "engine/shrinker.h"
#include "pith/types.h"

namespace pith {

// What becomes of a turn that is over (engine/turn_keeper.h).
struct TurnPlan {
  FrozenTurn turn;
  double keep = 0;      // entries per head
  bool drops = false;   // some of its entries
  int num_dropped = 0;  // turns before it, the oldest first
};

// Of one sequence, by pieces: what GoOn() goes on with.
struct Compression {
  std::string recipe;  // as its caller has it; empty: the sequence's own
  double keep_fraction = 1;
  ActiveRecipe active;
  ShrinkPieces pieces;
  bool selects = true;  // some entries may go, not only pages change
  PageChanges changes;
  std::optional<TurnPlan> plan = {};    // of a turn; it is begun once those before it are dropped
  std::optional<FrozenTurn> turn = {};  // that ends with it
  HeldBytes held;                       // what pieces take between two of them
};

class Compressor {
 public:
  Compressor(EngineCore& core, const SequenceTable& table, Shrinker& shrinker, SecondReader& reader)
      : core_(core), table_(table), shrinker_(shrinker), reader_(reader) {}

  // As Engine's functions of these names, of a sequence that can be used.
  Result<std::vector<double>> CompressForks(Sequence& source, const Recipe& recipe,
                                            std::span<const CompressTarget> targets);
  Result<bool> CompressOn(Sequence& sequence, const Recipe& recipe, double keep_fraction);
  Result<double> CompressPart(Sequence& sequence, const Recipe& recipe, double keep_fraction, int32_t from, int32_t to);
  // part: with the sinks of whatever recipe.
  Result<bool> ReadAgain(Sequence& sequence, const Recipe& recipe, EntryGuard part, int rows);

  // Into sequence.compression: of a part that is there, with the sequence's own recipe or, where it has no room to read
  // again, by what needs less. keep: entries per kv head; what is left of it to be read again is read.
  Status BeginOwn(Sequence& sequence, const EntryGuard& part, double keep);
  // A piece of sequence.compression, which there is. True: that was the last one. Nothing is left of it then, nor after
  // an error. Where the budget has no room for what is known between two pieces, the rest comes at once.
  Result<bool> GoOn(Sequence& sequence);

 private:
  // The recipe as the sequence was made with it, or as far as it needs nothing that had to be noted while text was
  // read.
  Result<ActiveRecipe> ActiveFor(const Sequence& sequence, const ResolvedRecipe& recipe) const;
  // Of what a caller gave.
  Result<ActiveRecipe> ActiveFor(const Sequence& sequence, const Recipe& recipe) const;
  // kInvalidArgument: the recipe cannot work on what the sequence is stored in.
  Status CheckFormat(const Sequence& sequence, const ResolvedRecipe& recipe) const;
  // What `keep` of the source's `mean` entries per kv head means for one target.
  // read: what a second reading for the recipe found; null: there was none, or not yet.
  Result<Shrink> ShrinkFor(const ActiveRecipe& active, RepeatColumns* read, Sequence& target, double mean,
                           double keep) const;
  PageFormat FormatFor(const ActiveRecipe& active, RepeatColumns* read, PageFormat entry, double mean,
                       double keep) const;
  // Ends a compression in pieces, whose columns are of entries that may be gone; reads what is to be read again.
  Status ReadFor(Sequence& source, const ActiveRecipe& active, const EntryGuard& guard);
  Result<Shrink> ReadAndPlan(Sequence& source, const ActiveRecipe& active, const EntryGuard& guard, Sequence& target,
                             double mean, double keep);
  Result<Shrink> ShrinkByDemotion(const ResolvedRecipe& recipe, Sequence& target, double mean, double bytes) const;
  Status ShrinkPart(Sequence& sequence, const ActiveRecipe& active, const EntryGuard& part, double keep);
  Status BeginPart(Sequence& sequence, const ActiveRecipe& active, const EntryGuard& part, double keep);
  Result<bool> RunPiece(Sequence& sequence);
  // The beginning of CompressOn(); null: there is nothing to do.
  Result<std::shared_ptr<Compression>> Begin(Sequence& sequence, const Recipe& recipe, double keep_fraction);
  // Formats and channels of what stays.
  Status ChangePages(const Sequence& source, const ActiveRecipe& active, std::span<const Shrink> shrinks);
  // selects: some entries may go, not only formats change.
  Status Run(Sequence& source, const ActiveRecipe& active, const EntryGuard& guard, std::vector<Shrink>& shrinks,
             bool selects, FlightLoan& loan);

  EngineCore& core_;
  const SequenceTable& table_;
  Shrinker& shrinker_;
  SecondReader& reader_;
};

}  // namespace pith

#endif  // PITH_ENGINE_COMPRESSOR_H_
