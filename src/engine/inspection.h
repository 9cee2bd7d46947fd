// What a sequence holds, for those who look: measurements, maps of conversations, statistics. Nothing changes.
//
// Layers are counted among those with a global cache. Where there is no such layer or head, nothing is returned.
#ifndef PITH_ENGINE_INSPECTION_H_
#define PITH_ENGINE_INSPECTION_H_

#include <cstdint>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "engine/engine_core.h"
#include "engine/sequence.h"
#include "engine/sequence_table.h"
#include "pith/types.h"

namespace pith {

// As Engine's functions of these names.
double KeptBytes(const EngineCore& core, const Sequence& sequence);
std::vector<float> EntryRows(const EngineCore& core, const Sequence& sequence, int global_layer, bool values);
std::vector<int32_t> EntryPositions(const EngineCore& core, const Sequence& sequence, int global_layer, int kv_head);
std::vector<float> Keys(const EngineCore& core, const Sequence& sequence, int global_layer, int kv_head, int32_t from,
                        int32_t to);
LayerQueries Queries(const EngineCore& core, const Sequence& sequence, int global_layer, int num_queries);
Result<std::vector<float>> AttentionOutputs(EngineCore& core, const Sequence& queries_of, const Sequence& entries_of,
                                            int global_layer, int num_queries);
Result<std::vector<std::vector<EntryView>>> EntriesAt(EngineCore& core, const Sequence& sequence, int32_t position);

// Of the sequence's last token, [vocab]; empty where the last block had none of its.
std::span<const float> LogitsOf(const EngineCore& core, const Sequence& sequence);

SequenceStats StatsOf(const EngineCore& core, const Sequence& sequence);
KvStats StatsOf(const EngineCore& core, const SequenceTable& table);

}  // namespace pith

#endif  // PITH_ENGINE_INSPECTION_H_
