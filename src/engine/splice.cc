#include "engine/splice.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "cache/page_entries.h"
#include "engine/demotion.h"
#include "engine/entry_counts.h"
#include "engine/flight.h"

namespace pith {
namespace {

// Entries that are turned at once: their rows stay in a core's cache.
constexpr int kStretch = 128;

// The first entry of a position in a head that holds entries in the order of time.
std::vector<int32_t> EntriesFrom(const HeadCache& head, int position, int count) {
  std::vector<int32_t> entries(static_cast<size_t>(count));
  std::iota(entries.begin(), entries.end(), EntriesBefore(head, position));
  return entries;
}

Status CheckSplices(const EngineCore& core, const Sequence& sequence) {
  const ModelInfo& info = *core.info;
  const SequenceSetup& setup = *sequence.setup;
  const auto refused = [](const char* reason) {
    return Unsupported(fmt::format("no text can be taken over: {}", reason));
  };
  if (info.hybrid) return refused("the model's recurrent state follows from all that was read");
  bool turns = false;
  for (const LayerShape& shape : info.layers) {
    if (shape.kind == LayerKind::kNone) continue;
    if (shape.kind != LayerKind::kGlobal) return refused("the model's sliding windows have let go of it");
    if (!shape.rotation) return refused("how positions turn the model's keys is not known");
    turns = turns || !shape.rotation->pairs.empty();
  }
  if (!turns) return refused("positions do not stand in the model's keys alone");
  if (setup.observed_needs != 0 || setup.counts_moments) return refused("the recipe's statistics count every query");
  if (sequence.pruner != nullptr) return refused("the recipe's prefill weighs prompts as they are read");
  if (setup.recipe.has_turns()) return refused("the recipe compresses turns");
  const SequenceLayout& layout = core.cache->layout(sequence.cache_id);
  const bool merged =
      std::ranges::any_of(sequence.merge_thresholds, [](double threshold) { return !std::isnan(threshold); });
  if (merged || layout.lower || layout.state_rank > 0) return refused("the recipe makes new entries of what it drops");
  return {};
}

// Slots for so many entries more in all heads, not yet committed. kOutOfBudget: nothing has changed.
Status ExtendAll(EngineCore& core, const Sequence& sequence, int count, const Error& full) {
  Status status;
  for (const int layer : core.layers.layers()) {
    for (HeadCache& head : core.cache->heads(sequence.cache_id, layer)) {
      if (status) status = head.Extend(count);
    }
  }
  if (status) return status;
  for (const int layer : core.layers.layers()) {
    for (HeadCache& head : core.cache->heads(sequence.cache_id, layer)) (void)head.Truncate(head.num_entries());
  }
  return tl::unexpected<Error>(full);
}

// `count` entries from position `from` on into the slots behind the target's entries.
void CopyTurned(EngineCore& core, const Sequence& source, const Sequence& target, int from, int count) {
  const int32_t at = target.next_position;
  core.context->RunOnTeam([&](const Team& team) {
    std::vector<float> keys, values, factors;
    int item = 0;
    for (const int layer : core.layers.layers()) {
      const Rotation& rotation = *core.shape(layer).rotation;
      factors.resize(2 * rotation.pairs.size());
      rotation.TurnOn(at - from, factors);
      const std::span<const HeadCache> sources = std::as_const(*core.cache).heads(source.cache_id, layer);
      const std::span<HeadCache> targets = core.cache->heads(target.cache_id, layer);
      for (size_t h = 0; h < targets.size(); ++h) {
        if (item++ % team.nth != team.ith) continue;
        HeadCache& head = targets[h];
        const PageLayout& layout = head.layout();
        const auto key_dim = static_cast<size_t>(layout.key_dim), value_dim = static_cast<size_t>(layout.value_dim);
        for (int done = 0; done < count; done += kStretch) {
          const int some = std::min(kStretch, count - done);
          const std::vector<int32_t> entries = EntriesFrom(sources[h], from + done, some);
          keys.resize(entries.size() * key_dim), values.resize(entries.size() * value_dim);
          sources[h].ReadKeysOf(entries, keys.data());
          sources[h].ReadValuesOf(entries, values.data());
          for (int i = 0; i < some; ++i) {
            const int entry = head.num_entries() + done + i, slot = entry % kP;
            float* const key = keys.data() + static_cast<size_t>(i) * key_dim;
            rotation.Apply(factors, key);
            kernels::WriteEntryF32(layout, head.page_of(entry), slot, key,
                                   values.data() + static_cast<size_t>(i) * value_dim, at + done + i);
            for (const auto& [column, initial] : target.setup->column_initials)
              layout.column(head.page_of(entry), column)[slot] = initial;
          }
        }
      }
    }
  });
}

}  // namespace

SpliceSource Spliceable(const EngineCore& core, const Sequence& sequence) {
  if (!CheckSplices(core, sequence)) return {};
  SpliceSource source{.reread = sequence.setup->ring_window};
  std::vector<uint32_t> held(static_cast<size_t>(sequence.next_position), 0);
  std::vector<int32_t> positions;
  uint32_t heads = 0;
  for (const int layer : core.layers.layers()) {
    for (const HeadCache& head : std::as_const(*core.cache).heads(sequence.cache_id, layer)) {
      positions.resize(static_cast<size_t>(head.num_entries()));
      head.ReadPositions(positions);
      for (const int32_t position : positions) ++held[static_cast<size_t>(position)];
      ++heads;
    }
  }
  for (auto from = held.begin(); from != held.end();) {
    from = std::find(from, held.end(), heads);
    const auto to = std::find_if(from, held.end(), [heads](uint32_t count) { return count != heads; });
    if (to != from) {
      source.ranges.emplace_back(static_cast<int32_t>(from - held.begin()), static_cast<int32_t>(to - held.begin()));
    }
    from = to;
  }
  return source;
}

Status Splice(EngineCore& core, SequenceTable& table, Sequence& target, const Sequence& source, int from, int to,
              bool pin) {
  if (from < 0 || to > source.next_position || from >= to || &target == &source) {
    return InvalidArgument(
        fmt::format("tokens {} to {} are no part of the other sequence's {}", from, to, source.next_position));
  }
  const int count = to - from;
  PITH_RETURN_IF_ERROR(CheckSplices(core, target));
  PITH_RETURN_IF_ERROR(CheckRoom(target, static_cast<size_t>(count)));
  if (pin) PITH_RETURN_IF_ERROR(CheckPinned(target, count));
  // No head has a position twice.
  const bool has_all = CheckSplices(core, source).has_value() &&
                       EntriesWithin(core, source, from, to) == count * core.layers.num_heads();
  const SequenceSetup& setup = *target.setup;
  if (!has_all || (setup.reads_again && source.tokens.size() < static_cast<size_t>(to))) {
    return Unsupported(fmt::format("the other sequence does not hold all of its tokens {} to {}", from, to));
  }
  const int64_t most = std::max(target.most_entries() - setup.ring_window, 0);
  if (target.evicts_while_running() &&
      GlobalHeldOf(core, target) + count * core.layers.num_heads() > most * core.layers.num_heads()) {
    return Unsupported("the recipe would have to drop entries, and has not seen the queries that judge them");
  }
  const size_t used = target.account->used_bytes();
  const size_t after =
      used + (setup.formats.converted ? BytesToKeep(core, target, count) : BytesToExtend(core, target, count));
  const Error full = BudgetFull(target, table.LimitBytes(target));
  if (after > target.ceiling_bytes) return tl::unexpected<Error>(full);
  const size_t committed = std::max(used, target.floor_bytes);
  if (after > committed && !table.Reclaim(after - committed, &target)) return tl::unexpected<Error>(full);
  target.EndPieces();
  {
    // Full pages are converted at once, and until then may take what is kept ready for the rows of steps.
    FlightLoan loan(core.flight);
    loan.Lend(target);
    PITH_RETURN_IF_ERROR(ExtendAll(core, target, count, full));
    CopyTurned(core, source, target, from, count);
    for (const int layer : core.layers.layers()) {
      for (HeadCache& head : core.cache->heads(target.cache_id, layer)) head.Commit(count);
    }
    if (setup.formats.converted) (void)DemoteAll(core, target);
  }
  const int32_t at = target.next_position;
  if (pin) target.pinned.emplace_back(at, at + count);
  if (setup.reads_again) {
    target.tokens.insert(target.tokens.end(), source.tokens.begin() + from, source.tokens.begin() + to);
  }
  target.next_position += count;
  target.entries_seen += count * core.layers.num_heads();
  target.queries_from = target.next_position;
  target.repeat.reset();
  target.logits_row = -1;
  target.kept_logits.clear();
  target.logit_bytes = HeldBytes();
  return {};
}

}  // namespace pith
