// What becomes of pages once a recipe has chosen what stays of a sequence: they are converted, and keys lose channels.
// By pieces, so that steps of others can come between.
#ifndef PITH_ENGINE_PAGE_CHANGES_H_
#define PITH_ENGINE_PAGE_CHANGES_H_

#include <cstdint>
#include <optional>

#include "engine/engine_core.h"
#include "engine/prune_keys.h"
#include "engine/sequence.h"
#include "pith/types.h"
#include "policy/act/think.h"

namespace pith {

struct PageChanges {
  std::optional<PageFormat> format = {};  // that full pages are converted to
  const PruneOptions* prune = nullptr;    // outlives it
  ChosenChannels channels = {};           // judged by keys as they were read
  int num_judged = 0;                     // global layers
  int num_converted = 0;                  // layers
  int num_pruned = 0;                     // global layers

  bool any() const { return format || prune != nullptr; }
};

// Goes on with `target`, judged by the last queries of `source`, by some layers: as many as hold `most_entries`, at
// least one. True: that was the last piece. kOutOfBudget: some pages are as they were.
Result<bool> ChangeSomePages(EngineCore& core, const Sequence& source, const Sequence& target, int64_t most_entries,
                             PageChanges& changes);

}  // namespace pith

#endif  // PITH_ENGINE_PAGE_CHANGES_H_
