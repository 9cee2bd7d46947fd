// The policy algebra: Observe -> Score -> Aggregate -> Allocate -> Act.
//
// A policy sees one layer of one sequence at a time as plain float32 arrays, so
// it runs without a model. The engine computes only what needs() names.
//
// Shapes: L layers, H query heads, G query heads per kv head, n entries of one
// kv head (ragged: each head has its own n), D and Dv head sizes, w window.
#ifndef PITH_POLICY_POLICY_H_
#define PITH_POLICY_POLICY_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/page_layout.h"
#include "kernels/rotation.h"
#include "pith/types.h"
#include "policy/act/merge.h"
#include "policy/prefill/criti.h"
#include "policy/repeat.h"
#include "policy/turns/turns.h"

namespace pith {

enum Need : uint32_t {
  kNeedKeys = 1u << 0,           // HeadInputs::keys
  kNeedValues = 1u << 1,         // HeadInputs::values
  kNeedWindowProbs = 1u << 2,    // HeadInputs::window_probs
  kNeedWindowQueries = 1u << 3,  // HeadInputs::window_queries
  kNeedEveryQuery = 1u << 4,     // Scorer::Observe is called with what every query paid (Observation::sum)
  kNeedValueNorms = 1u << 5,     // HeadInputs::value_norms (output projection)
  kNeedRepeat = 1u << 6,         // Scorer::Observe is called with the attention of a second reading (repeat());
                                 // columns then live as long as one compression, or in the pages by blocks
  kNeedQueryMoments = 1u << 7,   // HeadInputs::query_means, query_covariances; the model's rotation must be known
  kNeedSquares = 1u << 8,        // Observation::squares beside the sum
  kNeedLargest = 1u << 9,        // Observation::largest beside the sum
  kNeedReferences = 1u << 10,    // queries of a second reading (repeat()), for what acts on entries that do not stay
  kNeedRows = 1u << 11,          // Observation::probabilities, of whole heads
};

// With kNeedQueryMoments: the first queries are outliers, and no statistics count them.
inline constexpr int kUncountedQueries = 4;

// What a policy may read of one kv head. Entries are in time order.
struct HeadInputs {
  int num_entries = 0;                       // n
  std::span<const int32_t> positions;        // [n], ascending
  std::span<const uint8_t> pinned;           // [n] or empty; not 0 = no recipe may drop it
  const float* keys = nullptr;               // [n, D], after RoPE
  const float* values = nullptr;             // [n, Dv]
  const float* window_probs = nullptr;       // [G, w, n] softmax attention of the last w queries
  const float* window_queries = nullptr;     // [G, w, D], after RoPE
  const float* value_norms = nullptr;        // [n] mean over the group of ||V W_O^q||_1 (CriticalKV)
  const float* query_means = nullptr;        // [G, D] of all queries so far, before RoPE
  const float* query_covariances = nullptr;  // [G, D (D + 1) / 2] of them, as triangles (kernels/triangles.h)
  std::span<float* const> columns;           // one [n] array per Scorer::columns(), in that order
};

struct LayerInputs {
  int layer = 0;
  int num_layers = 0;   // layers that hold a global cache
  int group = 1;        // G
  int key_dim = 0;      // D
  int value_dim = 0;    // Dv
  int window = 0;       // w: rows really present, at most Scorer::window()
  uint64_t seed = 0;    // of the sequence; for random choices
  int32_t next_position = 0;    // of the next token
  float attention_scale = 1;    // of q.k before the softmax
  const Rotation* rotation = nullptr;  // with kNeedQueryMoments
  std::span<const HeadInputs> heads;  // [kv heads]
};

// Attention of some consecutive queries over one kv head, as it happens: what each entry received of all of them, or
// row by row. policy/score/observe.h makes the one of the other.
struct Observation {
  int layer = 0;
  int kv_head = 0;
  int group = 1;                         // G
  int num_queries = 0;                   // T
  int num_entries = 0;                   // n
  const float* probabilities = nullptr;  // [G, T, n], 0 where masked; null where the statistics are there
  std::span<const int32_t> query_positions;  // [T]
  std::span<const int32_t> positions;        // [n]
  const float* sum = nullptr;      // [n] over queries: the mean over the group
  const float* squares = nullptr;  // [n] over queries: the square of that mean (kNeedSquares)
  const float* largest = nullptr;  // [n] over queries and the group (kNeedLargest)
  int32_t first_of_chunk = -1;     // position of the first query of all that were read together; -1: of these

  int32_t chunk_start() const { return first_of_chunk >= 0 ? first_of_chunk : query_positions.front(); }
};

class Stage;

// What one stage remembers of a layer from scoring to selection.
struct StageNotes {
  const Stage* owner = nullptr;
  std::vector<std::vector<float>> column;  // [kv heads][n], or of the first entries of each; follows those that stay
  std::vector<double> numbers;
};

// Scores of one layer. Larger stays. +infinity always stays (as far as the
// budget allows), and ties are broken towards newer entries.
struct LayerScores {
  int layer = 0;
  std::vector<std::vector<float>> heads;  // [kv heads][n]

  // What Select() and SelectAll() still need once keys and attention are gone. All [kv heads][n],
  // empty where a recipe has no use for them.
  int num_layers = 0;
  std::vector<std::vector<uint8_t>> pinned;     // copied from the inputs
  std::vector<std::vector<float>> ties;         // decides among equal scores; larger stays
  int window = 0;                               // newest entries that were scored as the window
  bool refined = false;                         // Policy::Refine() has been called
  std::vector<StageNotes> notes;                // each stage knows its own alone
  std::string fault;                            // one sentence of a stage that failed; nothing may be dropped by these

  // Made where there are none.
  StageNotes& NotesOf(const Stage* owner);
  // There are none where the stage has made none.
  const StageNotes& NotesOf(const Stage* owner) const;
};

struct ColumnSpec {
  std::string_view name;
  float initial = 0;
};

// How much may stay. keep is the number of entries per kv head if it were
// uniform; an allocator spreads keep * kv heads * layers entries in total.
struct Budget {
  int keep = 0;
  double keep_fraction = 1;  // of n, for methods whose formula wants the ratio
  // Not 0: n * ratio before rounding, as papers count. Totals are then int(keep_exact * heads), and
  // a method's own rounding may exceed that by less than one entry per head. 0: keep is a hard limit.
  double keep_exact = 0;
  // Entries that each head gets beside those that are selected, if anything of it goes (Policy::StandIns()). Filled by
  // the policy, which leaves room for them; kNoStandIns: there can't be any.
  static constexpr int kNoStandIns = -1;
  int stand_ins = 0;
  // Above 1: heads are stored in whole pages of so many entries and a rest costs more, so an allocator that gives
  // heads different numbers gives multiples of it.
  int page_entries = 1;
  double rest_cost = 1;  // of an entry outside a whole page, in entries of one
  // What does not stay goes to whole pages of fewer bits, so that a head's number of those is a multiple of this.
  int rest_page_entries = 1;
};

class LessMaps;
struct DemoteOptions;
struct PruneOptions;
struct ResidueOptions;

// Entries that stay: ascending indices into the head's entries.
using KeptHeads = std::vector<std::vector<int32_t>>;  // [kv heads]

// One complete method, with its parameters fixed. Stateless between calls: what
// must be remembered per entry lives in columns.
//
// Threads: const methods may be called concurrently on different layers.
class Policy {
 public:
  virtual ~Policy() = default;

  virtual uint32_t needs() const = 0;      // Need bits
  virtual int window() const { return 0; }  // w, with kNeedWindow*
  virtual std::vector<ColumnSpec> columns() const { return {}; }

  // True: Select() for a layer depends on that layer alone, so the engine may
  // evict while the block is still in the next layers. False: SelectAll().
  virtual bool layer_local() const { return true; }
  // With !layer_local(). True: SelectAll() may be given the first layers alone, with what later ones leave of the total
  // (policy/cascade.h).
  virtual bool cascades() const { return false; }
  // True: heads may end with different numbers of entries.
  virtual bool ragged() const { return true; }
  // True: this policy never drops anything ("full").
  virtual bool keeps_everything() const { return false; }
  // False where the method's idea allows no eviction while decoding.
  virtual bool decodes() const { return true; }

  // One sentence where this policy cannot serve a model with so many layers that hold a global cache.
  virtual Status CheckLayers(int num_layers) const { return (void)num_layers, Status(); }

  // With kNeedEveryQuery: updates columns with what new queries paid. [n] each.
  virtual void Observe(const Observation&, std::span<float* const> columns) const { (void)columns; }

  // Not null: the prompt is read once more before Score() (kNeedRepeat, kNeedReferences); it must be whole unless that
  // goes block by block.
  virtual const RepeatOptions* repeat() const { return nullptr; }

  // Not null: entries that do not stay are merged into those that do (act=merge), which the cache must be
  // able to rewrite.
  virtual const MergeOptions* merge() const { return nullptr; }

  // Not null: new entries (act=residue) or kept ones (act=match) stand in for the others; the cache must let them.
  virtual const ResidueOptions* residue() const { return nullptr; }
  // How many of them each head gets; what Select() and SelectAll() choose is so many fewer.
  virtual int StandIns(const Budget& budget) const { return (void)budget, 0; }

  // Not null: what does not stay as it is goes to fewer bits (act=demote), whose entries stay so.
  virtual const DemoteOptions* demote() const { return nullptr; }

  // Not null: what stays loses channels of its keys (act=prune), once for good, when the prompt is whole.
  virtual const PruneOptions* prune() const { return nullptr; }

  // Not null: what does not stay joins a state beside its head (act=less), by these maps.
  virtual const LessMaps* less() const { return nullptr; }

  // It is asked once, when the whole prompt has been read: it can't drop anything before.
  bool needs_whole_prompt() const;

  virtual void Score(const LayerInputs& inputs, LayerScores& scores) const = 0;

  // Layer-local policies. Never returns fewer than min(keep, n) entries per head
  // on average (but for those that find their own size, as DBudgetKV does), nor
  // more than keep * kv heads in total, save for pinned entries. kInvalidArgument: a registered stage failed.
  virtual Result<KeptHeads> Select(const LayerInputs& inputs, const LayerScores& scores,
                                   const Budget& budget) const = 0;

  // Changes the scores of a layer by the budget that it will be selected with; SelectAll() does so itself where this
  // was not called.
  virtual void Refine(const Budget& budget, LayerScores& scores) const { (void)budget, scores.refined = true; }

  // Policies over all layers: scores of every layer, in order. Returns [L] kept heads;
  // the total is at most keep * kv heads * L. kInvalidArgument as Select().
  virtual Result<std::vector<KeptHeads>> SelectAll(std::span<const LayerScores> scores, const Budget& budget) const;

  // The scores as they stand when entries are chosen: budget-dependent stages applied, protected
  // entries +infinity. For dumps and tests. inputs: null where only scores are left.
  virtual std::vector<LayerScores> Rank(const LayerInputs* inputs, std::span<const LayerScores> scores,
                                        const Budget& budget) const {
    (void)inputs, (void)budget;
    return {scores.begin(), scores.end()};
  }
};

// What `pith recipes` prints.
struct RecipeInfo {
  std::string name;
  std::string paper;     // "arXiv:2404.14469"
  std::string summary;   // one sentence
  std::string stages;    // "score=snapkv agg=mean alloc=uniform act=drop"
  std::string needs;     // "attention of the last 32 queries"
  std::string cost;      // "O(w n d) per block"
  std::string when;      // "prefill, blocks, decode"
  std::string good_for;  // "prompts that end with their question"
  std::string parameters;  // "window=32 (1..512), pool=5 (1..63)"
};

std::vector<RecipeInfo> ListRecipes();

// The stages that recipes are made of, for `pith recipes`.
struct StageListing {
  std::string kind;        // "score", "agg", "mod", "alloc", "act", "prefill", "turns"
  std::string name;
  std::string paper;
  std::string summary;
  std::string parameters;  // as in RecipeInfo
};

std::vector<StageListing> ListStages();

// docs/recipes/README.md, from the two lists above.
std::string RecipesMarkdown();

struct Recipe {
  std::string text;       // normalised: parses to the same policy
  std::shared_ptr<const Policy> policy;
  int num_sinks = -1;     // first entries pinned by the engine: sinks=N; -1: as the engine sees fit
  std::optional<CritiOptions> prefill;  // attention work that may be skipped while a prompt is read
  std::optional<TurnOptions> turns;     // what happens between the turns of a conversation
  // What stays is stored in this format: format=q4, or format=q8/q4 for keys and values; unset: as the cache is.
  std::optional<PageFormat> format;
  // format=auto:0.95: f16 where the bytes there are hold every entry; else the most precise of kAutoFormats
  // (policy/storage.h) that holds this share of them, else the last. The engine, which knows the bytes, settles it
  // (engine/resolved.h); format is unset.
  std::optional<double> auto_format;
  // "A or B": B, which works block by block and while decoding, where A wants the whole prompt. Null: there is no B.
  std::shared_ptr<const Recipe> while_partial;
};

// The alternative that works. whole: the recipe is asked once, when the prompt has been read.
inline const Recipe& AlternativeFor(const Recipe& recipe, bool whole) {
  return whole || recipe.while_partial == nullptr ? recipe : *recipe.while_partial;
}
// True: no alternative works but on a whole prompt.
inline bool NeedsWholePrompt(const Recipe& recipe) {
  // A turn is whole when it is over.
  return !recipe.turns && AlternativeFor(recipe, false).policy->needs_whole_prompt();
}

// A name ("snapkv"), a name with parameters ("snapkv:window=64,pool=7"), or
// stages ("score=snapkv:window=64 alloc=ada:alpha=0.2"); two of these with "or" between them. kInvalidArgument or
// kNotFound with one sentence that names the nearest valid choice.
Result<Recipe> ParseRecipe(std::string_view text);

}  // namespace pith

#endif  // PITH_POLICY_POLICY_H_
