// A second reading (engine/repeat.h) that has come so far: it goes on between steps of other sequences.
#ifndef PITH_ENGINE_SECOND_READING_H_
#define PITH_ENGINE_SECOND_READING_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/layer_ops.h"
#include "engine/repeat.h"
#include "engine/sequence.h"
#include "policy/policy.h"

namespace pith {

struct SecondReading {
  ResolvedRecipe recipe;  // whose policy observes
  EntryGuard part;        // of the sequence's tokens, those that are repeated
  std::shared_ptr<RepeatColumns> columns;
  int prefix = 0;
  int chunk = 0;  // tokens of a pass, beside its instruction

  RepeatPass pass;                 // that is under way, or was the last one
  std::vector<int32_t> tokens;     // of the pass
  size_t num_read = 0;             // of these
  std::unique_ptr<Sequence> fork;  // that reads them; null: no pass is under way
};

}  // namespace pith

#endif  // PITH_ENGINE_SECOND_READING_H_
