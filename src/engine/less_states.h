// act=less on the cache of one head: what is dropped joins its state (policy/act/less.h).
#ifndef PITH_ENGINE_LESS_STATES_H_
#define PITH_ENGINE_LESS_STATES_H_

#include <cstdint>
#include <span>

#include "cache/kv_cache.h"
#include "host/model.h"
#include "kernels/feature_maps.h"
#include "pith/types.h"
#include "policy/act/less.h"

namespace pith {

// HeadCache::Keep(), after which all else is in the head's state, by its key map. kOutOfBudget: nothing has changed.
Status KeepAndAbsorb(HeadCache& head, std::span<const int32_t> kept, const kernels::FeatureMap& map);

// Bytes of the states of one sequence.
size_t StateBytes(const ModelInfo& info, const LessMaps& maps);
// The same in f16 entries of each head of the global layers.
double StateEntries(const ModelInfo& info, const LessMaps& maps);

// kUnsupported: no maps are for such a model.
Status CheckCanHaveMaps(const ModelInfo& info);
// One sentence where the maps are not for this model's layers.
Status CheckMaps(const ModelInfo& info, const LessMaps& maps);

}  // namespace pith

#endif  // PITH_ENGINE_LESS_STATES_H_
