#include "engine/resolved.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "engine/latent_reader.h"
#include "engine/less_states.h"
#include "engine/plan.h"
#include "policy/act/demote.h"
#include "policy/act/residue.h"
#include "policy/storage.h"

namespace pith {
namespace {

// Eviction while text streams by needs its sinks (StreamingLLM, arXiv:2309.17453); a recipe may say otherwise.
constexpr int kRunningSinks = 4;
// A cascade shrinks the layers about so often per block: each time costs a selection over all of them.
constexpr int kCascadeSteps = 8;

// held(format): the share of the entries that it holds. What arrived stays so only where all of them do.
template <typename Held>
PageFormat FirstThatHolds(std::span<const PageFormat> formats, PageFormat entry, double least, const Held& held) {
  for (const PageFormat format : formats.first(formats.size() - 1)) {
    if (held(format) >= (format == entry ? 1.0 : least)) return format;
  }
  return formats.back();
}

StorageRule RuleOf(const Recipe& recipe) {
  if (recipe.auto_format) {
    StorageRule rule{.formats = {kAutoFormats.begin(), kAutoFormats.end()}, .least_share = *recipe.auto_format};
    if (const ResidueOptions* residue = recipe.policy->residue(); residue != nullptr) {
      rule.formats.back() = residue->auto_last;
      // By blocks fewer entries, for which others stand in, lose less than fewer bits than four (docs/quality.md).
      if (!recipe.policy->needs_whole_prompt())
        std::erase_if(rule.formats, [](PageFormat format) { return format.bits() < PageFormat(KvFormat::kQ4).bits(); });
    }
    return rule;
  }
  return {.formats = recipe.format ? std::vector<PageFormat>{*recipe.format} : std::vector<PageFormat>()};
}

// format=auto has become this one.
void SetFormat(PageFormat format, Recipe& recipe) {
  recipe.auto_format.reset();
  recipe.format = format == PageFormat() ? std::nullopt : std::optional(format);
}

Recipe WithFormatFor(const ModelInfo& info, const Recipe& recipe, double mean, double share) {
  Recipe chosen = recipe;
  if (recipe.auto_format) SetFormat(RuleOf(recipe).FormatFor(info, PageFormat(), mean, share), chosen);
  return chosen;
}

// Needs nothing that would have to be noted while text is read.
bool NeedsNoNotes(const Policy& policy) {
  constexpr uint32_t kNoted =
      kNeedWindowProbs | kNeedWindowQueries | kNeedEveryQuery | kNeedQueryMoments | kNeedRepeat | kNeedReferences;
  return (policy.needs() & kNoted) == 0 && policy.columns().empty() && policy.merge() == nullptr;
}

// Its alternative, else keys alone.
Result<std::shared_ptr<const Policy>> InLittleRoom(const Recipe& recipe) {
  const RepeatOptions* const repeat = recipe.policy->repeat();
  if (!recipe.turns && (repeat == nullptr || !repeat->by_blocks)) return recipe.policy;
  if (recipe.while_partial != nullptr && NeedsNoNotes(*recipe.while_partial->policy))
    return recipe.while_partial->policy;
  if (repeat == nullptr) return recipe.policy;
  PITH_ASSIGN_OR_RETURN(const Recipe keys, ParseRecipe("keydiff"));
  return keys.policy;
}

Result<ResolvedRecipe> ResolveAlternative(const Recipe& recipe) {
  ResolvedRecipe resolved{.text = recipe.text,
                          .policy = recipe.policy,
                          .in_little_room = {},
                          .num_sinks = std::max(recipe.num_sinks, 0),
                          .num_running_sinks = recipe.num_sinks >= 0 ? recipe.num_sinks : kRunningSinks,
                          .prefill = recipe.prefill.value_or(CritiOptions{.budget = 0}),
                          .turns = recipe.turns.value_or(TurnOptions()),
                          .storage = RuleOf(recipe)};
  PITH_ASSIGN_OR_RETURN(resolved.in_little_room, InLittleRoom(recipe));
  return resolved;
}

auto TwoFormats(const std::string& says, PageFormat types) {
  return InvalidArgument(fmt::format("{}, and the cache's types say {}; give one of the two", says, types.Name()));
}

// Of a recipe whose formats are known. Those of turns that are over are another matter.
Result<CacheFormats> FormatsFor(const SequenceOptions& said, std::span<const ResolvedRecipe> later) {
  PageFormat format = said.format;
  if (const DemoteOptions* demote = said.recipe.policy->demote(); demote != nullptr) {
    if (!(format == PageFormat())) {
      return TwoFormats(said.recipe.text + " says itself in which formats entries are stored", format);
    }
    CacheFormats formats{.entry = PageFormat(), .converted = std::nullopt, .chosen = demote->low};
    // Once a whole prompt is there, Compress() sees to that.
    if (said.compress == CompressMode::kBlock && !(demote->high == PageFormat())) formats.converted = demote->high;
    return formats;
  }
  // A prompt that is compressed once is read as it arrives: Compress() converts what stays of it.
  const bool after = said.compress == CompressMode::kAfter && !said.recipe.turns;
  if (const std::optional<PageFormat>& own = said.recipe.format; own && !said.recipe.turns) {
    if (!(format == PageFormat()) && !(format == *own)) return TwoFormats("the recipe stores " + own->Name(), format);
    if (!after) format = *own;
  }
  const CacheFormats formats = FormatsOf(format);
  if (after && said.recipe.format && !(formats == CacheFormats()) && RuleOf(said.recipe).Converts(formats.entry)) {
    return InvalidArgument(fmt::format("the recipe '{}' converts what stays of an f16 cache, and this one is {}",
                                       said.recipe.text, format.Name()));
  }
  for (const ResolvedRecipe& recipe : later) {
    if (recipe.storage.Converts(formats.entry) && !(formats == CacheFormats())) {
      return InvalidArgument(
          fmt::format("the recipe '{}' converts an f16 cache, and this one is {}", recipe.text, format.Name()));
    }
  }
  return formats;
}

// What stays of a turn goes to the recipe's format when the turn is over; until then it is f16.
Status CheckTurnFormat(const SequenceOptions& said) {
  if (!said.recipe.turns || !said.recipe.format || *said.recipe.format == PageFormat()) return {};
  if (said.recipe.turns->method == TurnMethod::kEpiCache) {
    return Unsupported(
        "turns=epicache evicts from the same entries again and again, so they stay as they are: leave out format=");
  }
  if (said.format == PageFormat()) return {};
  return TwoFormats("the recipe stores " + said.recipe.format->Name(), said.format);
}

Status CheckRotations(const ModelInfo& info, const ResolvedRecipe& recipe) {
  const DemoteOptions* const demote = recipe.policy->demote();
  const bool of_keys = demote != nullptr && demote->makes_latents();
  if ((recipe.policy->needs() & kNeedQueryMoments) == 0 && !of_keys) return {};
  for (const LayerShape& layer : info.layers) {
    if (layer.kind != LayerKind::kGlobal || layer.rotation) continue;
    return Unsupported(
        fmt::format("{} {} by undoing their rotation (RoPE), which {} models apply in a form that cannot be undone",
                    recipe.text, of_keys ? "compares keys" : "foresees queries", info.architecture));
  }
  return {};
}

Status CheckRecipe(const ModelInfo& info, const ResolvedRecipe& recipe, const CacheFormats& formats) {
  const Policy& policy = *recipe.policy;
  if (policy.merge() != nullptr) {
    const bool converts = recipe.storage.Converts(PageFormat());
    if (!(formats == CacheFormats()) || converts) {
      const PageFormat to = converts ? recipe.storage.FormatFor(info, PageFormat(), 1, 0) : formats.full();
      return InvalidArgument(
          fmt::format("act=merge rewrites keys and values, which a cache in {} cannot do: use f16", to.Name()));
    }
  }
  // By blocks nothing stands in for what goes then.
  if (policy.residue() != nullptr && !(formats.entry == PageFormat()) && policy.needs_whole_prompt()) {
    return InvalidArgument(fmt::format("act={} writes entries, which a cache in {} cannot do: use f16",
                                       policy.residue()->match ? "match" : "residue", formats.entry.Name()));
  }
  if (policy.demote() != nullptr && !(formats.entry == PageFormat())) {
    return InvalidArgument(fmt::format("act={} stores entries in f16 until it judges them, and this cache is {}",
                                       policy.demote()->makes_latents() ? "delta" : "demote", formats.entry.Name()));
  }
  if (policy.demote() != nullptr && policy.demote()->maps != nullptr) {
    PITH_RETURN_IF_ERROR(CheckLatentMaps(info, *policy.demote()->maps));
  }
  if (policy.prune() != nullptr && formats.full().coded()) {
    return InvalidArgument("act=prune takes channels out of pages, which those of comp are too tightly packed for");
  }
  if (policy.prune() != nullptr && formats.chosen)
    return InvalidArgument("act=prune does not go with a recipe of act=demote before it");
  if (const LessMaps* maps = policy.less(); maps != nullptr) PITH_RETURN_IF_ERROR(CheckMaps(info, *maps));
  PITH_RETURN_IF_ERROR(policy.CheckLayers(CountLayers(info, LayerKind::kGlobal)));
  return CheckRotations(info, recipe);
}

// Notes the maps of a recipe, if it has some.
Status ShareMaps(const ResolvedRecipe& recipe, ResolvedSequence& sequence) {
  const LessMaps* const maps = recipe.policy->less();
  if (maps == nullptr) return {};
  if (sequence.maps != nullptr && sequence.maps->fingerprint() != maps->fingerprint()) {
    return InvalidArgument("the recipes of a sequence share the states of act=less: name one file of maps");
  }
  sequence.maps = maps;
  return {};
}

EvictionStyle StyleOf(const ModelInfo& info, const ResolvedSequence& sequence) {
  const Policy& policy = sequence.policy();
  EvictionStyle style;
  style.evicts =
      sequence.compress == CompressMode::kBlock && !policy.keeps_everything() && !sequence.recipe.has_turns();
  const bool shares = std::ranges::any_of(info.layers, &LayerShape::shared);
  // Pages in few bits are encoded again whenever entries leave them: once a block must do.
  const bool low = sequence.formats.full().whole_pages();
  if (shares || (style.evicts && !policy.layer_local())) style.schedule = EvictionSchedule::AfterBlock();
  if (!shares && !low && style.evicts && !policy.layer_local() && policy.cascades()) {
    style.schedule = EvictionSchedule::Cascade(std::max(1, CountLayers(info, LayerKind::kGlobal) / kCascadeSteps));
  }
  if (sequence.rereads_blocks()) style.schedule = EvictionSchedule::BetweenBlocks();
  style.ragged = style.evicts && policy.ragged();
  return style;
}

// In which format the budget holds enough of the context, for eviction by blocks.
PageFormat AutoFormat(const ModelInfo& info, const ResolvedSequence& sequence, const EngineOptions& options) {
  const StorageRule& rule = sequence.recipe.storage;
  return FirstThatHolds(rule.formats, PageFormat(), rule.least_share, [&](PageFormat format) {
    ResolvedSequence tried = sequence;
    tried.formats = FormatsOf(format);
    tried.style = StyleOf(info, tried);
    const Result<MemoryPlan> plan = PlanMemory(info, tried, options);
    return plan ? static_cast<double>(plan->keep_entries + plan->slack_entries) / sequence.num_ctx : 0.0;
  });
}

// Says which alternative runs, and in which format where the recipe leaves that open and it can be known.
void ChooseFormat(const ModelInfo& info, ResolvedSequence& sequence, EngineOptions& said) {
  if (!said.recipe.auto_format) return;
  if (const std::optional<TurnOptions>& turns = said.recipe.turns) {
    // For good: the first turn's pages are those of the others. Rests of pages are shared by turns.
    constexpr double kManyEntries = 1e6;
    const double share = turns->method == TurnMethod::kFlowKv ? 1 - turns->drop : 1.0;
    said.recipe = WithFormatFor(info, said.recipe, kManyEntries, share);
  } else if (said.compress == CompressMode::kAfter && said.format == PageFormat()) {
    return;  // Compress() knows
  } else {
    const bool is_chosen = !(said.format == PageFormat()) || said.budget_bytes == 0;
    SetFormat(is_chosen ? PageFormat() : AutoFormat(info, sequence, said), said.recipe);
  }
  sequence.recipe.storage = RuleOf(said.recipe);
}

}  // namespace

PageFormat StorageRule::FormatFor(const ModelInfo& info, PageFormat entry, double mean, double share) const {
  if (formats.empty()) return entry;
  return FirstThatHolds(formats, entry, least_share, [&](PageFormat format) {
    return EntriesInBytes(info, format, FormatsOf(format).converted.has_value(), mean, share) / mean;
  });
}

PageFormat StorageRule::FormatFor(const ModelInfo& info, PageFormat entry, double mean, double share,
                                  double looked_at) const {
  const PageFormat chosen = FormatFor(info, entry, mean, share), four = KvFormat::kQ4;
  const auto place = std::ranges::find(formats, four);
  if (place == formats.end() || std::find(place + 1, formats.end(), chosen) == formats.end()) return chosen;
  return EntriesInBytes(info, four, true, mean, share) >= looked_at * mean ? four : chosen;
}

bool StorageRule::Converts(PageFormat entry) const {
  return std::ranges::any_of(formats, [entry](PageFormat to) { return !(to == entry); });
}

Result<ResolvedSequence> Resolve(const ModelInfo& info, const EngineOptions& options) {
  EngineOptions said = options;
  if (said.recipe.policy == nullptr) {
    PITH_ASSIGN_OR_RETURN(said.recipe, ParseRecipe("full"));
  }
  // A turn is whole when it is over.
  const bool whole = said.recipe.turns || said.compress == CompressMode::kAfter;
  if (!whole) said.recipe = Recipe(AlternativeFor(said.recipe, false));
  ResolvedSequence sequence;
  sequence.num_ctx = said.num_ctx;
  sequence.compress = said.compress;
  sequence.seed = said.seed;
  sequence.keep_entries = said.keep_entries;
  sequence.keep_queries = said.keep_queries;
  PITH_ASSIGN_OR_RETURN(sequence.recipe, ResolveAlternative(said.recipe));
  if (!whole && sequence.policy().repeat() != nullptr && std::ranges::any_of(info.layers, &LayerShape::shared)) {
    // Layers that share a cache need a repetition's rows to its end, for which there is no room.
    sequence.recipe.policy = sequence.recipe.in_little_room;
  }
  for (const Recipe& later : said.later_recipes) {
    PITH_ASSIGN_OR_RETURN(sequence.later_recipes.emplace_back(), ResolveForCompress(later, said.format));
  }
  ChooseFormat(info, sequence, said);
  PITH_RETURN_IF_ERROR(CheckTurnFormat(said));
  PITH_ASSIGN_OR_RETURN(sequence.formats, FormatsFor(said, sequence.later_recipes));
  const bool own = said.recipe.turns && said.recipe.format && !(*said.recipe.format == PageFormat());
  sequence.turn_format = own ? *said.recipe.format : sequence.formats.full();
  if (!whole && said.recipe.policy->needs_whole_prompt()) {
    return InvalidArgument(
        fmt::format("{} needs the whole prompt before it drops anything, so it cannot evict after each block: use it "
                    "with --compress after",
                    said.recipe.text));
  }
  PITH_RETURN_IF_ERROR(CheckRecipe(info, sequence.recipe, sequence.formats));
  PITH_RETURN_IF_ERROR(ShareMaps(sequence.recipe, sequence));
  for (const ResolvedRecipe& later : sequence.later_recipes) {
    PITH_RETURN_IF_ERROR(CheckRecipe(info, later, sequence.formats));
    PITH_RETURN_IF_ERROR(ShareMaps(later, sequence));
  }
  sequence.style = StyleOf(info, sequence);
  sequence.options = said;
  return sequence;
}

Result<ResolvedRecipe> ResolveForCompress(const Recipe& recipe, PageFormat types) {
  if (recipe.policy == nullptr) return InvalidArgument("there is no recipe to compress with");
  PITH_ASSIGN_OR_RETURN(ResolvedRecipe resolved, ResolveAlternative(AlternativeFor(recipe, true)));
  if (recipe.auto_format && !(types == PageFormat())) resolved.storage = {};
  return resolved;
}

void KeepShare(const ModelInfo& info, const Recipe& recipe, int num_entries, double share, EngineOptions* options) {
  options->recipe = WithFormatFor(info, AlternativeFor(recipe, false), num_entries, share);
  const std::optional<PageFormat>& format = options->recipe.format;
  const double entries =
      format ? EntriesInBytes(info, *format, FormatsOf(*format).converted.has_value(), num_entries, share)
             : share * num_entries;
  const LessMaps* const maps = options->recipe.policy->less();
  double states = maps != nullptr && share < 1 ? StateEntries(info, *maps) : 0;
  if (const DemoteOptions* demote = options->recipe.policy->demote(); demote != nullptr && demote->makes_latents()) {
    states = CostsOfLatents(info, *demote).map_entries;
  }
  options->keep_entries = std::max(1, static_cast<int>(std::floor(entries - states + 1e-9)));
}

}  // namespace pith
