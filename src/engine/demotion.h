// What becomes of pages that are done: full ones are converted to the low format or lose channels of their keys, and
// what has left a sliding window goes.
#ifndef PITH_ENGINE_DEMOTION_H_
#define PITH_ENGINE_DEMOTION_H_

#include <span>

#include "base/team.h"
#include "engine/engine_core.h"
#include "engine/row_group.h"
#include "engine/sequence.h"
#include "pith/types.h"

namespace pith {

// All threads, after a layer has taken a block's rows: its full pages, of the groups whose schedule is done with it.
// What a recipe that compares layers evicts is evicted before. Ends with a sync, unless nothing is to be done. A group
// for whose pages there is no room fails.
void DemoteLayer(EngineCore& core, std::span<RowGroup> groups, int layer, const Team& team);
// Between blocks, of all layers or `count` of them. kOutOfBudget: some pages are as they were.
Status DemoteAll(EngineCore& core, const Sequence& sequence);
Status DemoteLayers(EngineCore& core, const Sequence& sequence, int first, int count);
// Thread 0: pages of a sliding layer that no later row sees.
void DropOutOfWindow(EngineCore& core, RowGroup& group, int layer);

}  // namespace pith

#endif  // PITH_ENGINE_DEMOTION_H_
