// A run of rows of one block that belong to one sequence, and how it fares.
#ifndef PITH_ENGINE_ROW_GROUP_H_
#define PITH_ENGINE_ROW_GROUP_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

#include "engine/sequence.h"
#include "pith/types.h"

namespace pith {

class StatisticsUndo;

struct RowGroup {
  Sequence* sequence = nullptr;
  int first_row = 0;
  int num_rows = 0;
  int num_sparse_rows = 0;  // first rows that may skip attention work (the prefill option); 0 while decoding
  int32_t start = 0;        // position of the first row
  int first_output = 0;     // of the block's logits rows
  int num_outputs = 0;
  size_t limit_bytes = 0;           // by which the user knows the budget that may be full
  bool pins = false;                // the rows are never dropped
  bool settles = false;             // they end a prompt: its sequence then holds no more than after an eviction
  bool began = false;               // the rows are in the block that runs
  bool cascades = false;            // layers are evicted from while the block is in the next ones
  bool evicts = false;              // from the layer at hand
  bool notes_queries = false;       // its ring holds queries of the rows
  bool changed = false;             // what the rows did to the sequence cannot be taken back
  StatisticsUndo* undo = nullptr;   // of what they do to statistics; null: nothing, or there is no room for it
  uint8_t out_of_pages = 0;         // a thread of the team found none; by atomic_ref
  std::optional<Error> error = {};  // nothing more happens to it

  bool failed() const { return error.has_value(); }
  void Fail(Error with) {
    if (!error) error = std::move(with);
  }
  // There is no page, or no byte, left for its sequence.
  void FailFull() { Fail(FullError()); }
  // Says what that means to the user, who may have asked for no eviction at all.
  Error FullError() const;
  Status status() const { return error ? Status(tl::unexpected<Error>(*error)) : Status(); }
};

}  // namespace pith

#endif  // PITH_ENGINE_ROW_GROUP_H_
