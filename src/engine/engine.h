// Sequences of one model under one KV budget.
//
// Threads: one thread uses an engine; Cancel() may be called from any.
#ifndef PITH_ENGINE_ENGINE_H_
#define PITH_ENGINE_ENGINE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/thread_governor.h"
#include "host/model.h"
#include "kernels/page_layout.h"
#include "pith/types.h"
#include "policy/policy.h"

namespace pith {

enum class CompressMode : uint8_t {
  kBlock,  // evict after every block, so that the peak is the budget
  kAfter,  // prefill everything, then compress once (as most papers do); the peak is the whole prompt
};

struct EngineOptions {
  int num_ctx = 0;            // positions a sequence may reach; 0: the model's trained context
  size_t budget_bytes = 0;    // 0: the f16 cache of num_ctx plus everything around it
  int block_tokens = 0;       // prefill block; 0: chosen from the budget (up to 512)
  int num_threads = 0;        // 0: physical cores
  bool adapt_threads = true;  // decode on fewer while another process takes cores (thread_governor.h); no result changes
  StepClock* clock = nullptr;  // of that, for tests; null: the system's
  // Of the cache. Formats whose keys are in groups (q4, q2) hold what fills whole pages; newer entries are f16
  // until they do. A recipe's own format takes the place of f16.
  PageFormat format;
  CompressMode compress = CompressMode::kBlock;
  Recipe recipe;              // ParseRecipe("full") if empty
  int max_sequences = 1;
  uint64_t seed = 0;
  // Entries per kv head to keep, in place of what the budget would hold (0: from the budget).
  int keep_entries = 0;
  // Of each layer at least so many of the last queries are remembered, for AttentionOutputs().
  int keep_queries = 0;
  // Recipes that will be given to Compress(): their needs are gathered during prefill.
  std::vector<Recipe> later_recipes;
};

struct KvStats {
  size_t budget_bytes = 0;
  size_t used_bytes = 0;
  size_t peak_bytes = 0;
  size_t block_bytes = 0;     // libllama's own block buffer (in used_bytes)
  size_t page_bytes = 0;      // pages in use
  size_t table_bytes = 0;
  size_t recurrent_bytes = 0;
  int64_t entries = 0;        // over global layers and kv heads, all sequences
  int64_t entries_seen = 0;   // appended to global layers so far
  double kept_fraction = 1;   // entries / entries_seen
  int keep_entries = 0;       // per kv head, what the budget holds between evictions
  int block_tokens = 0;
  PageFormat format;          // of full pages
};

struct EngineTimes {  // seconds since creation
  double attention = 0;
  double policy = 0;
  double total = 0;  // inside libllama's decode, attention and policy included
};

using SequenceId = int32_t;

// What the owner of a saved sequence wants back with it; the engine does not look at it.
struct SessionNote {
  std::vector<int32_t> tokens;
  std::string text;
};
struct RestoredSequence {
  SequenceId sequence = 0;
  SessionNote note;
  bool has_logits = false;  // logits() works at once: it was saved right after its own last block
};

// What CompressForks() changes.
struct CompressTarget {
  SequenceId sequence = 0;
  double keep_fraction = 1;  // of the source's entries, (0, 1]
};

// Called after each block with the tokens done; returning false cancels.
using Progress = std::function<bool(size_t done, size_t total)>;

class Engine {
 public:
  static Result<std::unique_ptr<Engine>> Create(std::shared_ptr<HostModel> model, const EngineOptions& options);
  virtual ~Engine() = default;

  virtual Result<SequenceId> NewSequence() = 0;
  // A copy that shares pages until one of the two writes.
  virtual Result<SequenceId> Fork(SequenceId sequence) = 0;
  virtual void Free(SequenceId sequence) = 0;

  // Writes a sequence to a file: its cache as it lies, positions, pins, recipe state, recurrent state and last logits.
  // kIo; kUnsupported: a hybrid whose state libllama writes in an unknown form.
  virtual Status Save(SequenceId sequence, const std::string& path, const SessionNote& note) = 0;
  // A new sequence from such a file, which goes on with the same bits. The model, recipe and format must be the same;
  // budget and context may differ if it fits. kNotFound, kIo, kCorrupt, kInvalidArgument, kOutOfBudget.
  virtual Result<RestoredSequence> Restore(const std::string& path) = 0;

  // Appends tokens in blocks. all_logits: [tokens.size(), vocab] of every position, else none of them is
  // wanted but the last (logits() below). pin: these tokens are never dropped (system prompt).
  virtual Status Prefill(SequenceId sequence, std::span<const int32_t> tokens, bool pin = false,
                         std::vector<float>* all_logits = nullptr, const Progress& progress = {}) = 0;

  // Appends the same tokens to several sequences, which share the blocks and so the passes over the weights.
  // logits: [sequences, tokens.size() - first_row, vocab], of the positions from first_row on.
  virtual Status PrefillTogether(std::span<const SequenceId> sequences, std::span<const int32_t> tokens, size_t first_row,
                                 std::vector<float>& logits, const Progress& progress = {}) = 0;

  // True: what Prefill reads from now on is not the end of its prompt. The prefill option of a recipe
  // (prefill=criti) leaves the last segment of a prompt whole, and so must know where that is.
  virtual void SetPromptContinues(bool on) = 0;

  // Appends one token, evicting as the recipe says. Allocates nothing.
  virtual Status Decode(SequenceId sequence, int32_t token) = 0;

  // One token for each of several sequences, sharing the weights' pass.
  virtual Status DecodeBatch(std::span<const SequenceId> sequences, std::span<const int32_t> tokens) = 0;

  // [vocab], of the last token given to that sequence. Valid until the next call of the engine.
  virtual std::span<const float> logits(SequenceId sequence) const = 0;

  // For benchmarks: an empty sequence becomes one that has read num_tokens tokens, with made-up entries in its global
  // layers: all of them, or as many as the recipe keeps between evictions on average, spread evenly over the positions.
  // kUnsupported: the model has other layers too.
  virtual Status FillForBenchmark(SequenceId sequence, int num_tokens) = 0;

  // No eviction until turned on again (teacher forcing after Compress()).
  virtual void SetEviction(bool on) = 0;

  // Compresses a prefilled sequence once: `keep` entries per kv head if it were uniform. Returns the share
  // of entries that stay. Of a recipe with a format, keep_fraction is the share of bytes: so many entries as they
  // hold in that format, those of an incomplete page in f16.
  virtual Result<double> Compress(SequenceId sequence, const Recipe& recipe, double keep_fraction) = 0;

  // The same for several forks of one sequence (which may be among them), whose entries are scored once. Tokens that
  // a fork has read since then stay. Returns the share of the source's entries that each keeps.
  virtual Result<std::vector<double>> CompressForks(SequenceId source, const Recipe& recipe,
                                                    std::span<const CompressTarget> targets) = 0;

  // Positions of the entries that one kv head holds, ascending. `layer` counts the layers with a global cache.
  virtual std::vector<int32_t> EntryPositions(SequenceId sequence, int layer, int kv_head) const = 0;

  // What the last num_queries tokens that `queries_of` has read get from attention over the entries of `entries_of`,
  // a fork that has read as far, perhaps with entries dropped: [num_queries, H, Dv], before the output projection.
  // num_queries: at most EngineOptions::keep_queries. `layer` counts the layers with a global cache.
  virtual Result<std::vector<float>> AttentionOutputs(SequenceId queries_of, SequenceId entries_of, int layer,
                                                      int num_queries) = 0;

  // Bytes of the sequence's keys and values in global layers, over those of all its tokens in f16.
  virtual double KeptBytes(SequenceId sequence) const = 0;

  virtual int num_tokens(SequenceId sequence) const = 0;  // position of the next token
  virtual KvStats stats() const = 0;
  virtual EngineTimes times() const = 0;
  virtual int decode_threads() const = 0;  // of the next token
  virtual const HostModel& model() const = 0;

  // What is being read ends with kCancelled, and so does whatever comes until ClearCancel().
  void Cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  void ClearCancel() { cancelled_.store(false, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

 protected:
  std::atomic<bool> cancelled_{false};
};

}  // namespace pith

#endif  // PITH_ENGINE_ENGINE_H_
