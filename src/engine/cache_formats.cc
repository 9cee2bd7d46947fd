#include "engine/cache_formats.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "engine/repeat.h"
#include "kernels/key_channels.h"
#include "engine/less_states.h"
#include "policy/act/demote.h"
#include "policy/act/think.h"

namespace pith {

CacheFormats FormatsOf(PageFormat format) {
  if (format.whole_pages()) return {.entry = PageFormat(), .low = format};
  return {.entry = format, .low = std::nullopt};
}

std::vector<PageFormat> ConversionsOf(const Recipe& recipe) {
  if (recipe.auto_format) return {kAutoFormats.begin() + 1, kAutoFormats.end()};
  if (recipe.format) return {*recipe.format};
  return {};
}

namespace {

// What format=auto means where `held` tells the share of the entries that a format holds; none: f16.
template <typename Held>
std::optional<PageFormat> AutoFormat(double least, const Held& held) {
  for (const PageFormat format : kAutoFormats) {
    const bool is_f16 = format == PageFormat(), is_last = format == kAutoFormats.back();
    if (!is_last && held(format) < (is_f16 ? 1.0 : least)) continue;
    return is_f16 ? std::nullopt : std::optional(format);
  }
  return std::nullopt;
}

}  // namespace

bool Converts(const Recipe& recipe, PageFormat entry) {
  return std::ranges::any_of(ConversionsOf(recipe), [entry](PageFormat to) { return !(to == entry); });
}

Recipe WithFormatFor(const ModelInfo& info, const Recipe& recipe, double mean, double share) {
  Recipe settled = recipe;
  if (!recipe.auto_format) return settled;
  settled.auto_format.reset();
  settled.format = AutoFormat(*recipe.auto_format, [&](PageFormat format) {
    return EntriesInBytes(info, format, FormatsOf(format).low.has_value(), mean, share) / mean;
  });
  return settled;
}

EngineOptions Settled(const ModelInfo& info, EngineOptions options) {
  const std::optional<TurnOptions>& turns = options.recipe.turns;
  if (turns) {
    // Settled for good: the first turn's pages are those of the others. Rests of pages are shared by turns.
    constexpr double kManyEntries = 1e6;
    options.recipe = WithFormatFor(info, options.recipe, kManyEntries,
                                   turns->method == TurnMethod::kFlowKv ? 1 - turns->drop : 1.0);
    return options;
  }
  const bool whole = options.compress == CompressMode::kAfter;
  if (options.recipe.otherwise != nullptr) options.recipe = Recipe(AlternativeFor(options.recipe, whole));
  if (!options.recipe.auto_format || whole) return options;
  const double least = *std::exchange(options.recipe.auto_format, std::nullopt);
  const bool user_has_chosen = !(options.format == PageFormat());
  if (user_has_chosen || options.budget_bytes == 0) return options;
  options.recipe.format = AutoFormat(least, [&](PageFormat format) {
    EngineOptions tried = options;
    tried.recipe.format = format;
    const Result<MemoryPlan> plan = PlanMemory(info, StyleOf(info, tried), tried);
    return plan ? static_cast<double>(plan->keep_entries + plan->slack_entries) / options.num_ctx : 0.0;
  });
  return options;
}

Result<CacheFormats> SettleFormats(const SequenceOptions& options) {
  PageFormat format = options.format;
  const Policy* policy = options.recipe.policy.get();
  if (const DemoteOptions* demote = policy == nullptr ? nullptr : policy->demote(); demote != nullptr) {
    if (!(format == PageFormat())) {
      return InvalidArgument(
          fmt::format("{} says itself in which formats entries are stored, and the cache's types say "
                      "{}; give one of the two",
                      options.recipe.text, format.Name()));
    }
    CacheFormats formats{.entry = PageFormat(), .low = std::nullopt, .lower = demote->low};
    // Once a whole prompt is there, Compress() sees to that.
    if (options.compress == CompressMode::kBlock && !(demote->high == PageFormat())) formats.low = demote->high;
    return formats;
  }
  // That of a recipe with turns= is of turns that are over.
  if (const std::optional<PageFormat>& own = options.recipe.format; own && !options.recipe.turns) {
    if (!(format == PageFormat()) && !(format == *own)) {
      return InvalidArgument(fmt::format("the recipe stores {} and the cache's types say {}; give one of the two",
                                         own->Name(), format.Name()));
    }
    format = *own;
  }
  const CacheFormats formats = FormatsOf(format);
  for (const Recipe& recipe : options.later_recipes) {
    if (Converts(recipe, formats.entry) && !(formats == CacheFormats())) {
      return InvalidArgument(
          fmt::format("the recipe '{}' converts an f16 cache, and this one is {}", recipe.text, format.Name()));
    }
  }
  return formats;
}

double TokenBytes(const ModelInfo& info, PageFormat format) {
  double bytes = 0;
  for (const LayerShape& layer : info.layers) {
    if (layer.kind == LayerKind::kNone || layer.num_kv_heads == 0) continue;
    bytes += layer.num_kv_heads * PageLayout::Make(format, layer.key_dim, layer.value_dim, 0).entry_bytes();
  }
  return bytes;
}

double PrunedCost(const ModelInfo& info, PageFormat format, double share) {
  double whole = 0, pruned = 0;
  for (const LayerShape& layer : info.layers) {
    if (layer.kind != LayerKind::kGlobal || layer.num_kv_heads == 0) continue;
    const auto bytes = [&](int key_dim) {
      return layer.num_kv_heads * PageLayout::Make(format, key_dim, layer.value_dim, 0).entry_bytes();
    };
    whole += bytes(layer.key_dim);
    pruned += bytes(ChannelsLeft(layer.key_dim, share));
  }
  return whole > 0 ? pruned / whole : 1;
}

double EntriesPruned(const PruneOptions& prune, const PrunedCosts& costs, double mean, double bytes) {
  for (double entries = mean; entries > 1; entries = std::ceil(entries) - 1) {
    const auto pages_of = [](double count) { return std::floor(std::max(count, 0.0) / kPageEntries) * kPageEntries; };
    const double full = pages_of(entries), pruned = pages_of(entries - prune.recent);
    const double taken = pruned * costs.pruned + (full - pruned) * costs.whole + (entries - full) * costs.rest;
    if (taken <= bytes + 1e-9) return entries;
  }
  return 1;
}

double EntriesInBytes(const ModelInfo& info, PageFormat format, bool has_rests, double mean, double share) {
  const double cost = TokenBytes(info, format) / TokenBytes(info, PageFormat());  // of an entry, in f16 entries
  const double target = mean * share;
  if (!has_rests) return std::min(mean, target / cost);
  const double pages = std::floor(target / (kPageEntries * cost) + 1e-9);
  const double rest = std::min(target - pages * kPageEntries * cost, kPageEntries - 1.0);
  return std::min(mean, pages * kPageEntries + std::max(0.0, rest));
}

int EntriesToKeep(const ModelInfo& info, const Recipe& recipe, int num_entries, double share) {
  const double entries = recipe.format ? EntriesInBytes(info, *recipe.format, FormatsOf(*recipe.format).low.has_value(),
                                                        num_entries, share)
                                       : share * num_entries;
  const LessMaps* const maps = recipe.policy->less();
  const double state = maps != nullptr && share < 1 ? StateEntries(info, *maps) : 0;
  return std::max(1, static_cast<int>(std::floor(entries - state + 1e-9)));
}

void KeepShare(const ModelInfo& info, const Recipe& recipe, int num_entries, double share, EngineOptions* options) {
  options->recipe = WithFormatFor(info, AlternativeFor(recipe, false), num_entries, share);
  options->keep_entries = EntriesToKeep(info, options->recipe, num_entries, share);
}

double ContentShare(const KvCache& cache, int cache_id, const std::vector<int>& global_index, int32_t num_tokens) {
  double bytes = 0, full = 0;
  for (size_t layer = 0; layer < global_index.size(); ++layer) {
    if (global_index[layer] < 0) continue;
    for (const HeadCache& head : cache.heads(cache_id, static_cast<int>(layer))) {
      const PageLayout& layout = head.layout();
      bytes += head.content_bytes();
      full += num_tokens * PageLayout::Make(PageFormat(), layout.key_dim, layout.value_dim, 0).entry_bytes();
    }
  }
  return full > 0 ? bytes / full : 1.0;
}

void ReadLedger(const Ledger& ledger, KvStats& stats) {
  stats.budget_bytes = ledger.limit_bytes();
  stats.used_bytes = ledger.used_bytes();
  stats.peak_bytes = ledger.peak_bytes();
  stats.block_bytes = ledger.used_bytes(MemoryTag::kBlock);
  stats.page_bytes = ledger.used_bytes(MemoryTag::kPages);
  stats.table_bytes = ledger.used_bytes(MemoryTag::kTables) + ledger.used_bytes(MemoryTag::kQueries) +
                      ledger.used_bytes(MemoryTag::kTokens);
  stats.recurrent_bytes = ledger.used_bytes(MemoryTag::kRecurrent);
}

}  // namespace pith
