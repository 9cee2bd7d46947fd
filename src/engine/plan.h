// How a byte budget becomes pages, a block size and entries per kv head.
#ifndef PITH_ENGINE_PLAN_H_
#define PITH_ENGINE_PLAN_H_

#include <cstddef>
#include <vector>

#include "cache/kv_cache.h"
#include "engine/engine.h"
#include "engine/query_moments.h"
#include "host/model.h"
#include "pith/types.h"

namespace pith {

// A layer's heads and the pages of their entries.
struct PlannedLayer {
  int num_kv_heads = 0;
  PageLayout layout;
};

struct MemoryPlan {
  size_t budget_bytes = 0;
  size_t block_bytes = 0;      // libllama's own KV memory
  size_t recurrent_bytes = 0;
  size_t moment_bytes = 0;   // of all sequences' queries, where a recipe reads them
  size_t num_pages = 0;      // of the format in which entries arrive
  size_t num_low_pages = 0;  // of the low format that full pages go to, if there is one
  int block_tokens = 0;
  int keep_entries = 0;   // C: per kv head after an eviction
  int slack_entries = 0;  // a head may grow to C + slack before the next eviction (decode)
};

// What the plan needs to know of a recipe.
struct EvictionStyle {
  bool evicts = true;
  bool in_layer = true;  // a layer evicts right after its own attention, so one layer's block is in flight
  bool cascades = false;  // layers evict together whenever the block of so many is in flight; a token is evicted at its end
  int layers_in_flight = 1;
  bool ragged = true;    // heads end with different numbers of entries, so each may waste a page
};

// Bytes that hold a block on its way into the cache. Where rows come to us before libllama stores
// them, those of one layer; otherwise libllama's own KV memory of all layers, which it pads to 256 cells.
size_t BlockBytes(const ModelInfo& info, int block_tokens);

// Bytes that the f16 cache of one token takes, over all layers (as `--kv-budget 20%` counts).
size_t FullTokenBytes(const ModelInfo& info);

// What the moments of a sequence's queries are of.
QueryMoments::Shape MomentsOf(const ModelInfo& info);

// options.num_ctx must be set. kOutOfBudget: the budget does not hold one block; the message names the least that does.
Result<MemoryPlan> PlanMemory(const ModelInfo& info, const std::vector<PlannedLayer>& layers, const EvictionStyle& style,
                              const EngineOptions& options);

// What an engine of these options takes for its plan: the layers' pages in the format in which entries arrive, and how
// its recipe evicts. num_columns: what recipes remember for each entry of a global layer.
std::vector<PlannedLayer> LayersOf(const ModelInfo& info, PageFormat entry_format, int num_columns);
// The same as the cache wants them.
std::vector<CacheLayer> CacheLayersOf(const ModelInfo& info);
EvictionStyle StyleOf(const ModelInfo& info, const EngineOptions& options);

// Where the bytes of a budget go, for one sequence. With a low format, what is new waits in pages of f16.
struct BudgetSplit {
  PageFormat format;           // of full pages
  int block_tokens = 0;
  int keep_entries = 0;        // per kv head of a global layer
  size_t block_bytes = 0;      // rows of a block on their way into the cache, or libllama's own KV memory
  size_t in_flight_bytes = 0;  // pages that a block takes before the recipe has evicted; those of entries that wait
  size_t recurrent_bytes = 0;
  size_t table_bytes = 0;      // and the moments of queries
  size_t window_bytes = 0;     // pages of sliding and chunked layers
  size_t global_bytes = 0;     // pages of the layers that recipes act on
  size_t unused_bytes = 0;     // less than a page for each head
};

// As PlanMemory(), for the format and the recipe of the options (`full` if empty); the parts add up to the budget.
Result<BudgetSplit> SplitBudget(const ModelInfo& info, const EngineOptions& options);

}  // namespace pith

#endif  // PITH_ENGINE_PLAN_H_
