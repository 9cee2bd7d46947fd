#include "engine/latent_budget.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/latent_reader.h"
#include "policy/act/demote.h"

namespace pith {

namespace {

bool HasLatents(const EngineCore& core, const Sequence& sequence) {
  for (const int layer : core.layers.layers()) {
    const std::span<const HeadCache> heads = std::as_const(*core.cache).heads(sequence.cache_id, layer);
    if (std::ranges::any_of(heads, &HeadCache::has_latents)) return true;
  }
  return false;
}

}  // namespace

Status CheckLatents(const EngineCore& core, const Sequence& sequence, const ResolvedRecipe& recipe) {
  const DemoteOptions* const demote = recipe.policy->demote();
  const SequenceSetup& setup = *sequence.setup;
  const SequenceLayout& layout = core.cache->layout(sequence.cache_id);
  if (HasLatents(core, sequence)) {
    if (recipe.policy->keeps_everything() || (demote != nullptr && demote->low == *layout.lower)) return {};
    return InvalidArgument(fmt::format(
        "the recipe '{}' would drop or convert entries that latents of this sequence refer to", recipe.text));
  }
  if (demote == nullptr || !demote->makes_latents()) return {};
  if (setup.Find(recipe) == nullptr) {
    return InvalidArgument(
        fmt::format("{} needs room to read latents in, which this sequence does not have: name the recipe when the "
                    "sequence is made",
                    recipe.text));
  }
  const DemoteOptions* const running = setup.style.evicts ? setup.policy().demote() : nullptr;
  if (setup.style.evicts && (running == nullptr || !(running->low == demote->low))) {
    return InvalidArgument(
        fmt::format("{} makes latents that refer to entries which the sequence's own recipe {} drops later",
                    recipe.text, setup.recipe.text));
  }
  return {};
}

Result<Shrink> ShrinkToLatents(const EngineCore& core, const ResolvedRecipe& recipe, Sequence& target, double mean,
                               double bytes) {
  const DemoteOptions& demote = *recipe.policy->demote();
  const ModelInfo& info = *core.info;
  const double low = TokenBytes(info, demote.low) / TokenBytes(info, PageFormat());
  const double maps = CostsOfLatents(info, demote).map_entries;
  const double whole = std::min(mean, static_cast<double>(recipe.num_sinks + demote.recent + target.num_pinned()));
  const double allowed = bytes * mean >= mean ? mean : (bytes * mean - maps - mean * low) / (1 - low);
  if (allowed < whole - 1e-6) {
    return InvalidArgument(fmt::format(
        "{} keeps every entry, as latents at least but for {} that stay as they are, which takes {:.1f}% of the f16 "
        "cache's bytes here: {:.1f}% does not hold them",
        recipe.text, static_cast<int>(whole), 100 * ((mean - whole) * low + whole + maps) / mean, 100 * bytes));
  }
  const double keep = std::min(allowed, whole + demote.share * (mean - whole));
  return Shrink{.sequence = &target,
                .budget = Budget{.keep = std::max(1, static_cast<int>(keep + 1e-9)),
                                 .keep_fraction = std::clamp(keep / mean, 0.0, 1.0),
                                 .keep_exact = std::max(1.0, keep),
                                 .rest_page_entries = kPageEntries},
                .format = std::nullopt,
                .lower = demote.low};
}

}  // namespace pith
