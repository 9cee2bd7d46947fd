// Sequences of one model under one KV budget.
//
// Threads: one thread uses an engine; Cancel() may be called from any.
#ifndef PITH_ENGINE_ENGINE_H_
#define PITH_ENGINE_ENGINE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/thread_governor.h"
#include "cache/coded_entries.h"
#include "host/model.h"
#include "kernels/page_layout.h"
#include "pith/types.h"
#include "policy/policy.h"

namespace pith {

enum class CompressMode : uint8_t {
  kBlock,  // evict after every block, so that the peak is the budget
  kAfter,  // prefill everything, then compress once (as most papers do); the peak is the whole prompt
};

// One sequence's own: what its cache keeps, in which format, in how many bytes.
struct SequenceOptions {
  int num_ctx = 0;            // positions that it may reach; 0: the engine's
  Recipe recipe;              // ParseRecipe("full") if empty
  // Formats whose keys are in groups (q4, q2) hold what fills whole pages; newer entries are f16 until they do. A
  // recipe's own format takes the place of f16.
  PageFormat format;
  CompressMode compress = CompressMode::kBlock;
  uint64_t seed = 0;
  // Entries per kv head to keep, in place of what the bytes would hold (0: from the bytes).
  int keep_entries = 0;
  // Of each layer at least so many of the last queries are remembered, for AttentionOutputs().
  int keep_queries = 0;
  // Further recipes for which statistics are gathered while text is read, so that Compress() can use them later.
  // Others may be given to Compress(), too, unless they need what nobody has noted (every query, a longer window).
  std::vector<Recipe> later_recipes;
  // Bytes between steps. floor: guaranteed, whatever others do; ceiling: what it may borrow while nobody else claims
  // it. 0: an equal share of the engine's budget, for both. A sequence whose recipe drops entries gives borrowed bytes
  // back when they are claimed.
  size_t floor_bytes = 0;
  size_t ceiling_bytes = 0;
};

// For tests: makes steps fail.
class StepFaults {
 public:
  virtual ~StepFaults() = default;
  // Before a layer takes the rows of a sequence.
  virtual bool FailsAt(int32_t sequence, int layer) = 0;
};

// The sequence options are those of NewSequence() without any.
struct EngineOptions : SequenceOptions {
  size_t budget_bytes = 0;    // 0: the f16 cache of num_ctx for max_sequences, plus everything around it
  int block_tokens = 0;       // rows of a step at most; 0: chosen from the budget (up to 512)
  int num_threads = 0;        // 0: physical cores
  bool adapt_threads = true;  // fewer while other processes take cores (base/thread_governor.h); no result changes
  StepClock* clock = nullptr;  // of that, for tests; null: the system's
  StepFaults* faults = nullptr;  // for tests
  int max_sequences = 1;
  // Places for more sequences, which no step has rows of beside max_sequences others: prefixes that wait to be taken up
  // again. They get no share, but live in the bytes that their owner gives them (SetBudget()).
  int resting_sequences = 0;
  // How entries are saved: coded, so that they come back within its bounds. None: as they lie.
  std::optional<CodedForm> saved;
};

// kExact: whatever EngineOptions::saved says.
enum class SavedForm : uint8_t { kOptions, kExact };

struct KvStats {
  size_t budget_bytes = 0;
  size_t used_bytes = 0;
  size_t peak_bytes = 0;
  size_t block_bytes = 0;     // libllama's own block buffer (in used_bytes)
  size_t page_bytes = 0;      // pages in use
  size_t table_bytes = 0;     // tables, recent queries, tokens, kept logits
  size_t recurrent_bytes = 0;
  size_t promised_bytes = 0;  // guaranteed to sequences and steps, and not in use
  int64_t entries = 0;        // over global layers and kv heads, all sequences
  int64_t entries_seen = 0;   // appended to global layers so far
  double kept_fraction = 1;   // entries / entries_seen
  int keep_entries = 0;       // per kv head, what a share of the budget holds between evictions
  int block_tokens = 0;
  PageFormat format;          // of full pages, with the engine's own options
};

struct SequenceStats {
  size_t used_bytes = 0;      // pages of its own and what is remembered beside them
  size_t floor_bytes = 0;
  size_t ceiling_bytes = 0;
  int64_t entries = 0;        // as in KvStats
  int64_t entries_seen = 0;
  double kept_fraction = 1;
  int keep_entries = 0;
  int num_tokens = 0;
  int num_pinned = 0;
  PageFormat format;
  std::string recipe;
};

struct EngineTimes {  // seconds since creation
  double attention = 0;
  double policy = 0;
  double total = 0;  // inside libllama's decode, attention and policy included
};

using SequenceId = int32_t;

// Tokens that a step appends to one sequence.
struct StepItem {
  SequenceId sequence = -1;
  std::span<const int32_t> tokens;
  bool pin = false;  // these tokens are never dropped
  // Logits of every token are appended here, [tokens.size(), vocab]; null: only those of the last one are kept
  // (Engine::logits()).
  std::vector<float>* all_logits = nullptr;
  // The same of hidden states behind the last norm, [tokens.size(), ModelInfo::hidden_dim]. libllama then keeps logits
  // of every row of the step.
  std::vector<float>* all_hidden = nullptr;
};

// What it would take to read a prompt, and whether it is there.
struct Admission {
  size_t steady_bytes = 0;   // that the sequence holds when it has read the prompt
  size_t step_bytes = 0;     // more while a step runs
  size_t reread_bytes = 0;   // more while Compress() or ReadAgain() read the prompt again
  size_t free_bytes = 0;     // neither in use nor promised, once borrowed bytes are given back
  bool fits = false;         // now
  size_t missing_bytes = 0;  // what others would have to free first
};

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

// What Splice() can take from a sequence.
struct SpliceSource {
  std::vector<std::pair<int32_t, int32_t>> ranges = {};  // tokens [from, to) that all heads hold, ascending
  int reread = 0;  // last tokens of a prompt that are better read: its recipe looks at so many queries
};

// What CompressForks() changes.
struct CompressTarget {
  SequenceId sequence = 0;
  double keep_fraction = 1;  // of the source's entries, (0, 1]
};

// The last queries of one layer, and what attention there does with them.
struct LayerQueries {
  int num_heads = 0, dim = 0;
  std::vector<float> rows = {};  // [T, H, D] after RoPE, as f16 holds them
  float scale = 1, soft_cap = 0;
};

// What a kv head holds of one token.
struct EntryView {
  bool held = false;    // false: nothing, and nothing else is said
  bool pinned = false;  // no recipe may drop it
  PageFormat format = {};
  int key_channels = 0;             // fewer than the head's where act=prune has taken some
  std::optional<float> score = {};  // by the running recipe, as it would judge now; higher stays. None: it does not
  float rank = 0;                   // of the head's entries, the share that scores lower
};

// Called after each block with the tokens done; returning false cancels.
using Progress = std::function<bool(size_t done, size_t total)>;

class Engine {
 public:
  static Result<std::unique_ptr<Engine>> Create(std::shared_ptr<HostModel> model, const EngineOptions& options);
  virtual ~Engine() = default;

  // kOutOfBudget: all places are taken, or the bytes that it asks for are not there. kInvalidArgument, kUnsupported:
  // its options cannot work with this model.
  virtual Result<SequenceId> NewSequence(const SequenceOptions& options) = 0;
  virtual Result<SequenceId> NewSequence() = 0;  // with the engine's own options
  // What NewSequence() and reading num_tokens tokens would take.
  virtual Result<Admission> Admit(const SequenceOptions& options, size_t num_tokens) const = 0;
  // Other bytes for a sequence (SequenceOptions), 0: an equal share. What is too much is dropped at once by a recipe
  // that drops. kOutOfBudget, and nothing has changed: its entries do not fit, or the floor cannot be had.
  virtual Status SetBudget(SequenceId sequence, size_t floor_bytes, size_t ceiling_bytes) = 0;
  // A copy that shares pages until one of the two writes, with a share of the budget of its own.
  virtual Result<SequenceId> Fork(SequenceId sequence) = 0;
  // Back to the first num_tokens tokens that it has read: the sequence is as if it had never read more, but for
  // rounding in blocks of other sizes. logits() is empty until it reads again, unless it stays where it is. 0 empties
  // any sequence. kInvalidArgument: it has not read so many. kUnsupported, with the reason, and nothing has changed:
  // what was read since then dropped, merged, converted or weighed entries that it would have to have back.
  virtual Status Rewind(SequenceId sequence, int num_tokens) = 0;
  // Where to go back to before a text is read whose first num_tokens tokens the sequence has read already: the most for
  // which Rewind() works and the sequence is the same again as soon as those num_tokens tokens are there. (Recipes that
  // look at the last queries want these read once more.) 0: nothing can stay, or there is no such sequence.
  virtual int RewindTarget(SequenceId sequence, int num_tokens) const = 0;
  // Tokens [from, to) of `source` come next in `target`, which does not read them: entries are copied, keys turned to
  // the positions that they have there (llama.cpp's --cache-reuse). Of what stands before them they know what stood
  // before them in `source`, so that this is no reading but as much like one as the two beginnings are. pin: they are
  // never dropped. kUnsupported, with the reason: the model's keys cannot be turned so (sliding windows, recurrent
  // layers, positions that are no rotation), the source has dropped some of the entries, the recipe weighs what every
  // query paid, or it would have to drop before it has seen new queries. kInvalidArgument, kOutOfBudget. After an error
  // nothing has changed. O(entries), on all threads; block_tokens() at once find the room that a step's rows find.
  virtual Status Splice(SequenceId target, SequenceId source, int from, int to, bool pin) = 0;
  virtual SpliceSource Spliceable(SequenceId sequence) const = 0;
  virtual void Free(SequenceId sequence) = 0;

  // Writes a sequence to a file: its cache as it lies, or coded (EngineOptions::saved), positions, pins, recipe state,
  // recurrent state and last logits. kIo; kUnsupported: a hybrid whose state libllama writes in an unknown form.
  virtual Status Save(SequenceId sequence, const std::string& path, const SessionNote& note,
                      SavedForm form = SavedForm::kOptions) = 0;
  // A new sequence from such a file, which goes on with the same bits unless it was coded. The model, recipe and format
  // must be the same; budget and context may differ if it fits. kNotFound, kIo, kCorrupt, kInvalidArgument,
  // kOutOfBudget.
  virtual Result<RestoredSequence> Restore(const std::string& path, const SequenceOptions& options) = 0;
  virtual Result<RestoredSequence> Restore(const std::string& path) = 0;
  // The same through memory: a sequence that makes room for others and comes back later. The first leaves the sequence
  // as it is; Free() it to have its bytes.
  virtual Result<std::vector<std::byte>> SaveToMemory(SequenceId sequence, const SessionNote& note,
                                                      SavedForm form = SavedForm::kOptions) = 0;
  virtual Result<RestoredSequence> RestoreFromMemory(std::span<const std::byte> saved,
                                                     const SequenceOptions& options) = 0;

  // One pass over the weights for rows of any sequences, prompts and single tokens mixed; evicts as each sequence's
  // recipe says. At most block_tokens() rows in all, a sequence at most once. statuses [items.size()]: a failure
  // concerns its own sequence alone, whose state is what it was before, unless the sentence says that it is lost. What
  // fails within a layer changes no bit of the others; what is refused before leaves fewer rows, and products of up to
  // 40 rows are computed in another way than those of more. kInvalidArgument, kOutOfBudget, kCancelled
  // (Cancel(sequence)), kIo. Models with recurrent layers take one sequence after the other inside. Allocates nothing
  // for single tokens.
  virtual void Step(std::span<const StepItem> items, std::span<Status> statuses) = 0;
  virtual int block_tokens() const = 0;

  // Appends tokens in blocks. all_logits: [tokens.size(), vocab] of every position, else none of them is
  // wanted but the last (logits() below). pin: these tokens are never dropped (system prompt).
  virtual Status Prefill(SequenceId sequence, std::span<const int32_t> tokens, bool pin = false,
                         std::vector<float>* all_logits = nullptr, const Progress& progress = {}) = 0;

  // Appends the same tokens to several sequences, which share the blocks and so the passes over the weights.
  // logits: [sequences, tokens.size() - first_row, vocab], of the positions from first_row on.
  virtual Status PrefillTogether(std::span<const SequenceId> sequences, std::span<const int32_t> tokens,
                                 size_t first_row, std::vector<float>& logits, const Progress& progress = {}) = 0;

  // True: what the sequence reads from now on is not the end of its prompt. The prefill option of a recipe
  // (prefill=criti) leaves the last segment of a prompt whole, and so must know where that is.
  virtual void SetPromptContinues(SequenceId sequence, bool on) = 0;

  // Appends one token, evicting as the recipe says. Allocates nothing.
  virtual Status Decode(SequenceId sequence, int32_t token) = 0;

  // One token for each of several sequences, sharing the weights' pass. The first failure of any.
  virtual Status DecodeBatch(std::span<const SequenceId> sequences, std::span<const int32_t> tokens) = 0;

  // [vocab], of the last token given to that sequence. Valid until the next call of the engine; empty where the last
  // step was one of others.
  virtual std::span<const float> logits(SequenceId sequence) const = 0;

  // For benchmarks: an empty sequence becomes one that has read num_tokens tokens, with made-up entries in its global
  // layers: all of them, or as many as the recipe keeps between evictions on average, spread evenly over the positions.
  // kUnsupported: the model has other layers too.
  virtual Status FillForBenchmark(SequenceId sequence, int num_tokens) = 0;

  // No eviction of this sequence until turned on again (teacher forcing after Compress()).
  virtual void SetEviction(SequenceId sequence, bool on) = 0;

  // Compresses what a sequence has read, once or again: `keep` entries per kv head if it were uniform. Returns the
  // share of entries that stay. Of a recipe with a format, keep_fraction is the share of bytes: so many entries as they
  // hold in that format, those of an incomplete page in f16.
  // The recipe may be one that the sequence was not made with, unless it needs what nobody has noted: kInvalidArgument.
  virtual Result<double> Compress(SequenceId sequence, const Recipe& recipe, double keep_fraction) = 0;
  // What such a Compress(), or EndTurn() of a sequence whose recipe has turns=, will have to read again, in pieces
  // between steps: at most `rows` rows of it. True: nothing is left to be read. It begins anew when the sequence
  // changes in between. Ends the validity of all logits. Errors of Compress(); after one of them, and after Free(),
  // nothing of it is left.
  virtual Result<bool> ReadAgain(SequenceId sequence, const Recipe& recipe, int rows) = 0;
  // Compress() by a piece, between steps of other sequences, which so wait for no more than some layers, or one kv head
  // of each thread where entries are fitted (act=residue). True: that was the last one, and the sequence holds what
  // Compress() would have left of it. Until then it has less in some layers than in others, and whatever else is done
  // with it leaves it so. What is to be read again is read first (ReadAgain()), what must be converted or pruned comes
  // last, some layers in a piece. What is known between two pieces is part of the sequence's bytes; where these have no
  // room for it, the rest comes at once. Errors of Compress().
  virtual Result<bool> CompressOn(SequenceId sequence, const Recipe& recipe, double keep_fraction) = 0;
  // Compress() for the entries of positions [from, to) alone; keep_fraction is of these. All others stay as they are.
  // The recipe sees nothing of them but what its window of queries paid.
  virtual Result<double> CompressPart(SequenceId sequence, const Recipe& recipe, double keep_fraction, int32_t from,
                                      int32_t to) = 0;

  // The turn of a conversation that was read since the last call is over: a recipe with turns= compresses it. Others
  // do nothing. kOutOfBudget and others of CompressPart(): the turn stays as it is, and goes on.
  virtual Status EndTurn(SequenceId sequence) = 0;
  // EndTurn() by a piece, between steps of other sequences, as CompressOn() is Compress() by a piece. True: that was
  // the last one.
  virtual Result<bool> EndTurnOn(SequenceId sequence) = 0;
  // What a step of so many rows would do first for a sequence whose recipe has turns=, where there is no room for them:
  // the running turn is compressed, or the oldest are dropped. By a piece, as EndTurnOn(). True: there is room, or
  // nothing more can be done for it. Others have room.
  virtual Result<bool> MakeRoomOn(SequenceId sequence, int rows) = 0;
  virtual bool HasRoomFor(SequenceId sequence, int rows) = 0;
  // A text that stands for what will be asked of the sequence, for recipes with score=guide; empty: the newest tokens.
  virtual Status SetGuide(SequenceId sequence, std::span<const int32_t> tokens) = 0;
  // All that it has read, where its recipe reads something again; else nothing.
  virtual std::vector<int32_t> Tokens(SequenceId sequence) const = 0;
  // Keys of the entries of positions [from, to) in one kv head, after RoPE, [entries, D]. `layer` as in
  // EntryPositions(). Nothing where there is no such head.
  virtual std::vector<float> Keys(SequenceId sequence, int layer, int kv_head, int32_t from, int32_t to) const = 0;

  // Compress() for several forks of one sequence (which may be among them), whose entries are scored once. Tokens that
  // a fork has read since then stay. Returns the share of the source's entries that each keeps.
  virtual Result<std::vector<double>> CompressForks(SequenceId source, const Recipe& recipe,
                                                    std::span<const CompressTarget> targets) = 0;

  // Positions of the entries that one kv head holds, ascending; none where there is no such head. `layer` counts the
  // layers with a global cache.
  // Keys after RoPE, or values, of all entries of a layer that recipes act on, head by head and in the order of time:
  // [kv heads, entries, channels].
  virtual std::vector<float> EntryRows(SequenceId sequence, int layer, bool values) const = 0;
  virtual std::vector<int32_t> EntryPositions(SequenceId sequence, int layer, int kv_head) const = 0;

  // Of each layer with a global cache and kv head, what it holds of the token at `position`. Judging costs what an
  // eviction does, but for what goes. kInvalidArgument: it has not been read.
  virtual Result<std::vector<std::vector<EntryView>>> EntriesAt(SequenceId sequence, int32_t position) = 0;

  // What the last num_queries tokens that `queries_of` has read get from attention over the entries of `entries_of`,
  // a fork that has read as far, perhaps with entries dropped: [num_queries, H, Dv], before the output projection.
  // num_queries: at most EngineOptions::keep_queries. `layer` counts the layers with a global cache.
  virtual Result<std::vector<float>> AttentionOutputs(SequenceId queries_of, SequenceId entries_of, int layer,
                                                      int num_queries) = 0;

  // Of the last num_queries tokens, at most EngineOptions::keep_queries; fewer where fewer are known. `layer` counts
  // the layers with a global cache. No rows where there is no such sequence or layer.
  virtual LayerQueries Queries(SequenceId sequence, int layer, int num_queries) const = 0;

  // Bytes of the sequence's keys and values in global layers, over those of all its tokens in f16.
  virtual double KeptBytes(SequenceId sequence) const = 0;

  // Of a sequence that there is not: 0, and empty statistics.
  virtual int num_tokens(SequenceId sequence) const = 0;  // position of the next token
  virtual KvStats stats() const = 0;
  virtual SequenceStats stats(SequenceId sequence) const = 0;
  virtual EngineTimes times() const = 0;
  virtual int decode_threads() const = 0;  // of the next token
  virtual const HostModel& model() const = 0;
  // Those of Create(), with what was left open filled in, but for the budget and the block (stats(), block_tokens()).
  virtual const EngineOptions& options() const = 0;

  // What is being read ends with kCancelled, and so does whatever comes until ClearCancel(). Text that a recipe reads
  // block by block stays up to the last whole block. From any thread.
  void Cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  void ClearCancel() { cancelled_.store(false, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  // The running step gives this sequence up within a layer: its item ends with kCancelled, and nothing can be read into
  // it any more unless the step changed nothing of it; other sequences go on. From any thread; the sequence's owner
  // frees it.
  virtual void Cancel(SequenceId sequence) = 0;

 protected:
  std::atomic<bool> cancelled_{false};
};

}  // namespace pith

#endif  // PITH_ENGINE_ENGINE_H_
