// Requests of many clients over one engine: who is read, who decodes, who waits, which prefixes stay, all inside one
// budget of bytes.
//
// Threads: the scheduler runs the engine on a thread of its own. All functions may be called from any thread; sinks are
// called on the engine's thread and must not block.
#ifndef PITH_SERVER_SCHEDULER_H_
#define PITH_SERVER_SCHEDULER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "host/sampler.h"
#include "pith/types.h"
#include "session/generator.h"
#include "session/text_model.h"
#include "store/store.h"

namespace pith {
class StoredPrefixes;
}

namespace pith::server {

using RequestId = uint64_t;

struct SchedulerOptions {
  int max_running = 8;         // sequences that are read or decode at once
  int max_waiting = 256;       // requests in the queue; more are refused (kBusy)
  // Of the engine's time, the share that prompts have while others decode, (0, 1]: 1 reads prompts as fast as it goes,
  // less keeps the gaps between tokens short (server/step_plan.h).
  double prompt_share = 0.85;
  // A shorter prompt that comes up to so many seconds later may be read before a longer one (server/queue_order.h); 0:
  // in the order in which they come.
  double overtaking_seconds = 60;
  // Recipes work once, on whole prompts, unless a request says otherwise; else those alone that need a whole prompt.
  bool compress_after = false;
  double keep = 0.3;           // of a whole prompt's bytes, (0, 1], where a request says neither a share nor a budget
  int max_retained = 64;       // prefixes kept after their requests; 0: none
  // Parts of kept prefixes of at least so many tokens that stand elsewhere in a prompt are taken over, keys turned; 0:
  // none. What they know of the text before them is what stood there, so that answers may differ from those of a
  // reading.
  int cache_reuse = 0;
  bool deterministic_reuse = false;  // the same text with and without reuse of a prefix, bit for bit
  std::string save_folder;     // of saved slots; empty: none are saved
  std::shared_ptr<StoredPrefixes> store;  // outlives the process; null: none. The engine's thread uses it
};

// Sets how many sequences the engine must hold for such a scheduler.
void ReserveSequences(const SchedulerOptions& options, EngineOptions* engine);

// One prompt, read once, and one or more texts that go on from it.
struct Request {
  std::vector<int32_t> prompt;        // template and BOS included; not empty
  size_t num_pinned = 0;              // at its front: never dropped
  // Where turns of a conversation are over, ascending: tokens of the prompt up to the end of an answer. A recipe with
  // turns= compresses them there.
  std::vector<size_t> turn_ends;
  // With a recipe of turns=epicache: what the cache of the question's topic is judged by, where it cannot hold all.
  std::vector<int32_t> guide;
  SamplerOptions sampling;            // the seed of choice i is seed + i
  GeneratorOptions generation;        // max_tokens 0: the prompt is read, nothing is sampled
  bool tells_sampled = false;         // log probabilities are of what tokens were drawn from, not of the model's
  int num_choices = 1;
  std::optional<Recipe> recipe;       // none: the engine's
  size_t kv_budget_bytes = 0;  // of this sequence at most, once its prompt is compressed; 0: the server's default
  std::optional<CompressMode> compress;  // none: as SchedulerOptions::compress_after says
  double keep = 0;  // with CompressMode::kAfter: of the prompt's bytes, (0, 1]; 0: the server's default
  // The answer to a prompt that does not fit without dropping: kOutOfContext instead of eviction.
  bool refuse_eviction = false;
  std::optional<int> cache_reuse;     // in place of SchedulerOptions'
  bool reuse_prefix = true;           // take a live or retained prefix, and leave one
  std::string tenant;                 // prefixes are shared by requests of the same one only
  std::string cache_key;              // prompt_cache_key or a session's name: a hint at what to reuse; may be empty
  int slot = -1;                      // llama-server's id_slot; -1: any
  bool reports_positions = false;     // CacheReport::held_heads
  bool reports_layers = false;        // CacheReport::layers, too
  int prompt_logprobs = -1;           // of the prompt's tokens but the first, as GeneratorOptions::num_logprobs
  EmbeddingPooling pooling = EmbeddingPooling::kNone;  // of the prompt's hidden states; kNone: they are not wanted

  // Every row of the prompt is looked at, so that none can be taken from a prefix.
  bool wants_rows() const { return prompt_logprobs >= 0 || pooling != EmbeddingPooling::kNone; }
};

// What the cache of a sequence held when its text ended.
struct CacheReport {
  size_t budget_bytes = 0;            // its ceiling
  size_t used_bytes = 0;
  double kept_fraction = 1;           // of the entries seen
  int64_t evicted_tokens = 0;         // positions that no layer and head holds any more
  std::vector<std::pair<int32_t, int32_t>> evicted_spans;  // of these, [start, end)
  std::vector<uint16_t> held_heads;   // of each position, how many kv heads hold it; where it was asked for
  // The same of each layer with a global cache; where layers were asked for.
  struct Layer {
    int num_heads = 0;
    int64_t entries = 0;
    std::vector<uint8_t> held;  // of each position; at most 255
  };
  std::vector<Layer> layers;
  std::string format;                 // of full pages
  int num_heads = 0;                  // kv heads of all layers with a global cache
  std::string recipe;
  CompressMode compress = CompressMode::kBlock;
  int slot = -1;  // where it rests until another request takes it
};

struct RequestTimes {  // seconds, of one request
  double queued = 0;
  double prompt = 0;      // from its start until the first token could be sampled
  double generation = 0;  // from then on
};

struct RequestUsage {
  int prompt_tokens = 0;
  int cached_tokens = 0;  // of them, taken from a prefix that was there
  int completion_tokens = 0;  // of all choices
};

// What a sink is told, in this order: Started, Progress any number of times, Text any number of times for each choice,
// Ended once for each choice, Finished once. Or Failed once, at any time, after which nothing comes.
class RequestSink {
 public:
  virtual ~RequestSink() = default;
  virtual void Started(const RequestUsage& usage, int slot) = 0;
  virtual void Progress(int prompt_done, int prompt_total) = 0;
  // Once the prompt is read, where it was asked for: of its tokens but the first; of the whole, of length 1.
  virtual void PromptLogprobs(std::vector<TokenLogprobs> logprobs) { (void)logprobs; }
  virtual void Embedding(std::vector<float> embedding) { (void)embedding; }
  // Whole characters, and the tokens sampled since the last call with their logprobs where they were wanted (a token
  // may come before its text does). text or tokens may be empty.
  virtual void Text(int choice, std::string text, std::vector<int32_t> tokens, std::vector<TokenLogprobs> logprobs) = 0;
  virtual void Ended(int choice, GenerationResult result) = 0;
  virtual void Finished(const RequestUsage& usage, const RequestTimes& times, const CacheReport& cache) = 0;
  virtual void Failed(const Error& error) = 0;
};

// Counters since the start and gauges of now, for /metrics and /slots.
struct SlotState {
  int id = 0;
  bool processing = false;
  RequestId request = 0;      // while processing
  int prompt_tokens = 0;
  int prompt_done = 0;
  int completion_tokens = 0;
  size_t kv_bytes = 0;
  bool retained = false;      // holds a prefix that a later request may take
  int retained_tokens = 0;
};

struct Histogram {
  std::vector<double> bounds;     // upper, ascending; one more bucket for the rest
  std::vector<uint64_t> counts;   // [bounds.size() + 1]
  double sum = 0;
};

struct SchedulerStats {
  KvStats kv;
  size_t live_bytes = 0;          // of sequences that run
  size_t retained_bytes = 0;      // of prefixes that are kept
  int live_sequences = 0;         // 0 when idle
  int retained_sequences = 0;
  int waiting = 0;
  uint64_t requests = 0, finished = 0, failed = 0, cancelled = 0, refused = 0;
  uint64_t compressed = 0;        // prompts that were compressed once they were whole
  uint64_t preempted = 0;         // times that a running request made room and began to read again later
  uint64_t prompt_tokens = 0, cached_tokens = 0;  // read, and not read since they were there
  uint64_t completion_tokens = 0, decode_steps = 0;
  int longest_tokens = 0;  // of a sequence, prompt and answer
  double prompt_seconds = 0, decode_seconds = 0, compress_seconds = 0;
  std::vector<std::pair<std::string, uint64_t>> evicted_entries;  // by recipe
  Histogram first_token_seconds, token_gap_seconds;
  std::vector<SlotState> slots;
  std::optional<store::StoreStats> store;
};

struct SavedSlot {
  int tokens = 0;
  size_t bytes = 0;
  double seconds = 0;
  std::string tenant = {};              // of what was restored, whose it is
  std::vector<int32_t> restored = {};   // and its tokens
};

// What a slot's cache holds of one token of its text.
struct SlotToken {
  int num_tokens = 0;  // of the text
  std::string recipe;
  std::vector<std::vector<EntryView>> layers;  // [layers with a global cache][kv heads]
};

class Scheduler {
 public:
  // `text` is asked on the engine's thread alone.
  static Result<std::unique_ptr<Scheduler>> Create(std::shared_ptr<Engine> engine,
                                                   std::shared_ptr<const TextModel> text,
                                                   const SchedulerOptions& options);
  virtual ~Scheduler() = default;

  // Checks what can be checked at once and queues the rest. kInvalidArgument: the sampling options; kOutOfContext: the
  // prompt never fits (Error's message names its tokens and the limit); kOutOfBudget: not even an empty server could
  // hold it; kBusy: the queue is full, or the server drains.
  virtual Result<RequestId> Submit(Request request, std::shared_ptr<RequestSink> sink) = 0;
  // Its client has left: what it holds is free within a step; its sink is not called any more once this returned.
  virtual void Cancel(RequestId request) = 0;

  virtual SchedulerStats stats() = 0;

  // llama-server's slots. kNotFound: no such slot, or it holds nothing; kBusy: it is processing.
  virtual Result<SavedSlot> SaveSlot(int slot, const std::string& file_name) = 0;
  virtual Result<SavedSlot> RestoreSlot(int slot, const std::string& file_name) = 0;
  // Of the prefix that rests in a slot, one token. kNotFound, too: it is another tenant's.
  virtual Result<SlotToken> TokenInSlot(int slot, int position, const std::string& tenant) = 0;
  virtual Result<int> EraseSlot(int slot) = 0;  // returns the tokens that it held

  // No new requests; returns when those that run and wait are done, or after `seconds` (those that remain fail with
  // kCancelled).
  virtual void Drain(double seconds) = 0;
};

}  // namespace pith::server

#endif  // PITH_SERVER_SCHEDULER_H_
