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

// Of `count` global layers, by the last queries of `source` and the keys that `target` holds.
void ChooseChannels(EngineCore& core, const Sequence& source, const Sequence& target, const PruneOptions& prune,
                    int first, int count, ChosenChannels& chosen);
// These are the channels that keys keep; those of a sequence that has lost some already lose the same. kOutOfBudget.
Status BeginPruning(EngineCore& core, const Sequence& target, const PruneOptions& prune, const ChosenChannels& chosen);
// Then old pages lose all others, in `count` global layers. kOutOfBudget.
Status PruneKeys(EngineCore& core, const Sequence& target, int first, int count);

}  // namespace pith

#endif  // PITH_ENGINE_PRUNE_KEYS_H_
