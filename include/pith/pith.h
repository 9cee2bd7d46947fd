// pith as a library, in C: models, sequences of tokens under one KV budget, conversations; <pith/policy.h>, which
// belongs to it: recipes, and stages of one's own.
// <pith/pith.hpp> is the same in C++. docs/library.md: which calls for which task.
//
// Status     Every call that can fail returns a pith_status; pith_last_error() is its sentence. Whatever a failing call
//            would have returned through a pointer is NULL or 0.
// Options    structs begin with their size: pith_engine_options options = PITH_INIT(pith_engine_options); and whatever
//            is then set. Zero is the default of every field. A program that was compiled with a smaller struct gets
//            the defaults of what it lacks. NULL in place of options: all defaults.
// Results    structs begin with their size too, and are filled as far as they reach.
// Texts      are UTF-8 and end with a zero. What is written into a caller's buffer follows snprintf: the needed length
//            without the zero is returned, and the text is cut where `capacity` ends. Nothing that the caller frees is
//            allocated here, and nothing that the caller has allocated is freed.
// Lifetime   A handle keeps what it rests on: a model may be freed while its engines live, an engine while its
//            sequences do. Every handle is freed once; NULL may be freed.
// Threads    One thread at a time uses an engine and all that was made with it. Models may be shared. pith_*_cancel()
//            may be called from any thread.
// Callbacks  must not throw, nor call pith about the engine that they were called from, save for pith_*_cancel().
#ifndef PITH_PITH_H_
#define PITH_PITH_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define PITH_API __attribute__((visibility("default")))
#else
#define PITH_API
#endif

// Options or a result with nothing set: pith_engine_stats stats = PITH_INIT(pith_engine_stats);
#ifdef __cplusplus
template <typename T>
T pith_sized() {
  T value{};
  value.struct_size = sizeof value;
  return value;
}
#define PITH_INIT(type) pith_sized<type>()
extern "C" {
#else
#define PITH_INIT(type) {.struct_size = sizeof(type)}
#endif

// Rises when a program that was compiled before might no longer work.
#define PITH_ABI_VERSION 1

typedef int32_t pith_status;
enum {
  PITH_OK = 0,
  PITH_ERROR_INVALID_ARGUMENT = 1,  // the caller asked for something that makes no sense
  PITH_ERROR_NOT_FOUND = 2,         // a file, model or recipe that does not exist
  PITH_ERROR_CORRUPT = 3,           // bytes read from outside that break their format
  PITH_ERROR_UNSUPPORTED = 4,       // well-formed, but pith cannot do it
  PITH_ERROR_OUT_OF_BUDGET = 5,     // the KV budget holds no more
  PITH_ERROR_IO = 6,                // the system refused a read, a write or memory
  PITH_ERROR_CANCELLED = 7,         // the caller asked to stop
  PITH_ERROR_BUSY = 8,              // there is no room now; later there may be
  PITH_ERROR_OUT_OF_CONTEXT = 9,    // the context's positions are used up
};

typedef struct pith_model pith_model;
typedef struct pith_engine pith_engine;
typedef struct pith_sequence pith_sequence;
typedef struct pith_sampler pith_sampler;
typedef struct pith_generator pith_generator;
typedef struct pith_conversation pith_conversation;
typedef struct pith_embedder pith_embedder;

// False stops what is being done: it ends with PITH_ERROR_CANCELLED.
typedef bool (*pith_progress_fn)(void* user, uint64_t done, uint64_t total);
// A piece of text, whole characters; `text` ends with a zero. False ends the generation.
typedef bool (*pith_text_fn)(void* user, const char* text, size_t length);
// False: it could not be written.
typedef bool (*pith_write_fn)(void* user, const void* data, size_t size);
// Bytes read, at most `size`; 0 at the end; below 0: it could not be read.
typedef int64_t (*pith_read_fn)(void* user, void* data, size_t size);
// A line of libllama's, at 1 (debug) to 4 (error). Called from any thread.
typedef void (*pith_log_fn)(void* user, int32_t level, const char* text);

// ---- The library ----------------------------------------------------------------------------------------------------

// "0.1.0"
PITH_API const char* pith_version(void);
// PITH_ABI_VERSION of the library, which may differ from the header's.
PITH_API int32_t pith_abi_version(void);
// "out_of_budget"; "unknown" for what is none.
PITH_API const char* pith_status_name(pith_status status);
// Of the calling thread's last call that failed: one sentence, valid until its next one. "" if none has.
PITH_API const char* pith_last_error(void);
// What libllama says; NULL: silence, as in the beginning. `user` must live until another one is set.
PITH_API void pith_set_log(pith_log_fn log, void* user);

// ---- Model ----------------------------------------------------------------------------------------------------------

// What a file is loaded for.
typedef int32_t pith_model_use;
enum {
  PITH_USE_TEXT = 0,        // to read and write text, by engines
  PITH_USE_EMBEDDINGS = 1,  // alone, by embedders: a model that writes no text, such as an encoder
  PITH_USE_VOCABULARY = 2,  // tokens and chat template alone: weights stay unread, the file may have none
};

typedef struct pith_model_options {
  size_t struct_size;
  int32_t num_threads;               // 0: physical cores
  int32_t num_gpu_layers;
  const char* chat_template;         // a name that libllama knows, or Jinja; NULL: the file's
  const char* const* lora_paths;     // [num_loras]
  const float* lora_scales;          // [num_loras]; NULL: 1
  size_t num_loras;
  bool libllama_products;            // products with weights as libllama does them
  bool trusted;                      // skips the trial in a child process (docs/security.md)
  pith_progress_fn progress;
  void* progress_user;
  pith_model_use use;
  const char* rope;                  // "rope-scaling=yarn,rope-scale=4", llama.cpp's flags of RoPE; NULL: the file's
  const char* const* overrides;      // [num_overrides] "KEY=TYPE:VALUE", as llama.cpp's --override-kv
  size_t num_overrides;
} pith_model_options;

typedef struct pith_model_info {
  size_t struct_size;
  int32_t num_layers;
  int32_t num_vocab;
  int32_t trained_ctx;
  int32_t window;            // sliding window in tokens, 0: none
  uint64_t file_bytes;
  uint64_t num_params;
  uint64_t recurrent_bytes;  // per sequence; beside no attention at all, there is no KV cache
  bool hybrid;               // recurrent layers beside attention
  bool has_chat_template;
  const char* architecture;  // as long as the model
  const char* description;   // "llama 135M Q4_1"
  int32_t num_embd;          // floats of an embedding
  int32_t bos_token;         // that begins a text; -1: none, as of the next two
  int32_t eos_token;         // that ends it
  int32_t newline_token;
  bool adds_bos;             // pith_tokenize() puts bos_token in front of a text that begins
  const char* chat_template; // the template's text or name, "" if there is none; as long as the model
} pith_model_info;

typedef struct pith_message {
  size_t struct_size;   // of each element of an array
  const char* role;     // "system", "user", "assistant", ...
  const char* content;
} pith_message;

// NOT_FOUND, CORRUPT, UNSUPPORTED (with the reason why it cannot be hosted), INVALID_ARGUMENT (of the options).
PITH_API pith_status pith_model_load(const char* path, const pith_model_options* options, pith_model** model);
PITH_API void pith_model_free(pith_model* model);
PITH_API pith_status pith_model_get_info(const pith_model* model, pith_model_info* info);
// What the file says of itself, such as "general.name", or overrides in its place; arrays are left out. Called for
// each, with texts that live as long as the call.
PITH_API void pith_model_list_metadata(const pith_model* model,
                                       void (*visit)(void* user, const char* key, const char* value), void* user);

// begins: the text is the first of its sequence, and gets what the tokenizer puts there (BOS). special: control
// tokens in it are tokens. *count: tokens that there are; they are cut where `capacity` ends.
PITH_API pith_status pith_tokenize(const pith_model* model, const char* text, size_t length, bool begins, bool special,
                                   int32_t* tokens, size_t capacity, size_t* count);
// A text that ends here, with what the tokenizer puts around one: for embeddings. Control tokens in it are text.
PITH_API pith_status pith_tokenize_whole(const pith_model* model, const char* text, size_t length, int32_t* tokens,
                                         size_t capacity, size_t* count);
// Bytes of one token, which may end within a character. Returns their number; 0 for what is no token.
PITH_API size_t pith_token_piece(const pith_model* model, int32_t token, char* buffer, size_t capacity);
PITH_API bool pith_token_ends(const pith_model* model, int32_t token);
// Of a template, and no text.
PITH_API bool pith_token_is_control(const pith_model* model, int32_t token);
// opens_answer: with the beginning of the assistant's next message. UNSUPPORTED: the template refuses these messages.
PITH_API pith_status pith_apply_template(const pith_model* model, const pith_message* messages, size_t num_messages,
                                         bool opens_answer, char* buffer, size_t capacity, size_t* length);
// The same for messages and tools as OpenAI's API has them, in JSON: an array of messages, with "tool_calls" and
// "tool_call_id", whose contents are texts or arrays of text parts; an array of tools, or NULL. Templates that know no
// tools leave them out. INVALID_ARGUMENT: the JSON is none of that.
PITH_API pith_status pith_apply_template_json(const pith_model* model, const char* messages, const char* tools,
                                              bool opens_answer, char* buffer, size_t capacity, size_t* length);

// ---- Embedder: models that write no text, run whole, a text at a time; they have no cache ---------------------------

// Of a model that was loaded with PITH_USE_EMBEDDINGS, else INVALID_ARGUMENT. num_threads 0: physical cores.
PITH_API pith_status pith_embedder_new(pith_model* model, int32_t num_threads, pith_embedder** embedder);
PITH_API void pith_embedder_free(pith_embedder* embedder);
// Tokens of a text at most; 0 for NULL.
PITH_API size_t pith_embedder_num_ctx(const pith_embedder* embedder);
// Of a text (pith_tokenize_whole). rows: NULL, or room for [num_tokens, num_embd], hidden states behind the last norm.
// pooled: NULL, or room for [num_embd], one vector of length 1 as the file pools. OUT_OF_CONTEXT: more tokens.
PITH_API pith_status pith_embedder_embed(pith_embedder* embedder, const int32_t* tokens, size_t num_tokens, float* rows,
                                         float* pooled);

// ---- Engine: sequences of one model under one KV budget -------------------------------------------------------------

typedef struct pith_engine_options {
  size_t struct_size;
  uint64_t budget_bytes;   // hard limit; 0: what the f16 caches of max_sequences take
  int32_t num_ctx;         // positions that a sequence may reach; 0: the model's trained context
  int32_t num_threads;     // 0: physical cores
  int32_t max_sequences;   // at once, forks included; 0: 1
  int32_t block_tokens;    // rows of a step at most; 0: chosen from the budget, up to 512
  const char* recipe;      // of sequences that name none; NULL: "full", which drops nothing
  uint64_t seed;           // of sampling and of recipes that draw
  bool fixed_threads;      // never fewer while other processes take cores
  const char* save_format;  // of saved sequences and conversations: NULL or "exact", or "comp:ek=0.06,ev=0.06"
                            // (docs/formats.md), which takes fewer bytes and comes back within these bounds
} pith_engine_options;

typedef struct pith_engine_stats {
  size_t struct_size;
  uint64_t budget_bytes;
  uint64_t used_bytes;
  uint64_t peak_bytes;       // never above the budget
  uint64_t block_bytes;      // libllama's own buffer, part of used_bytes
  uint64_t page_bytes;
  uint64_t table_bytes;
  uint64_t recurrent_bytes;
  uint64_t promised_bytes;   // guaranteed to sequences and steps, and not in use
  int64_t entries;           // over layers and kv heads, all sequences
  int64_t entries_seen;
  double kept_fraction;      // entries / entries_seen
  int32_t block_tokens;
  int32_t decode_threads;    // of the next token
  double attention_seconds;  // since the engine was made
  double policy_seconds;
  double total_seconds;
} pith_engine_stats;

typedef struct pith_sequence_options {
  size_t struct_size;
  const char* recipe;                // which entries stay when its bytes are full (`pith recipes`); NULL: the engine's
  int32_t num_ctx;                   // 0: the engine's
  int32_t keep_entries;              // per kv head, in place of what its bytes would hold
  uint64_t floor_bytes;              // guaranteed, whatever others do
  uint64_t ceiling_bytes;            // that it may borrow while nobody claims it; both 0: an equal share
  uint64_t seed;                     // 0: the engine's
  bool compress_after;               // a prompt is read whole, then compressed once; else block by block
  const char* const* later_recipes;  // that pith_sequence_compress() will be called with, [num_later_recipes]
  size_t num_later_recipes;
} pith_sequence_options;

typedef struct pith_sequence_stats {
  size_t struct_size;
  uint64_t used_bytes;
  uint64_t floor_bytes;
  uint64_t ceiling_bytes;
  int64_t entries;
  int64_t entries_seen;
  double kept_fraction;
  int32_t keep_entries;
  int32_t num_tokens;
} pith_sequence_stats;

typedef struct pith_admission {
  size_t struct_size;
  uint64_t steady_bytes;   // that the sequence holds when it has read the prompt
  uint64_t step_bytes;     // more while a step runs
  uint64_t free_bytes;
  uint64_t missing_bytes;  // that others would have to free first
  bool fits;               // now
} pith_admission;

// Tokens that a step appends to one sequence.
typedef struct pith_step_item {
  size_t struct_size;       // of each element of an array
  pith_sequence* sequence;  // of this engine, at most once in a step
  const int32_t* tokens;
  size_t num_tokens;
  bool pin;                 // no recipe drops them
  float* all_logits;        // NULL, or room for [num_tokens, num_vocab]: of every token; else the last one's are kept
  float* all_embeddings;    // NULL, or room for [num_tokens, num_embd]: what the model makes logits of, of every token
} pith_step_item;

// OUT_OF_BUDGET: the budget holds less than one block.
PITH_API pith_status pith_engine_new(pith_model* model, const pith_engine_options* options, pith_engine** engine);
PITH_API void pith_engine_free(pith_engine* engine);
PITH_API pith_status pith_engine_get_stats(const pith_engine* engine, pith_engine_stats* stats);
// Rows of a step at most.
PITH_API int32_t pith_engine_block_tokens(const pith_engine* engine);
// What a sequence with these options takes that reads so many tokens.
PITH_API pith_status pith_engine_admit(const pith_engine* engine, const pith_sequence_options* options,
                                       size_t num_tokens, pith_admission* admission);
// Everything that reads on this engine ends with CANCELLED, until pith_engine_clear_cancel().
PITH_API void pith_engine_cancel(pith_engine* engine);
PITH_API void pith_engine_clear_cancel(pith_engine* engine);

// One pass over the weights for rows of any sequences, prompts and single tokens mixed. A failure concerns its own
// sequence: statuses [num_items], may be NULL. Returns the first that is not OK.
PITH_API pith_status pith_step(pith_engine* engine, const pith_step_item* items, size_t num_items,
                               pith_status* statuses);
// The sentence of an item of the last step, until the next; "" where it was OK.
PITH_API const char* pith_step_message(const pith_engine* engine, size_t item);

// ---- Sequence -------------------------------------------------------------------------------------------------------

// OUT_OF_BUDGET: all places are taken, or its bytes are not there.
PITH_API pith_status pith_sequence_new(pith_engine* engine, const pith_sequence_options* options,
                                       pith_sequence** sequence);
// A copy that shares its entries until one of the two changes them.
PITH_API pith_status pith_sequence_fork(const pith_sequence* sequence, pith_sequence** fork);
PITH_API void pith_sequence_free(pith_sequence* sequence);
// Reads tokens, in blocks. After an error pith_sequence_num_tokens() says how far it came.
PITH_API pith_status pith_sequence_prefill(pith_sequence* sequence, const int32_t* tokens, size_t num_tokens, bool pin,
                                           pith_progress_fn progress, void* user);
// Reads one token. Allocates nothing.
PITH_API pith_status pith_sequence_decode(pith_sequence* sequence, int32_t token);
// Of the last token read, [*count]. Valid until the next call about this engine or anything made with it. NULL and 0
// where the engine's last step was one of other sequences.
PITH_API const float* pith_sequence_logits(const pith_sequence* sequence, size_t* count);
PITH_API int32_t pith_sequence_num_tokens(const pith_sequence* sequence);
PITH_API pith_status pith_sequence_get_stats(const pith_sequence* sequence, pith_sequence_stats* stats);
// The recipe with all that it was given, until the sequence is freed.
PITH_API const char* pith_sequence_recipe(const pith_sequence* sequence);
// Compresses what was read to a share of its entries, once or again. recipe: NULL: its own. *kept: the share that
// stayed; may be NULL.
PITH_API pith_status pith_sequence_compress(pith_sequence* sequence, const char* recipe, double keep_fraction,
                                            double* kept);
// The same for positions from `from` to before `to`.
PITH_API pith_status pith_sequence_compress_part(pith_sequence* sequence, const char* recipe, double keep_fraction,
                                                 int32_t from, int32_t to, double* kept);
PITH_API pith_status pith_sequence_end_turn(pith_sequence* sequence);  // for recipes with turns=; conversations do so
PITH_API pith_status pith_sequence_set_budget(pith_sequence* sequence, uint64_t floor_bytes, uint64_t ceiling_bytes);
// Back to the first num_tokens tokens that it has read, as if it had never read more; 0 empties any sequence.
// UNSUPPORTED, and nothing has changed: its recipe has dropped or changed since then what it would have to have back.
PITH_API pith_status pith_sequence_rewind(pith_sequence* sequence, int32_t num_tokens);
// Where to go back to before a text is read whose first num_tokens tokens it has read already: the most that need not
// be read again.
PITH_API int32_t pith_sequence_rewind_target(const pith_sequence* sequence, int32_t num_tokens);
// The running step gives it up within a layer: CANCELLED. It may be lost then, and says so; others go on.
PITH_API void pith_sequence_cancel(pith_sequence* sequence);

// A saved sequence goes on with the same bits, with the same model and recipe. IO: an older file stays.
PITH_API pith_status pith_sequence_save(const pith_sequence* sequence, const char* path);
PITH_API pith_status pith_sequence_save_to(const pith_sequence* sequence, pith_write_fn write, void* user);
// A new one. NOT_FOUND, IO, CORRUPT, INVALID_ARGUMENT (other model or recipe), OUT_OF_BUDGET.
PITH_API pith_status pith_sequence_restore(pith_engine* engine, const pith_sequence_options* options, const char* path,
                                           pith_sequence** sequence);
PITH_API pith_status pith_sequence_restore_from(pith_engine* engine, const pith_sequence_options* options,
                                                pith_read_fn read, void* user, pith_sequence** sequence);

// ---- Sampler --------------------------------------------------------------------------------------------------------

// Names, meanings and neutral values are llama.cpp's. Zero is not their default: pith_sampler_options_init() first.
typedef struct pith_sampler_options {
  size_t struct_size;
  float temperature;         // <= 0: always the most probable token
  float dynatemp_range;
  float dynatemp_exponent;
  int32_t top_k;             // 0: all
  float top_p;               // 1: all
  float min_p;               // 0: all
  float typical_p;           // 1: all
  float top_n_sigma;         // <= 0: all
  float xtc_probability;
  float xtc_threshold;
  int32_t repeat_last_n;     // -1: the whole context
  float repeat_penalty;      // 1: off
  float presence_penalty;
  float frequency_penalty;
  float dry_multiplier;      // 0: off
  float dry_base;
  int32_t dry_allowed_length;
  int32_t dry_last_n;
  int32_t mirostat;          // 1, 2
  float mirostat_tau;
  float mirostat_eta;
  uint32_t seed;             // 0: conversations draw from the engine's seed
  bool ignore_eos;
  const char* order;         // "penalties;top_k;temperature"; NULL: llama.cpp's
  const char* grammar;       // GBNF with a rule "root"; NULL: none
  const char* json_schema;   // in place of a grammar; NULL: none
  const int32_t* bias_tokens;  // [num_biases]
  const float* biases;         // added to their logits; -INFINITY forbids a token
  size_t num_biases;
} pith_sampler_options;

// What the model's file or its makers recommend, else llama.cpp's. struct_size: sizeof(pith_sampler_options).
PITH_API pith_status pith_sampler_options_init(const pith_model* model, pith_sampler_options* options,
                                               size_t struct_size);
// options: NULL: what pith_sampler_options_init() says.
PITH_API pith_status pith_sampler_new(const pith_model* model, const pith_sampler_options* options,
                                      pith_sampler** sampler);
PITH_API void pith_sampler_free(pith_sampler* sampler);
PITH_API pith_status pith_sampler_sample(pith_sampler* sampler, const float* logits, size_t count, int32_t* token);
// GBNF of the texts that a JSON schema allows. INVALID_ARGUMENT: it is none. buffer: as of pith_recipe_normalise().
PITH_API pith_status pith_grammar_of_schema(const char* schema, char* buffer, size_t capacity, size_t* length);
// Penalties, grammar and mirostat begin anew; random numbers go on.
PITH_API void pith_sampler_reset(pith_sampler* sampler);

// ---- Generator: logits to text, step by step, for programs that batch sequences themselves --------------------------

typedef int32_t pith_stop;
enum {
  PITH_STOP_END = 0,          // the model ended it
  PITH_STOP_LENGTH = 1,       // as many tokens as were asked for
  PITH_STOP_CONTEXT = 2,      // no position is left
  PITH_STOP_INTERRUPTED = 3,  // cancelled
  PITH_STOP_STRING = 4,       // one of the stop strings, which is not in the text
  PITH_STOP_CALLBACK = 5,     // the receiver of the text wants no more
  PITH_STOP_BUDGET = 6,       // the KV budget is full and the recipe drops nothing
};
// "end", "length", "context", "interrupted", "stop", "callback", "budget"
PITH_API const char* pith_stop_name(pith_stop stop);

typedef struct pith_generator_options {
  size_t struct_size;
  int32_t max_tokens;         // 0: no limit
  int32_t num_logprobs;       // per token the n - 1 likeliest beside its own; 0: none at all
  const char* const* stops;   // the text ends before the first of them, [num_stops]
  size_t num_stops;
} pith_generator_options;

// Pointers live as long as the generator, or until the conversation's next generation.
typedef struct pith_generation {
  size_t struct_size;
  const char* text;           // valid UTF-8
  size_t text_length;
  const int32_t* tokens;      // without the one that ended it
  size_t num_tokens;
  int32_t prompt_tokens;      // read before it (conversations)
  pith_stop stop;
  const char* stop_message;   // PITH_STOP_BUDGET: what there is no room for; else ""
  double first_token_seconds; // conversations
  double seconds;             // from the first token on (conversations)
  const float* logprobs;      // [num_tokens], natural logarithms; NULL: none wanted
  const int32_t* top_tokens;  // [num_tokens, num_top], the likeliest first
  const float* top_logprobs;  // [num_tokens, num_top]
  size_t num_top;
} pith_generation;

// The generator takes turns with the sampler, which must live as long and serve no other one.
PITH_API pith_status pith_generator_new(const pith_model* model, pith_sampler* sampler,
                                        const pith_generator_options* options, pith_generator** generator);
PITH_API void pith_generator_free(pith_generator* generator);
// Samples after the last token that was decoded. *token: what to decode next, -1 once it is done. *text: whole
// characters to show now, perhaps none, until the next call; may be NULL.
PITH_API pith_status pith_generator_next(pith_generator* generator, const float* logits, size_t count, int32_t* token,
                                         const char** text, size_t* text_length);
PITH_API bool pith_generator_done(const pith_generator* generator);
// Ends it from outside. What was held back for a stop string is in the result.
PITH_API void pith_generator_finish(pith_generator* generator, pith_stop stop);
PITH_API pith_status pith_generator_get(const pith_generator* generator, pith_generation* generation);

// ---- Conversation: messages, the model's template, one sequence of its own ------------------------------------------

typedef struct pith_conversation_options {
  size_t struct_size;
  const char* system;                     // system message, never dropped; NULL: the template's own, if it has one
  bool plain_control_tokens;              // control tokens in messages and texts are text
  const pith_sequence_options* sequence;  // NULL: the engine's
} pith_conversation_options;

typedef struct pith_generate_options {
  size_t struct_size;
  const char* message;                   // said first; NULL: nothing beside what was queued before
  const char* text;                      // appended first; NULL: nothing
  int32_t max_tokens;                    // as in pith_generator_options
  int32_t num_logprobs;
  const char* const* stops;
  size_t num_stops;
  const pith_sampler_options* sampling;  // NULL: what the model recommends
  pith_text_fn on_text;
  void* user;
} pith_generate_options;

PITH_API pith_status pith_conversation_new(pith_engine* engine, const pith_conversation_options* options,
                                           pith_conversation** conversation);
PITH_API pith_status pith_conversation_fork(const pith_conversation* conversation, pith_conversation** fork);
PITH_API void pith_conversation_free(pith_conversation* conversation);
// Queue a user's message in the template, or a text as it is. INVALID_ARGUMENT: it is empty, or longer than what is
// left of the context; nothing has changed then.
PITH_API pith_status pith_conversation_say(pith_conversation* conversation, const char* message);
PITH_API pith_status pith_conversation_append(pith_conversation* conversation, const char* text);
// Reads what is queued, as pith_conversation_generate() does first.
PITH_API pith_status pith_conversation_read(pith_conversation* conversation, pith_progress_fn progress, void* user);
// Reads what is queued, and answers or goes on. A text is there with its reason also where the context or the budget
// ends. INVALID_ARGUMENT: options, or nothing is queued; nothing has changed then. CANCELLED:
// pith_conversation_cancel(); `generation`, which may be NULL, then holds what there was. After other errors the
// conversation is as far as it came.
PITH_API pith_status pith_conversation_generate(pith_conversation* conversation, const pith_generate_options* options,
                                                pith_generation* generation);
// Forgets what was said; the system message stays.
PITH_API pith_status pith_conversation_reset(pith_conversation* conversation);
// Ends what runs after the token, or block of a prompt, at hand; later calls are not concerned.
PITH_API void pith_conversation_cancel(pith_conversation* conversation);
// Tokens that are queued.
PITH_API size_t pith_conversation_num_pending(const pith_conversation* conversation);
// Where the last message's system message could not be pinned: the sentence that says so, until the next one. Else "".
PITH_API const char* pith_conversation_note(const pith_conversation* conversation);
// Its own, for statistics and compression; not to be freed, fed or cancelled.
PITH_API pith_sequence* pith_conversation_sequence(pith_conversation* conversation);
// With its messages. Restoring takes the place of what was said; after an error the conversation is empty.
PITH_API pith_status pith_conversation_save(const pith_conversation* conversation, const char* path);
PITH_API pith_status pith_conversation_save_to(const pith_conversation* conversation, pith_write_fn write, void* user);
PITH_API pith_status pith_conversation_restore(pith_conversation* conversation, const char* path);
PITH_API pith_status pith_conversation_restore_from(pith_conversation* conversation, pith_read_fn read, void* user);

#ifdef __cplusplus
}  // extern "C"
#endif

#include <pith/policy.h>

#endif  // PITH_PITH_H_
