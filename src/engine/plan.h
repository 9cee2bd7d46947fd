// How a byte budget becomes pages, a block size and entries per kv head.
#ifndef PITH_ENGINE_PLAN_H_
#define PITH_ENGINE_PLAN_H_

#include <cstddef>
#include <memory>
#include <vector>

#include "cache/kv_cache.h"
#include "engine/engine.h"
#include "engine/query_moments.h"
#include "engine/resolved.h"
#include "host/model.h"
#include "pith/types.h"

namespace pith {

// Where none is dropped (act=demote): how many entries of a head may be in the high format.
struct Demotion {
  bool on = false;
  double share = 1;                     // at most
  double bytes = 0;                     // of a head's full pages
  double high_page = 0, low_page = 0;   // bytes of a page
  double f16_entries = 0;               // whose bytes all entries may take; 0: as pages allow
  double high_cost = 1, low_cost = 0;   // of an entry, in those
  int slack = 0;                        // by which a head may grow before the next time
  int whole = 0;                        // of latents: the first and the newest entries, beside whom the share counts

  // That bytes hold of n entries.
  double MostHigh(double n) const;
  // Of n entries, after they were judged.
  int HighEntries(double n) const;
};

// What one sequence keeps of the bytes that are its own between steps.
struct SharePlan {
  size_t fixed_bytes = 0;  // tables of heads, moments and recent queries, tokens to be read again
  size_t scratch_bytes = 0;  // what the recipe computes with while it judges a layer, beyond what is free; undo_bytes
  size_t undo_bytes = 0;     // what statistics were before a step (StatisticsUndo)
  int keep_entries = 0;    // C: per kv head after an eviction; 0: the bytes hold nothing
  int slack_entries = 0;   // a head may grow to C + slack before the next eviction (decode)
  Demotion demotion = {};  // on: C is all that fits, and these are judged instead
};

struct MemoryPlan {
  size_t budget_bytes = 0;
  size_t block_bytes = 0;      // libllama's own KV memory
  size_t recurrent_bytes = 0;
  size_t flight_bytes = 0;   // pages that a step's rows take before they are evicted, of whichever sequences
  size_t share_bytes = 0;    // of each sequence between steps
  size_t moment_bytes = 0;   // of all sequences' queries, where a recipe reads them; in the shares
  size_t num_pages = 0;      // of the format in which entries arrive, all sequences and the block in flight
  size_t num_low_pages = 0;  // of the low format that full pages go to, if there is one
  int block_tokens = 0;
  int keep_entries = 0;   // as in SharePlan
  int slack_entries = 0;
};

// Bytes that hold a block on its way into the cache. Where rows come to us before libllama stores
// them, those of one layer; otherwise libllama's own KV memory of all layers, which it pads to 256 cells.
size_t BlockBytes(const ModelInfo& info, int block_tokens);

// Bytes that the f16 cache of one token takes, over all layers (as `--kv-budget 20%` counts).
size_t FullTokenBytes(const ModelInfo& info);

// What the moments of a sequence's queries are of.
QueryMoments::Shape MomentsOf(const ModelInfo& info);

// What pages remember of each entry of a global layer, for the recipe and the later ones.
int CountColumns(const ResolvedSequence& sequence);

// Rows of queries that a sequence remembers of each layer.
int RingWindow(const ResolvedSequence& sequence);

// For max_sequences equal sequences, whose num_ctx must be set. Of the options, what concerns all of them.
// kOutOfBudget: the budget does not hold one block; the message names the least that does.
Result<MemoryPlan> PlanMemory(const ModelInfo& info, const ResolvedSequence& sequence, const EngineOptions& options);

// For one sequence in `bytes` of its own.
SharePlan PlanShare(const ModelInfo& info, const ResolvedSequence& sequence, size_t bytes);
// The least bytes with which PlanShare() keeps anything.
size_t LeastShare(const ModelInfo& info, const ResolvedSequence& sequence);

// Bytes with which a sequence holds everything of num_tokens tokens.
size_t ShareFor(const ModelInfo& info, const ResolvedSequence& sequence, int num_tokens);

// What a sequence that has read num_tokens tokens takes more while its recipe reads them again; 0: it reads nothing
// again.
size_t RereadBytes(const ModelInfo& info, const ResolvedSequence& sequence, int num_tokens);

// Pages that a step takes beside what sequences of this kind keep, before the recipe has evicted.
struct FlightShape {
  size_t heads = 0;           // whose rows are there at once
  size_t token_pages = 0;     // more, of each sequence
  size_t page_cost = 0;       // bytes of a page and its tables

  // num_rows rows of num_sequences sequences.
  size_t Bytes(int num_rows, int num_sequences) const { return Pages(num_rows, num_sequences) * page_cost; }
  size_t Pages(int num_rows, int num_sequences) const;
};
FlightShape FlightOf(const ModelInfo& info, const ResolvedSequence& sequence);

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
// Errors as of Resolve(), too.
Result<BudgetSplit> SplitBudget(const ModelInfo& info, const EngineOptions& options);

}  // namespace pith

#endif  // PITH_ENGINE_PLAN_H_
