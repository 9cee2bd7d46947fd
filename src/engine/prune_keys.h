// Keys lose channels, when a prompt is whole and what stays of it is chosen (act=prune).
#ifndef PITH_ENGINE_PRUNE_KEYS_H_
#define PITH_ENGINE_PRUNE_KEYS_H_

#include <cstdint>
#include <vector>

#include "engine/engine_core.h"
#include "engine/sequence.h"
#include "pith/types.h"
#include "policy/act/think.h"

namespace pith {

// Of each global layer and kv head: the channels that keys keep, ascending.
using ChosenChannels = std::vector<std::vector<std::vector<uint16_t>>>;

// By the last queries of `source` and the keys that `target` holds.
ChosenChannels ChooseChannels(EngineCore& core, const Sequence& source, const Sequence& target,
                              const PruneOptions& prune);
// Old pages lose all other channels; those of a sequence that has lost some already lose the same. kOutOfBudget.
Status PruneKeys(EngineCore& core, const Sequence& target, const PruneOptions& prune, const ChosenChannels& chosen);

}  // namespace pith

#endif  // PITH_ENGINE_PRUNE_KEYS_H_
