// What the options of a sequence mean for a model, with nothing left open.
//
//   text  --ParseRecipe()-->  Recipe  --Resolve()-->  ResolvedSequence  -->  plan, setup, engine
//
// A Recipe says what a user wrote: it may have two alternatives, a format that hangs on bytes which are not known yet,
// and numbers that whoever runs it fills in. Resolve() is the one place where all of that is decided. Behind it there
// is one policy, never null, and no default.
#ifndef PITH_ENGINE_RESOLVED_H_
#define PITH_ENGINE_RESOLVED_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/cache_formats.h"
#include "engine/engine.h"
#include "engine/eviction_schedule.h"
#include "host/model.h"
#include "pith/types.h"
#include "policy/act/less.h"
#include "policy/policy.h"

namespace pith {

// In which format a compression stores what stays.
struct StorageRule {
  // The most precise first; none: entries stay in the format that they have.
  std::vector<PageFormat> formats = {};
  // Of several the first one that holds this share of the entries, else the last.
  double least_share = 1;

  // `share` of the bytes that `mean` entries take in f16 is there. entry: in which they arrived.
  PageFormat FormatFor(const ModelInfo& info, PageFormat entry, double mean, double share) const;
  // The same where it is known which share of the entries anybody looks at: as long as four bits hold these, entries go
  // rather than all having fewer bits.
  PageFormat FormatFor(const ModelInfo& info, PageFormat entry, double mean, double share, double looked_at) const;
  // One of them is another than that in which entries arrived.
  bool Converts(PageFormat entry) const;
};

// One alternative of a recipe.
struct ResolvedRecipe {
  std::string text;                      // of all of it, by which sessions and prefixes are told apart
  std::shared_ptr<const Policy> policy;  // never null
  // Judges a turn where `policy` has no room to read it again; `policy` itself where nothing else would need less.
  std::shared_ptr<const Policy> in_little_room;
  int num_sinks = 0;                     // first entries that a compression leaves where they are
  int num_running_sinks = 0;             // and eviction while text is read or written
  CritiOptions prefill = {.budget = 0};  // 0: rows of a prompt attend to everything
  TurnOptions turns;                     // kNone: nothing happens between turns
  StorageRule storage = {};

  bool skips_attention() const { return prefill.budget > 0; }
  bool has_turns() const { return turns.method != TurnMethod::kNone; }
};

// How the running recipe evicts.
struct EvictionStyle {
  bool evicts = true;
  std::shared_ptr<const EvictionSchedule> schedule = EvictionSchedule::InLayer();
  bool ragged = true;  // heads end with different numbers of entries, so each may waste a page
};

struct ResolvedSequence {
  int num_ctx = 0;
  CompressMode compress = CompressMode::kBlock;
  uint64_t seed = 0;
  int keep_entries = 0;  // 0: as many as the bytes hold
  int keep_queries = 0;
  ResolvedRecipe recipe;                      // that runs
  std::vector<ResolvedRecipe> later_recipes;  // for Engine::Compress()
  CacheFormats formats;
  PageFormat turn_format;  // of what stays of a turn that is over; without turns, formats.full()
  EvictionStyle style;
  const LessMaps* maps = nullptr;  // of the states of entries that are gone, where a recipe has such
  SequenceOptions options;  // from which the same follows for a sequence with other bytes

  const Policy& policy() const { return *recipe.policy; }
  // What is read is repeated block by block, and judged by that (engine/block_rereader.h).
  bool rereads_blocks() const {
    return compress == CompressMode::kBlock && !recipe.has_turns() && policy().repeat() != nullptr;
  }
  // What it holds is compressed again and again while more is read, so that its text stays known.
  bool compresses_as_it_goes() const { return recipe.has_turns() || rereads_blocks(); }
  bool converts_turns() const { return !(turn_format == formats.full()); }
};

// kInvalidArgument, kUnsupported: recipes, formats and model cannot work with each other. Where format=auto runs by
// blocks, it becomes the format in which the budget of these options holds enough of the context.
Result<ResolvedSequence> Resolve(const ModelInfo& info, const EngineOptions& options);

// Of the recipe what is asked once, when a prompt has been read; types: of the cache, as its owner says, which outweigh
// format=auto. kInvalidArgument: it is empty.
Result<ResolvedRecipe> ResolveForCompress(const Recipe& recipe, PageFormat types = {});

// Makes an engine that evicts by blocks keep `share` of num_entries entries, with the format that it means: of the
// entries, or of their f16 bytes where the recipe has a format.
void KeepShare(const ModelInfo& info, const Recipe& recipe, int num_entries, double share, EngineOptions* options);

}  // namespace pith

#endif  // PITH_ENGINE_RESOLVED_H_
