#include "engine/sequence.h"

#include <fmt/format.h>

#include "engine/less_states.h"

namespace pith {
namespace {

// The place of a recipe's columns, and what it wants noted.
void AddRecipe(const Recipe& recipe, SequenceSetup& setup) {
  const uint32_t needs = recipe.policy->needs();
  const int first = setup.num_columns;
  for (const ColumnSpec& column : PageColumns(*recipe.policy)) {
    if (column.initial != 0) setup.column_initials.emplace_back(setup.num_columns, column.initial);
    ++setup.num_columns;
  }
  setup.active.push_back({.recipe = recipe,
                          .first_column = first,
                          .num_columns = static_cast<int>(recipe.policy->columns().size()),
                          .norm_column = (needs & kNeedValueNorms) != 0 ? setup.num_columns - 1 : -1});
  if (needs & kNeedEveryQuery)
    setup.observed_needs |= needs & (kNeedEveryQuery | kNeedSquares | kNeedLargest | kNeedRows);
  setup.counts_moments = setup.counts_moments || (needs & kNeedQueryMoments) != 0;
  setup.reads_again = setup.reads_again || recipe.policy->repeat() != nullptr;
}

Status CheckRotations(const ModelInfo& info, const Recipe& recipe) {
  if ((recipe.policy->needs() & kNeedQueryMoments) == 0) return {};
  for (const LayerShape& layer : info.layers) {
    if (layer.kind != LayerKind::kGlobal || layer.rotation) continue;
    return Unsupported(
        fmt::format("{} foresees queries by undoing their rotation (RoPE), which {} models apply in a form that "
                    "cannot be undone",
                    recipe.text, info.architecture));
  }
  return {};
}

Status CheckRecipe(const ModelInfo& info, const Recipe& recipe, const CacheFormats& formats) {
  if (recipe.policy->merge() != nullptr) {
    const std::vector<PageFormat> to = ConversionsOf(recipe);
    if (!(formats == CacheFormats()) || !to.empty()) {
      return InvalidArgument(fmt::format("act=merge rewrites keys and values, which a cache in {} cannot do: use f16",
                                         to.empty() ? formats.low.value_or(formats.entry).Name() : to.front().Name()));
    }
  }
  if (recipe.policy->residue() != nullptr && !(formats.entry == PageFormat())) {
    return InvalidArgument(fmt::format("act=residue writes new entries, which a cache in {} cannot do: use f16",
                                       formats.entry.Name()));
  }
  if (recipe.policy->demote() != nullptr && !(formats.entry == PageFormat())) {
    return InvalidArgument(fmt::format("act=demote stores entries in f16 until it judges them, and this cache is {}",
                                       formats.entry.Name()));
  }
  if (recipe.policy->prune() != nullptr && formats.lower) {
    return InvalidArgument("act=prune does not go with a recipe of act=demote before it");
  }
  if (const LessMaps* maps = recipe.policy->less(); maps != nullptr) PITH_RETURN_IF_ERROR(CheckMaps(info, *maps));
  PITH_RETURN_IF_ERROR(recipe.policy->CheckLayers(CountLayers(info, LayerKind::kGlobal)));
  return CheckRotations(info, recipe);
}

// What stays of a turn goes to the recipe's format when the turn is over; until then it is f16.
Status CheckTurnFormat(const EngineOptions& options) {
  if (!options.recipe.format || *options.recipe.format == PageFormat()) return {};
  if (options.recipe.turns->method == TurnMethod::kEpiCache) {
    return Unsupported(
        "turns=epicache evicts from the same entries again and again, so they stay as they are: leave out format=");
  }
  if (options.format == PageFormat()) return {};
  return InvalidArgument(fmt::format("the recipe stores {} and the cache's types say {}; give one of the two",
                                     options.recipe.format->Name(), options.format.Name()));
}

}  // namespace

int RingWindow(const SequenceOptions& options) {
  int window = options.keep_queries;
  const auto add = [&window](const Recipe& recipe) {
    if (recipe.policy == nullptr || (recipe.policy->needs() & (kNeedWindowProbs | kNeedWindowQueries)) == 0) return;
    window = std::max(window, recipe.policy->window());
  };
  add(options.recipe);
  for (const Recipe& recipe : options.later_recipes) add(recipe);
  return options.num_ctx > 0 ? std::min(window, options.num_ctx) : window;
}

Result<std::shared_ptr<const SequenceSetup>> SequenceSetup::Make(const ModelInfo& info, const EngineOptions& wanted) {
  auto setup = std::make_shared<SequenceSetup>();
  EngineOptions settled = wanted;
  if (!settled.recipe.policy) {
    PITH_ASSIGN_OR_RETURN(settled.recipe, ParseRecipe("full"));
  }
  settled = Settled(info, std::move(settled));
  if (settled.recipe.turns) {
    PITH_RETURN_IF_ERROR(CheckTurnFormat(settled));
    if (settled.recipe.format != PageFormat()) setup->turn_format = settled.recipe.format;
  }
  setup->options = settled;
  PITH_ASSIGN_OR_RETURN(setup->formats, SettleFormats(settled));
  AddRecipe(settled.recipe, *setup);
  for (const Recipe& recipe : settled.later_recipes) AddRecipe(recipe, *setup);
  if (settled.compress == CompressMode::kBlock && settled.recipe.policy->needs_whole_prompt() &&
      !settled.recipe.turns) {
    return InvalidArgument(
        fmt::format("{} needs the whole prompt before it drops anything, so it cannot evict after each block: use it "
                    "with --compress after",
                    settled.recipe.text));
  }
  for (const ActiveRecipe& active : setup->active) {
    PITH_RETURN_IF_ERROR(CheckRecipe(info, active.recipe, setup->formats));
    const LessMaps* const maps = active.recipe.policy->less();
    if (maps == nullptr) continue;
    if (setup->maps != nullptr && setup->maps->fingerprint() != maps->fingerprint()) {
      return InvalidArgument("the recipes of a sequence share the states of act=less: name one file of maps");
    }
    setup->maps = maps;
  }
  setup->style = StyleOf(info, settled);
  setup->flight = FlightOf(info, setup->style, settled);
  setup->ring_window = RingWindow(settled);
  return std::shared_ptr<const SequenceSetup>(std::move(setup));
}

const ActiveRecipe* SequenceSetup::Find(const Recipe& recipe) const {
  for (const ActiveRecipe& candidate : active) {
    if (candidate.recipe.text == recipe.text) return &candidate;
  }
  return nullptr;
}

void Sequence::EndAt(int32_t position, int64_t num_global_heads) {
  next_position = position;
  entries_seen = position * num_global_heads;
  while (!turns.empty() && turns.back().to > position) turns.pop_back();
  turn_start = turns.empty() ? 0 : turns.back().to;
  if (position == 0) exact_from = 0;
  while (!pinned.empty() && pinned.back().first >= position) pinned.pop_back();
  if (!pinned.empty()) pinned.back().second = std::min(pinned.back().second, position);
  if (tokens.size() > static_cast<size_t>(position)) tokens.resize(static_cast<size_t>(position));
  repeat.reset();
  output = -1;
  restored_logits.clear();
  logit_bytes = HeldBytes();
}

void Sequence::CopyHistory(const Sequence& from) {
  next_position = from.next_position;
  entries_seen = from.entries_seen;
  evicts = from.evicts;
  prompt_continues = from.prompt_continues;
  pinned = from.pinned;
  queries = from.queries;
  queries_from = from.queries_from;
  turns = from.turns;
  turn_start = from.turn_start;
  exact_from = from.exact_from;
  guide = from.guide;
  moments = from.moments;
  merge_thresholds = from.merge_thresholds;
  tokens.assign(from.tokens.begin(), from.tokens.end());
  repeat = from.repeat;
}

}  // namespace pith
