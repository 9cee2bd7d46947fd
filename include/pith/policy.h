// The part of <pith/pith.h> that is about recipes, and about stages of one's own: scorers, aggregators, modifiers and
// allocators that a program brings along. docs/tutorial-policy.md writes one.
#ifndef PITH_POLICY_H_
#define PITH_POLICY_H_

#include <pith/pith.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pith_recipe_info {
  size_t struct_size;
  const char* name;
  const char* paper;
  const char* summary;
  const char* stages;
  const char* needs;
  const char* cost;
  const char* when;
  const char* good_for;
  const char* parameters;
} pith_recipe_info;

typedef struct pith_stage_info {
  size_t struct_size;
  const char* kind;  // "score", "agg", "mod", "alloc", "act", "prefill"
  const char* name;
  const char* paper;
  const char* summary;
  const char* parameters;
} pith_stage_info;

// Called for each, with texts that live as long as the call.
PITH_API void pith_list_recipes(void (*visit)(void* user, const pith_recipe_info* recipe), void* user);
PITH_API void pith_list_stages(void (*visit)(void* user, const pith_stage_info* stage), void* user);
// A recipe as pith writes it, with all stages. INVALID_ARGUMENT, NOT_FOUND: with the nearest valid choice. buffer:
// may be NULL if capacity is 0; length: may be NULL.
PITH_API pith_status pith_recipe_normalise(const char* recipe, char* buffer, size_t capacity, size_t* length);

// What a stage is given; everything else is NULL.
enum {
  PITH_NEED_KEYS = 1 << 0,
  PITH_NEED_VALUES = 1 << 1,
  PITH_NEED_WINDOW_PROBS = 1 << 2,
  PITH_NEED_WINDOW_QUERIES = 1 << 3,
  PITH_NEED_EVERY_QUERY = 1 << 4,  // observe() is called with what every query pays
  PITH_NEED_VALUE_NORMS = 1 << 5,
  PITH_NEED_REPEAT = 1 << 6,  // the prompt is read once more before it is compressed, and observe() is called with that
  PITH_NEED_QUERY_MOMENTS = 1 << 7,
  PITH_NEED_SQUARES = 1 << 8,      // pith_observation::squares
  PITH_NEED_LARGEST = 1 << 9,      // pith_observation::largest
};

// Entries of one kv head, in time order. n: num_entries, D and Dv: head sizes, G: query heads per kv head, w: window.
typedef struct pith_head_input {
  size_t struct_size;
  int32_t num_entries;
  const int32_t* positions;        // [n], ascending
  const uint8_t* pinned;           // [n] or NULL; not 0: no recipe may drop it
  const float* keys;               // [n, D], after RoPE
  const float* values;             // [n, Dv]
  const float* window_probs;       // [G, w, n], attention of the last w queries after the softmax
  const float* window_queries;     // [G, w, D], after RoPE
  const float* value_norms;        // [n], length of the value after the output projection
  const float* query_means;        // [G, D] of all queries so far, before RoPE
  const float* query_covariances;  // [G, D (D + 1) / 2] of them: lower triangles, row by row
  const float* const* columns;     // [num_columns][n], what the scorer remembers
} pith_head_input;

// Channels of a query or key as a complex number, which a position multiplies by magnitude * exp(i * angle * position).
typedef struct pith_rotated_pair {
  int32_t real;
  int32_t imaginary;
  double angle;  // radians
  double magnitude;
} pith_rotated_pair;

typedef struct pith_layer_input {
  size_t struct_size;
  int32_t layer;                         // counts layers with a global cache
  int32_t num_layers;
  int32_t num_heads;                     // kv heads
  int32_t group;                         // G
  int32_t key_dim;                       // D
  int32_t value_dim;                     // Dv
  int32_t window;                        // w: rows really present
  int32_t next_position;
  uint64_t seed;
  float attention_scale;
  const pith_head_input* const* heads;   // [num_heads]
  const pith_rotated_pair* rotation;     // [num_rotated], with PITH_NEED_QUERY_MOMENTS; other channels stay as they are
  size_t num_rotated;
  const double* params;                  // [num_params], as in the recipe
  const void* internal;                  // of pith_window_attention()
  float* const* remembered;              // [num_heads][n], all 0, with pith_modifier_options::remembers: for rerank()
} pith_layer_input;

// What some consecutive entries of one kv head received of new queries, or of those of the second reading.
typedef struct pith_observation {
  size_t struct_size;
  int32_t layer;
  int32_t kv_head;
  int32_t num_queries;
  int32_t num_entries;         // n
  const int32_t* positions;    // [n]
  const float* sum;            // [n] over queries: the mean over the group
  const float* squares;        // [n] over queries: the square of that mean
  const float* largest;        // [n] over queries and the group
  const double* params;
} pith_observation;

// scores: [num_heads][n], all 0 in the beginning. Larger stays; INFINITY stays first of all. NaN, -INFINITY or a
// return of false fail what was being read or compressed. Called from several threads, for different layers at once.
typedef bool (*pith_score_fn)(void* user, const pith_layer_input* layer, float* const* scores);
// Updates columns [num_columns][n]; what one entry gets must not hang on the others. Called from several threads.
typedef void (*pith_observe_fn)(void* user, const pith_observation* seen, float* const* columns);

typedef struct pith_param {
  size_t struct_size;  // of each element of an array
  const char* name;
  const char* help;
  double initial;
  double min;
  double max;
  bool whole;          // a whole number
} pith_param;

typedef struct pith_column {
  size_t struct_size;  // of each element of an array
  const char* name;
  float initial;       // of a new entry
} pith_column;

typedef struct pith_scorer_options {
  size_t struct_size;
  const char* summary;          // one line for listings
  const char* paper;            // "arXiv:2406.12335"
  uint32_t needs;               // PITH_NEED_*
  int32_t window;               // last queries to observe; recipes change it by the parameter "window", 1 to 4096
  bool aggregates;              // pith_window_attention() is used, so that recipes may name an agg=
  int32_t num_sinks;            // first tokens that stay unless the recipe says
  const pith_param* params;     // recipes give them by name, [num_params]
  size_t num_params;
  const pith_column* columns;   // remembered per entry and counted in the budget, [num_columns]
  size_t num_columns;
  pith_observe_fn observe;      // with PITH_NEED_EVERY_QUERY or PITH_NEED_REPEAT
  int32_t repeat_chunk;         // with PITH_NEED_REPEAT: tokens that one pass repeats; 0: 2000
} pith_scorer_options;

// From now on score=NAME works in every recipe, beside every built-in stage, and stands in pith_list_stages(). name:
// small letters, digits and _. `score` and `user` must live as long as the process. options: NULL: keys and values.
// INVALID_ARGUMENT: the name is taken, or the options make no sense. From any thread.
PITH_API pith_status pith_register_scorer(const char* name, pith_score_fn score, void* user,
                                          const pith_scorer_options* options);
// Within a score callback: attention of the window as the recipe's agg= makes it one number per entry, pooled over
// `pool` neighbours (1: not). The window's own entries, which stay, get INFINITY. scores: [n]. Returns how many were
// scored; 0 without PITH_NEED_WINDOW_PROBS.
PITH_API int32_t pith_window_attention(const pith_layer_input* layer, int32_t head, int32_t pool, float* scores);

// Aggregators, modifiers and allocators: agg=NAME, mod=NAME and alloc=NAME work from their registration on like
// score=NAME does: in every recipe, beside every other stage of whatever origin. What holds of pith_register_scorer()
// holds of them. A return of false, or results that are not what is asked for, fail what was being read or compressed,
// with a sentence; nothing else. All are called from several threads, for different layers or heads at once.

// Attention of the last queries over some entries of one kv head, for an aggregator.
typedef struct pith_window_rows {
  size_t struct_size;
  int32_t group;               // G
  int32_t num_rows;            // queries of each query head
  int32_t num_entries;         // n
  int32_t pool_width;          // neighbours over which the recipe's scorer wants the result pooled; 1: not
  bool pool_largest;           // by the largest of them, else by their mean (0 for those that are not there)
  const float* probabilities;  // of query head g and row t: [n] from g * group_stride + t * row_stride on
  size_t group_stride;
  size_t row_stride;
  const double* params;        // [num_params], as in the recipe
} pith_window_rows;

// numbers: [n], all 0 in the beginning: one of each entry. They must be finite.
typedef bool (*pith_aggregate_fn)(void* user, const pith_window_rows* rows, float* numbers);

typedef struct pith_aggregator_options {
  size_t struct_size;
  const char* summary;
  const char* paper;
  const pith_param* params;
  size_t num_params;
  bool pools;                // the function pools; else pith pools what it gives
} pith_aggregator_options;

PITH_API pith_status pith_register_aggregator(const char* name, pith_aggregate_fn aggregate, void* user,
                                              const pith_aggregator_options* options);

// scores: [num_heads][n], those of the scorer and of the modifiers before this one, to be changed. INFINITY stays first
// of all. Neither NaN nor -INFINITY may come back.
typedef bool (*pith_modify_fn)(void* user, const pith_layer_input* layer, float* const* scores);

// One kv head when it is known how many of its entries stay.
typedef struct pith_head_ranking {
  size_t struct_size;
  int32_t layer;
  int32_t num_layers;
  int32_t head;
  int32_t num_entries;      // n
  int32_t keep;             // entries that stay, pinned ones among them
  int32_t floor;            // of these, the best ones of which the allocator made the head sure
  const uint8_t* pinned;    // [n] or NULL
  const float* remembered;  // [n], as modify() has left it, or NULL
  const double* params;
} pith_head_ranking;

// scores: [n], to be changed as in modify(). Called after budgets are known, of each head by itself.
typedef bool (*pith_rerank_fn)(void* user, const pith_head_ranking* head, float* scores);

typedef struct pith_modifier_options {
  size_t struct_size;
  const char* summary;
  const char* paper;
  uint32_t needs;            // PITH_NEED_*, but those of observe()
  int32_t window;            // as of scorers; 0: the window of the recipe's scorer, without a parameter
  const pith_param* params;
  size_t num_params;
  pith_rerank_fn rerank;     // may be NULL
  bool remembers;            // modify() fills pith_layer_input::remembered for rerank()
} pith_modifier_options;

// modify: may be NULL where there is a rerank().
PITH_API pith_status pith_register_modifier(const char* name, pith_modify_fn modify, void* user,
                                            const pith_modifier_options* options);

typedef struct pith_scored_layer {
  size_t struct_size;
  int32_t layer;
  int32_t num_heads;
  int32_t window;                // newest entries that were scored as the window
  const int32_t* num_entries;    // [num_heads] n
  const float* const* scores;    // [num_heads][n]
  const uint8_t* const* pinned;  // [num_heads][n] or NULL; not 0: no recipe may drop it
  const double* const* notes;    // [num_heads][num_notes] of prepare(), or NULL
} pith_scored_layer;

// Layers that are divided up: one, or all so far with pith_allocator_options::across_layers.
typedef struct pith_division {
  size_t struct_size;
  int32_t num_layers;                      // of these; pith_scored_layer::layer says which
  int32_t keep;                            // entries of each head if all had the same
  int64_t total;                           // entries of all these heads together
  double keep_fraction;                    // `keep` of the entries that are there
  const pith_scored_layer* const* layers;  // [num_layers]
  int32_t* const* floors;                  // [num_layers][num_heads], all 0; may be filled: its best ones, as sure ones
  const double* params;
} pith_division;

// keep: [num_layers][num_heads], all 0 in the beginning. Numbers below 0 are an error; beyond a head's entries they are
// cut, and what is beyond the total is taken from the heads with most. Pinned entries have room in any case.
typedef bool (*pith_allocate_fn)(void* user, const pith_division* division, int32_t* const* keep);
// notes: [num_heads][num_notes], all 0 in the beginning: what allocate() wants to know of a layer, while keys and
// attention are at hand. They must be finite.
typedef bool (*pith_prepare_fn)(void* user, const pith_layer_input* layer, double* const* notes);

typedef struct pith_allocator_options {
  size_t struct_size;
  const char* summary;
  const char* paper;
  uint32_t needs;            // of prepare(): PITH_NEED_*, but those of observe()
  int32_t window;            // as of modifiers
  const pith_param* params;
  size_t num_params;
  bool across_layers;        // allocate() divides all layers together, once all are scored; else one after the other
  pith_prepare_fn prepare;   // may be NULL
  int32_t num_notes;         // of each head, with prepare
} pith_allocator_options;

PITH_API pith_status pith_register_allocator(const char* name, pith_allocate_fn allocate, void* user,
                                             const pith_allocator_options* options);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // PITH_POLICY_H_
