// Second readings while a prompt is read, block by block, or written (RepeatOptions::by_blocks).
//
//   cache      [ what was judged | what was read since ]      before a block for which there is no room
//   repeat     over the cache, the tokens read since, in passes of one block whose rows leave each layer at once
//   judge      what was read since by what the repetition paid it: a number for each entry, in its page
//   evict      all compete by these numbers, down to a share that leaves room for the block and as much again; where
//              entries stand in for what goes (act=residue), they are fitted to the repetition's queries
//
// Of blocks that were judged as they came (block_echo.h) nothing is repeated; where entries stand in, they make room
// behind themselves, while their queries are there. Where there is no room even for a pass,
// entries are judged by their keys alone.
#ifndef PITH_ENGINE_BLOCK_REREADER_H_
#define PITH_ENGINE_BLOCK_REREADER_H_

#include <cstdint>
#include <optional>

#include "engine/engine_core.h"
#include "engine/second_reader.h"
#include "engine/sequence.h"
#include "engine/shrinker.h"
#include "pith/types.h"

namespace pith {

class BlockRereader {
 public:
  BlockRereader(EngineCore& core, Shrinker& shrinker, SecondReader& reader)
      : core_(core), shrinker_(shrinker), reader_(reader) {}

  // Before rows are read into a sequence that repeats blocks. kOutOfBudget: they do not fit beside what must stay;
  // kCancelled.
  Status MakeRoomForRows(Sequence& sequence, int num_rows);
  // At the end of a prompt: down to what the share keeps. echoed: the queries of the block that was read last, where
  // it was judged by them.
  Status Settle(Sequence& sequence, ReferenceQueries echoed = {});
  // Behind a block that was judged by its own queries, while these are there, where entries stand in for what goes: for
  // as many rows as are read at once. Where there are no such queries, the next block does it.
  Status MakeRoomBehind(Sequence& sequence, ReferenceQueries echoed);
  // Rows between two looks at the room that is left.
  int RowsAtOnce(const Sequence& sequence) const;

 private:
  // Entries of each head that there is room for.
  int Room(const Sequence& sequence) const;
  // Down to so many entries of each head; none: to what is left of a prompt.
  Status Evict(Sequence& sequence, std::optional<int> keep, ReferenceQueries echoed);
  // What was not repeated yet. After an error that eviction can do without, it counts as not looked at. Of
  // sequence.repeat the queries are left.
  Status Repeat(Sequence& sequence);
  // Into the pages.
  void Note(Sequence& sequence, int32_t from);

  EngineCore& core_;
  Shrinker& shrinker_;
  SecondReader& reader_;
};

// The first token of a sequence that repeats blocks whose entries were not judged yet; all behind it are alike.
int32_t FirstNotRepeated(const EngineCore& core, const Sequence& sequence);

}  // namespace pith

#endif  // PITH_ENGINE_BLOCK_REREADER_H_
