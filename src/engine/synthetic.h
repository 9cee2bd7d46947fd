// Made-up cache entries, so that speed at a long context can be measured without reading one.
#ifndef PITH_ENGINE_SYNTHETIC_H_
#define PITH_ENGINE_SYNTHETIC_H_

#include <utility>
#include <vector>

#include "cache/kv_cache.h"
#include "pith/types.h"

namespace pith {

// Appends num_entries entries of random keys and values to every head of an empty sequence, at positions
// spread evenly over 0 .. num_positions - 1. column_initials: columns whose value of a new entry is not 0.
// kOutOfBudget: the pages do not suffice; the sequence is then good for nothing.
Status FillHeads(KvCache& cache, int cache_id, int num_entries, int num_positions,
                 const std::vector<std::pair<int, float>>& column_initials);

}  // namespace pith

#endif  // PITH_ENGINE_SYNTHETIC_H_
