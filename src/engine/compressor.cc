#include "engine/compressor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/demotion.h"
#include "engine/entry_counts.h"
#include "engine/latent_budget.h"
#include "engine/less_states.h"
#include "engine/prune_keys.h"
#include "policy/act/demote.h"
#include "policy/act/think.h"
#include "policy/score/largest_repeated.h"

namespace pith {

// Merging rewrites entries of 16 bits; what is converted comes from there, too, or was converted by a former
// compression.
Status Compressor::CheckFormat(const Sequence& sequence, const ResolvedRecipe& recipe) const {
  const SequenceSetup& setup = *sequence.setup;
  const SequenceLayout& layout = core_.cache->layout(sequence.cache_id);
  const PageFormat full = layout.full();
  const bool merges = recipe.policy->merge() != nullptr, converts = recipe.storage.Converts(setup.formats.entry);
  const bool stands_in = recipe.policy->residue() != nullptr;
  const bool demotes = recipe.policy->demote() != nullptr;
  if ((merges && (!(full == PageFormat()) || layout.lower)) || (demotes && !(layout.entry == PageFormat())) ||
      (converts && !(setup.formats == CacheFormats())) || (stands_in && !(layout.entry == PageFormat()))) {
    return InvalidArgument(
        fmt::format("the recipe '{}' needs an f16 cache, and this one is {}", recipe.text, full.Name()));
  }
  const PruneOptions* const prune = recipe.policy->prune();
  if (layout.pruned.share > 0 ? demotes || (prune != nullptr && prune->share != layout.pruned.share)
                              : prune != nullptr && layout.lower.has_value()) {
    return InvalidArgument(
        fmt::format("the recipe '{}' does not go with what an earlier one has stored otherwise", recipe.text));
  }
  PITH_RETURN_IF_ERROR(CheckLatents(core_, sequence, recipe));
  if (converts && setup.style.evicts && setup.policy().merge() != nullptr) {
    return InvalidArgument(
        fmt::format("{} converts pages into which the sequence's own recipe {} could not merge any more", recipe.text,
                    setup.recipe.text));
  }
  return {};
}

Result<ActiveRecipe> Compressor::ActiveFor(const Sequence& sequence, const Recipe& recipe) const {
  PITH_ASSIGN_OR_RETURN(const ResolvedRecipe resolved, ResolveForCompress(recipe, sequence.setup->options.format));
  return ActiveFor(sequence, resolved);
}

Result<ActiveRecipe> Compressor::ActiveFor(const Sequence& sequence, const ResolvedRecipe& recipe) const {
  PITH_RETURN_IF_ERROR(CheckFormat(sequence, recipe));
  const SequenceSetup& setup = *sequence.setup;
  const int window = QueryWindow(*recipe.policy);
  if (!sequence.Knows(std::min(window, setup.ring_window))) {
    return Unsupported(
        fmt::format("{} looks at the last {} queries, of which {} are known since the sequence went back", recipe.text,
                    window, sequence.known_queries()));
  }
  const LessMaps* const maps = recipe.policy->less();
  if (maps != nullptr && (setup.maps == nullptr || setup.maps->fingerprint() != maps->fingerprint())) {
    return InvalidArgument(fmt::format(
        "{} needs states, which this sequence does not have: name the recipe when the sequence is made", recipe.text));
  }
  if (const ActiveRecipe* known = setup.Find(recipe)) {
    // Of the same words; files that it names may have been read again since.
    ActiveRecipe active = *known;
    active.recipe = recipe;
    PITH_RETURN_IF_ERROR(recipe.policy->CheckLayers(core_.layers.count()));
    return active;
  }
  const auto missing = [&](const char* what) {
    return InvalidArgument(
        fmt::format("{} needs {}, which this sequence did not note while it read: name the recipe when the sequence "
                    "is made",
                    recipe.text, what));
  };
  if (!ObservesRepeat(*recipe.policy) && !recipe.policy->columns().empty()) return missing("what every query paid");
  if ((recipe.policy->needs() & kNeedQueryMoments) != 0 && !setup.counts_moments)
    return missing("the moments of all queries");
  if (setup.ring_window < window && setup.ring_window < sequence.next_position) {
    return missing("a window of recent queries");
  }
  if (recipe.policy->repeat() != nullptr && !setup.reads_again) return missing("the tokens of the text");
  PITH_RETURN_IF_ERROR(recipe.policy->CheckLayers(core_.layers.count()));
  return ActiveRecipe{.recipe = recipe, .num_columns = static_cast<int>(recipe.policy->columns().size())};
}

Result<Shrink> Compressor::ShrinkByDemotion(const ResolvedRecipe& recipe, Sequence& target, double mean,
                                            double bytes) const {
  const DemoteOptions& demote = *recipe.policy->demote();
  const double f16 = TokenBytes(*core_.info, PageFormat());
  const double high = TokenBytes(*core_.info, demote.high) / f16, low = TokenBytes(*core_.info, demote.low) / f16;
  // Entries that fill no page, in f16 whatever the formats; those that must stay are of the high format.
  const double rest = std::fmod(mean, kPageEntries);
  double least = rest;
  while (least < static_cast<double>(recipe.num_sinks + target.num_pinned())) least += kPageEntries;
  const double least_bytes = ((mean - least) * low + rest + (least - rest) * high) / mean;
  if (bytes < std::min(1.0, least_bytes) - 1e-6) {
    return InvalidArgument(
        fmt::format("{} keeps every entry, in {} at least, which takes {:.1f}% of the f16 cache's "
                    "bytes here: {:.1f}% does not hold them",
                    recipe.text, demote.low.Name(), 100 * least_bytes, 100 * bytes));
  }
  const double share = demote.ShareFor(bytes - rest * (1 - high) / mean, high, low), keep = share * mean;
  return Shrink{.sequence = &target,
                .budget = Budget{.keep = std::max(1, static_cast<int>(keep + 1e-9)),
                                 .keep_fraction = std::clamp(share, 0.0, 1.0),
                                 .keep_exact = std::max(1.0, keep),
                                 .rest_page_entries = kPageEntries},
                .format = demote.high == PageFormat() ? std::nullopt : std::optional(demote.high),
                .lower = demote.low};
}

PageFormat Compressor::FormatFor(const ActiveRecipe& active, RepeatColumns* read, PageFormat entry, double mean,
                                 double keep) const {
  const StorageRule& rule = active.recipe.storage;
  // Of others' columns nobody knows what is little.
  if (read == nullptr || !ObservesRepeat(*active.recipe.policy) ||
      active.recipe.policy->columns().front().name != kLargestAttention) {
    return rule.FormatFor(*core_.info, entry, mean, keep);
  }
  // On models measured what would go is paid less than 0.02 at most where dropping costs less than bits, and more than
  // 0.7 where bits cost less (docs/quality.md).
  constexpr float kLittle = 0.1f;
  int64_t looked_at = 0, all = 0;
  for (int i = 0; i < core_.layers.count(); ++i) {
    for (int head = 0; head < core_.num_kv_heads(core_.layers.LayerOf(i)); ++head) {
      const std::span<const float> paid = read->column(i, head, 0);
      looked_at += std::ranges::count_if(paid, [](float most) { return most > kLittle; });
      all += static_cast<int64_t>(paid.size());
    }
  }
  const double share = all > 0 ? static_cast<double>(looked_at) / static_cast<double>(all) : 1;
  return rule.FormatFor(*core_.info, entry, mean, keep, share);
}

Result<Shrink> Compressor::ShrinkFor(const ActiveRecipe& active, RepeatColumns* read, Sequence& target, double mean,
                                     double keep) const {
  if (!(keep > 0 && keep <= 1)) return InvalidArgument(fmt::format("a kept fraction of {} is not in (0, 1]", keep));
  if (const DemoteOptions* demote = active.recipe.policy->demote(); demote != nullptr) {
    return demote->makes_latents() ? ShrinkToLatents(core_, active.recipe, target, mean, keep)
                                   : ShrinkByDemotion(active.recipe, target, mean, keep);
  }
  if (const LessMaps* maps = active.recipe.policy->less(); maps != nullptr && keep < 1) {
    const double states = StateEntries(*core_.info, *maps) / mean;
    if (keep * mean < states * mean + 1) {
      return InvalidArgument(
          fmt::format("the states of {} take {:.1f}% of the f16 cache's bytes here, so that {:.1f}% "
                      "hold no entry beside them",
                      active.recipe.text, 100 * states, 100 * keep));
    }
    keep -= states;
  }
  const PageFormat entry = target.setup->formats.entry;
  const PruneOptions* const prune = active.recipe.policy->prune();
  const double share = keep;
  bool in_pages = false;
  double rest_cost = 1;
  const PageFormat to = FormatFor(active, read, entry, mean, keep);
  const bool converts = !(to == entry);
  if (converts) {
    rest_cost = TokenBytes(*core_.info, entry) / TokenBytes(*core_.info, to);
    const double with_rests = EntriesInBytes(*core_.info, to, true, mean, keep);
    in_pages = with_rests < mean && active.recipe.policy->ragged();
    keep = (in_pages ? EntriesInBytes(*core_.info, to, false, mean, keep) : with_rests) / mean;
  }
  if (prune != nullptr) {
    const ModelInfo& info = *core_.info;
    PrunedCosts costs{.whole = converts ? 1 / rest_cost : 1};
    costs.pruned = costs.whole * PrunedCost(info, converts ? to : target.setup->formats.full(), prune->share);
    keep = EntriesPruned(*prune, costs, mean, share * mean) / mean;
    in_pages = converts && keep < 1 && active.recipe.policy->ragged();
    if (in_pages) {
      costs.rest = costs.whole;
      keep = EntriesPruned(*prune, costs, mean, share * mean) / mean;
    }
  }
  // 1e-9: 0.2 * 515 is 103, whatever the binary fraction says.
  return Shrink{&target,
                Budget{.keep = std::max(1, static_cast<int>(mean * keep + 1e-9)),
                       .keep_fraction = keep,
                       .keep_exact = std::max(1.0, mean * keep),
                       .page_entries = in_pages ? kPageEntries : 1,
                       .rest_cost = rest_cost},
                converts ? std::optional(to) : std::nullopt};
}

Result<std::vector<double>> Compressor::CompressForks(Sequence& source, const Recipe& recipe,
                                                      std::span<const CompressTarget> targets) {
  PITH_ASSIGN_OR_RETURN(const ActiveRecipe active, ActiveFor(source, recipe));
  std::vector<double> kept(targets.size(), 1.0);
  const int64_t before = GlobalEntriesOf(core_, source);
  const bool selects = !active.recipe.policy->keeps_everything();
  const bool changes =
      active.recipe.storage.Converts(source.setup->formats.entry) || active.recipe.policy->prune() != nullptr;
  if ((!selects && !changes) || before == 0) return kept;
  const double mean = PerHead(core_, before);
  const EntryGuard guard{.num_sinks = active.recipe.num_sinks};
  std::vector<Shrink> shrinks;
  std::vector<int64_t> newer;
  FlightLoan loan(core_.flight);
  for (const CompressTarget& target : targets) {
    PITH_ASSIGN_OR_RETURN(Sequence* const sequence, table_.Find(target.sequence));
    if (sequence->compression != nullptr) sequence->EndPieces();
    PITH_ASSIGN_OR_RETURN(const Shrink shrink,
                          ReadAndPlan(source, active, guard, *sequence, mean, target.keep_fraction));
    shrinks.push_back(shrink);
    newer.push_back(GlobalEntriesOf(core_, *sequence) - before);
  }
  PITH_RETURN_IF_ERROR(Run(source, active, guard, shrinks, selects, loan));
  for (size_t i = 0; i < targets.size(); ++i) {
    kept[i] = static_cast<double>(GlobalEntriesOf(core_, *table_.Lookup(targets[i].sequence)) - newer[i]) /
              static_cast<double>(before);
  }
  return kept;
}

Status Compressor::ReadFor(Sequence& source, const ActiveRecipe& active, const EntryGuard& guard) {
  if (source.compression != nullptr) source.EndPieces();
  return active.recipe.policy->repeat() != nullptr ? reader_.ReadAll(source, active, guard) : Status();
}

Result<Shrink> Compressor::ReadAndPlan(Sequence& source, const ActiveRecipe& active, const EntryGuard& guard,
                                       Sequence& target, double mean, double keep) {
  // What is refused is refused before it takes a reading.
  PITH_RETURN_IF_ERROR(ShrinkFor(active, nullptr, target, mean, keep));
  PITH_RETURN_IF_ERROR(ReadFor(source, active, guard));
  return ShrinkFor(active, active.recipe.policy->repeat() != nullptr ? source.repeat.get() : nullptr, target, mean,
                   keep);
}

Status Compressor::Run(Sequence& source, const ActiveRecipe& active, const EntryGuard& guard,
                       std::vector<Shrink>& shrinks, bool selects, FlightLoan& loan) {
  for (const Shrink& shrink : shrinks) loan.Lend(*shrink.sequence);
  // The source's entries are what the selections count from, so it goes last.
  std::stable_partition(shrinks.begin(), shrinks.end(),
                        [&source](const Shrink& shrink) { return shrink.sequence != &source; });
  const Clock::time_point start = Clock::now();
  Status result;
  for (const Shrink& shrink : shrinks) {
    if (shrink.lower && result) result = core_.cache->SetLower(shrink.sequence->cache_id, *shrink.lower);
  }
  if (selects && result) result = shrinker_.Run(source, active, guard, shrinks);
  if (result) result = ChangePages(source, active, shrinks);
  core_.times.policy += SecondsSince(start);
  for (const Shrink& shrink : shrinks) shrink.sequence->repeat.reset();  // of entries that may be gone
  return result;
}

Status Compressor::ChangePages(const Sequence& source, const ActiveRecipe& active, std::span<const Shrink> shrinks) {
  for (const Shrink& shrink : shrinks) {
    PageChanges changes{.format = shrink.format, .prune = active.recipe.policy->prune()};
    PITH_RETURN_IF_ERROR(ChangeSomePages(core_, source, *shrink.sequence, INT64_MAX, changes));
  }
  return {};
}

Result<std::shared_ptr<Compression>> Compressor::Begin(Sequence& sequence, const Recipe& recipe, double keep_fraction) {
  auto begun = std::make_shared<Compression>();
  begun->recipe = recipe.text;
  begun->keep_fraction = keep_fraction;
  PITH_ASSIGN_OR_RETURN(begun->active, ActiveFor(sequence, recipe));
  const Policy& policy = *begun->active.recipe.policy;
  const int64_t entries = GlobalEntriesOf(core_, sequence);
  const bool changes =
      begun->active.recipe.storage.Converts(sequence.setup->formats.entry) || policy.prune() != nullptr;
  if ((policy.keeps_everything() && !changes) || entries == 0) return std::shared_ptr<Compression>();
  begun->pieces.guard = {.num_sinks = begun->active.recipe.num_sinks};
  PITH_ASSIGN_OR_RETURN(const Shrink shrink, ReadAndPlan(sequence, begun->active, begun->pieces.guard, sequence,
                                                         PerHead(core_, entries), keep_fraction));
  begun->pieces.budget = *shrink.budget;
  begun->pieces.format = begun->changes.format = shrink.format;
  begun->selects = !policy.keeps_everything();
  begun->changes.prune = policy.prune();
  if (shrink.lower) PITH_RETURN_IF_ERROR(core_.cache->SetLower(sequence.cache_id, *shrink.lower));
  return begun;
}

Result<bool> Compressor::CompressOn(Sequence& sequence, const Recipe& recipe, double keep_fraction) {
  const auto is_it = [&](const Compression& one) {
    return one.recipe == recipe.text && one.keep_fraction == keep_fraction;
  };
  if (sequence.compression != nullptr && !is_it(*sequence.compression)) sequence.EndPieces();
  if (sequence.compression == nullptr) {
    PITH_ASSIGN_OR_RETURN(sequence.compression, Begin(sequence, recipe, keep_fraction));
    if (sequence.compression == nullptr) return true;
  }
  return GoOn(sequence);
}

Result<bool> Compressor::RunPiece(Sequence& sequence) {
  Compression& compression = *sequence.compression;
  FlightLoan loan(core_.flight);
  loan.Lend(sequence);
  if (compression.selects && compression.pieces.num_kept < core_.layers.count()) {
    PITH_ASSIGN_OR_RETURN(const bool is_done, shrinker_.RunPiece(sequence, compression.active, compression.pieces));
    return is_done && !compression.changes.any();
  }
  if (!compression.changes.any()) return true;
  return ChangeSomePages(core_, sequence, sequence, kEntriesAtOnce, compression.changes);
}

Result<bool> Compressor::GoOn(Sequence& sequence) {
  const Clock::time_point start = Clock::now();
  Result<bool> done = false;
  do {
    done = RunPiece(sequence);
  } while (
      done && !*done &&
      !sequence.compression->held.Hold(sequence.account, MemoryTag::kTables, sequence.compression->pieces.bytes()));
  core_.times.policy += SecondsSince(start);
  if (!done || *done) sequence.EndPieces();
  return done;
}

Result<double> Compressor::CompressPart(Sequence& sequence, const Recipe& recipe, double keep_fraction, int32_t from,
                                        int32_t to) {
  PITH_ASSIGN_OR_RETURN(const ActiveRecipe active, ActiveFor(sequence, recipe));
  if (from < 0 || to > sequence.next_position || from >= to) {
    return InvalidArgument(
        fmt::format("positions {} to {} are no part of the sequence's {}", from, to, sequence.next_position));
  }
  if (!(keep_fraction > 0 && keep_fraction <= 1))
    return InvalidArgument(fmt::format("a kept fraction of {} is not in (0, 1]", keep_fraction));
  if (active.recipe.storage.Converts(sequence.setup->formats.entry) || active.recipe.policy->demote() != nullptr ||
      active.recipe.policy->prune() != nullptr) {
    return Unsupported(
        fmt::format("{} changes whole pages, so it cannot leave the entries beside a part as they are", recipe.text));
  }
  if (active.recipe.policy->keeps_everything()) return 1.0;
  const EntryGuard part{.num_sinks = active.recipe.num_sinks, .from = from, .to = to};
  const int64_t inside = EntriesWithin(core_, sequence, from, to);
  if (inside == 0) return 1.0;
  PITH_RETURN_IF_ERROR(
      ShrinkPart(sequence, active, part,
                 keep_fraction * static_cast<double>(inside) / static_cast<double>(core_.layers.num_heads())));
  return static_cast<double>(EntriesWithin(core_, sequence, from, to)) / static_cast<double>(inside);
}

namespace {

// keep: entries per head, of `mean` in the part.
Budget PartBudget(double mean, double keep) {
  return {.keep = std::max(1, static_cast<int>(keep + 1e-9)),
          .keep_fraction = keep / std::max(1.0, mean),
          .keep_exact = std::max(1.0, keep)};
}

}  // namespace

Status Compressor::ShrinkPart(Sequence& sequence, const ActiveRecipe& active, const EntryGuard& part, double keep) {
  const double mean = PerHead(core_, EntriesWithin(core_, sequence, part.from, part.to));
  std::vector<Shrink> shrinks = {{.sequence = &sequence, .budget = PartBudget(mean, keep)}};
  FlightLoan loan(core_.flight);
  PITH_RETURN_IF_ERROR(ReadFor(sequence, active, part));
  return Run(sequence, active, part, shrinks, true, loan);
}

Status Compressor::BeginPart(Sequence& sequence, const ActiveRecipe& active, const EntryGuard& part, double keep) {
  const double mean = PerHead(core_, EntriesWithin(core_, sequence, part.from, part.to));
  PITH_RETURN_IF_ERROR(ReadFor(sequence, active, part));
  auto begun = std::make_shared<Compression>();
  begun->active = active;
  begun->pieces.guard = part;
  begun->pieces.budget = PartBudget(mean, keep);
  sequence.compression = std::move(begun);
  return {};
}

Status Compressor::BeginOwn(Sequence& sequence, const EntryGuard& part, double keep) {
  ResolvedRecipe recipe = sequence.setup->recipe;
  const Result<ActiveRecipe> active = ActiveFor(sequence, recipe);
  Status status = active ? BeginPart(sequence, *active, part, keep) : Status(tl::unexpected<Error>(active.error()));
  if (status || recipe.in_little_room == recipe.policy) return status;
  if (status.error().code != ErrorCode::kOutOfBudget && status.error().code != ErrorCode::kUnsupported) return status;
  recipe.policy = recipe.in_little_room;
  return BeginPart(sequence, ActiveRecipe{.recipe = std::move(recipe)}, part, keep);
}

Result<bool> Compressor::ReadAgain(Sequence& sequence, const Recipe& recipe, EntryGuard part, int rows) {
  PITH_ASSIGN_OR_RETURN(const ActiveRecipe active, ActiveFor(sequence, recipe));
  if (active.recipe.policy->repeat() == nullptr || GlobalEntriesOf(core_, sequence) == 0) return true;
  part.num_sinks = active.recipe.num_sinks;
  return reader_.ReadOn(sequence, active, part, rows);
}

}  // namespace pith
