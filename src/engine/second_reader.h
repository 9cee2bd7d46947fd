// Reads what a sequence has read a second time (repeat.h), for recipes that judge entries by it.
#ifndef PITH_ENGINE_SECOND_READER_H_
#define PITH_ENGINE_SECOND_READER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "engine/block_runner.h"
#include "engine/engine_core.h"
#include "engine/layer_ops.h"
#include "engine/repeat.h"
#include "engine/second_reading.h"
#include "engine/sequence.h"
#include "pith/types.h"

namespace pith {

class SecondReader {
 public:
  // cancelled: reading ends with kCancelled, and so does whatever comes until it is false again.
  SecondReader(EngineCore& core, BlockRunner& runner, const std::atomic<bool>& cancelled)
      : core_(core), runner_(runner), cancelled_(cancelled) {}

  // For a recipe with a second reading: fills source.repeat, which may be there already, and keeps all logits. Nothing
  // else of the source changes. part: of the sequence's tokens, only these are repeated. All that it takes is the
  // recipe's time. kOutOfBudget, kUnsupported, kCancelled; then nothing of it is left.
  Status ReadAll(Sequence& source, const ActiveRecipe& active, const EntryGuard& part);
  // The same by so many rows. True: source.repeat is there.
  Result<bool> ReadOn(Sequence& source, const ActiveRecipe& active, const EntryGuard& part, int rows);
  // Of a sequence whose running recipe repeats block by block: source.repeat is of the entries from this position on.
  // The passes take what the sequence has left, and the bytes of a step's rows. Errors as ReadAll().
  Status ReadBlock(Sequence& source, int32_t from);
  // Tokens that a pass of ReadBlock() repeats; none: blocks are too short. Asked for with each token that is decoded.
  std::optional<int> BlockChunk(const RepeatOptions& options);

 private:
  Status Begin(Sequence& source, const ActiveRecipe& active, const EntryGuard& part, bool in_passing);
  // Goes on with source.reading. True: it is done.
  Result<bool> Go(Sequence& source, int rows);
  // The next pass of a reading. False: there is none.
  Result<bool> BeginPass(Sequence& source, SecondReading& reading);
  // At most so many rows of the pass that is under way.
  Status ReadPass(SecondReading& reading, int rows);
  // Room for the queries of all passes, in what the sequence's bytes leave beside the longest pass.
  Status ReserveReferences(const Sequence& source, const ActiveRecipe& active, const EntryGuard& part, int overhead,
                           SecondReading& reading) const;
  // Tokens per pass, so that the last position of a pass is one that the model knows.
  Result<int> ChunkOf(const Sequence& sequence, const ActiveRecipe& active, int overhead) const;
  Error NoRoom(const Sequence& source, const ActiveRecipe& active, int chunk) const;

  // What is put before the tokens of a pass.
  Result<const RepeatPrompt*> Prompt();

  EngineCore& core_;
  BlockRunner& runner_;
  const std::atomic<bool>& cancelled_;
  std::optional<RepeatPrompt> prompt_;
};

// Of a guide (score=guide), which takes a quarter of the room at most.
int MostGuideTokens(const Sequence& sequence, const RepeatOptions& repeat);

}  // namespace pith

#endif  // PITH_ENGINE_SECOND_READER_H_
