// A second reading (engine/repeat.h) that has come so far: it goes on between steps of other sequences.
#ifndef PITH_ENGINE_SECOND_READING_H_
#define PITH_ENGINE_SECOND_READING_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "engine/engine_core.h"
#include "engine/layer_ops.h"
#include "engine/repeat.h"
#include "engine/sequence.h"
#include "policy/policy.h"

namespace pith {

// The tokens at the front that stay whatever is found: sinks, and what the caller pinned there.
int PrefixOf(const Sequence& sequence, const ResolvedRecipe& recipe);

// What a token's queries take in all layers with global caches.
struct ReferenceShape {
  std::vector<size_t> widths;  // of each layer
  size_t token_bytes = 0;
  int group = 1;  // most query heads of a kv head
};
// None where nothing can stand in for what goes: entries are not written over, or, where attention falls with distance
// (ALiBi), a made key would hold at one distance alone.
std::optional<ReferenceShape> ReferenceShapeOf(const EngineCore& core, const Sequence& sequence);

// Room for the queries of so many tokens that a block's entries are fitted to, in the scratch of the recipe. None where
// nothing can stand in for what goes.
void ReserveBlockReferences(const EngineCore& core, const Sequence& sequence, const Policy& policy, int num_tokens,
                            ReferenceQueries& references);

// A fork that reads a pass, in what its source leaves of its bytes, at a place of its own; with it that is over, and
// the source has its bytes again.
class PassFork {
 public:
  // The source outlives the fork. in_passing: nothing of its rows stays in a layer that is done. kOutOfBudget: no
  // place, or no bytes.
  static Result<std::unique_ptr<PassFork>> Make(EngineCore& core, Sequence& source, bool in_passing);
  PassFork(const PassFork&) = delete;
  PassFork& operator=(const PassFork&) = delete;
  ~PassFork();

  Sequence& sequence() { return sequence_; }

 private:
  PassFork(EngineCore& core, Sequence& source) : core_(core), source_(source) {}
  Status Open();

  EngineCore& core_;
  Sequence& source_;
  Sequence sequence_;
};

// Its end, Sequence::reading.reset(), ends the pass that is under way, too.
struct SecondReading {
  ResolvedRecipe recipe;  // whose policy observes
  EntryGuard part;        // of the sequence's tokens, those that are repeated
  std::shared_ptr<RepeatColumns> columns;
  int prefix = 0;
  int chunk = 0;  // tokens of a pass, beside its instruction
  bool in_passing = false;  // each pass is one block, whose rows leave each layer at once

  RepeatPass pass;                 // that is under way, or was the last one
  std::vector<int32_t> tokens;     // of the pass
  size_t num_read = 0;             // of these
  std::unique_ptr<PassFork> fork;  // that reads them; null: no pass is under way
};

}  // namespace pith

#endif  // PITH_ENGINE_SECOND_READING_H_
