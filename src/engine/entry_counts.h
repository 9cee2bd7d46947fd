// How many entries a sequence holds, and what more of them would take.
#ifndef PITH_ENGINE_ENTRY_COUNTS_H_
#define PITH_ENGINE_ENTRY_COUNTS_H_

#include <cstddef>
#include <cstdint>

#include "cache/kv_cache.h"
#include "engine/engine_core.h"
#include "engine/sequence.h"

namespace pith {

inline int32_t PositionOf(const HeadCache& head, int entry) {
  return head.layout_of(entry).positions(head.page_of(entry))[entry % kPageEntries];
}
// Entries of a head at positions below this one.
int EntriesBefore(const HeadCache& head, int32_t position);

// Over all kv heads of a layer of the model ...
int64_t EntriesOf(const EngineCore& core, const Sequence& sequence, int layer);
// ... and of all global ones.
int64_t GlobalEntriesOf(const EngineCore& core, const Sequence& sequence);
// Of these, what counts against a share: with act=demote those that were not lowered.
int64_t HeldOf(const EngineCore& core, const Sequence& sequence, int layer);
int64_t GlobalHeldOf(const EngineCore& core, const Sequence& sequence);
// Of all global layers, at positions [from, to).
int64_t EntriesWithin(const EngineCore& core, const Sequence& sequence, int32_t from, int32_t to);
// `entries` of all global layers, per kv head.
double PerHead(const EngineCore& core, int64_t entries);

// After an eviction, of each head that had so many.
int KeepOf(const Sequence& sequence, double entries);

// Bytes that so many more rows take: pages, copies of shared ones, tables that grow.
size_t BytesToExtend(const EngineCore& core, const Sequence& sequence, int num_rows);
// Of a sequence that converts full pages: what it will hold more when the rows are read, at most.
size_t BytesToKeep(const EngineCore& core, const Sequence& sequence, int num_rows);

}  // namespace pith

#endif  // PITH_ENGINE_ENTRY_COUNTS_H_
