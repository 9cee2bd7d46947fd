#include "engine/evictor.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "engine/demotion.h"
#include "engine/entry_counts.h"

namespace pith {

void Evictor::FinishGroup(RowGroup& group) {
  Sequence& sequence = *group.sequence;
  const EvictionSchedule& schedule = *sequence.setup->style.schedule;
  for (size_t layer = 0; layer < core_.info->layers.size() && !schedule.FinishesLayers(); ++layer) {
    const LayerKind kind = core_.info->layers[layer].kind;
    if (kind == LayerKind::kWindow || kind == LayerKind::kChunk) {
      DropOutOfWindow(core_, group, static_cast<int>(layer));
    }
  }
  if (!sequence.evicts_while_running() || !schedule.EvictsAfterBlock()) return;
  Status status = EvictAcrossLayers(group);
  if (status && sequence.setup->formats.converted) status = DemoteAll(core_, sequence);
  group.changed = true;
  if (!status) status.error().code == ErrorCode::kOutOfBudget ? group.FailFull() : group.Fail(status.error());
}

Status Evictor::EvictAcrossLayers(const RowGroup& group) {
  Sequence& sequence = *group.sequence;
  if (GlobalHeldOf(core_, sequence) <= MostEntries(group)) return {};
  const Clock::time_point start = Clock::now();
  std::optional<Budget> budget;
  if (group.settles) {
    budget = SettledBudget(core_, sequence, GlobalEntriesOf(core_, sequence), core_.layers.num_heads());
  }
  const Status status = EvictAll(sequence, budget);
  core_.times.policy += SecondsSince(start);
  return status;
}

Status Evictor::EvictAll(Sequence& sequence, const std::optional<Budget>& budget) {
  const Shrink shrink{.sequence = &sequence, .budget = budget};
  const ActiveRecipe& active = sequence.setup->active.front();
  return shrinker_.Run(sequence, active, {.num_sinks = active.recipe.num_running_sinks}, {&shrink, 1});
}

Status Evictor::EvictToShare(Sequence& sequence) {
  if (!sequence.evicts_while_running()) return {};
  const double mean = PerHead(core_, GlobalEntriesOf(core_, sequence));
  if (GlobalHeldOf(core_, sequence) > KeepOf(sequence, mean) * core_.layers.num_heads()) {
    if (sequence.queries.window() > 0 && sequence.known_queries() == 0) {
      return OutOfBudget(
          "the sequence went back and has read nothing since, so that its recipe cannot judge entries yet");
    }
    PITH_RETURN_IF_ERROR(EvictAll(sequence, std::nullopt));
  }
  return sequence.setup->formats.converted ? DemoteAll(core_, sequence) : Status();
}

int64_t Evictor::MostEntries(const RowGroup& group) const {
  const Sequence& sequence = *group.sequence;
  const double mean = PerHead(core_, GlobalEntriesOf(core_, sequence));
  return (KeepOf(sequence, mean) + (group.settles ? 0 : sequence.share.slack_entries)) * core_.layers.num_heads();
}

bool Evictor::HoldsTooMuch(const RowGroup& group, int layer) const {
  const Sequence& sequence = *group.sequence;
  if (!sequence.setup->style.schedule->EvictsLayers() || !sequence.evicts_while_running()) return false;
  const int num_kv_heads = core_.num_kv_heads(layer);
  const int keep = KeepOf(sequence, static_cast<double>(EntriesOf(core_, sequence, layer)) / num_kv_heads);
  const int most = keep + (group.settles ? 0 : sequence.share.slack_entries);
  return HeldOf(core_, sequence, layer) > static_cast<int64_t>(most) * num_kv_heads;
}

// Every member returns the same.
bool Evictor::FailByFault(RowGroup& group, const Team& team) {
  if (!core_.ops->score_failed()) return false;
  team.One([&] { group.Fail({ErrorCode::kInvalidArgument, scores_.fault}); });
  return true;
}

bool Evictor::FailBySelection(const Status& selected, RowGroup& group, const Team& team) {
  if (selected) return false;
  team.One([&] { group.Fail(selected.error()); });
  return true;
}

void Evictor::Score(const RowGroup& group, int layer, const Team& team) {
  const ActiveRecipe& active = group.sequence->setup->active.front();
  core_.ops->Score(*group.sequence, layer, core_.layers.IndexOf(layer), core_.layers.count(), active,
                   {.num_sinks = active.recipe.num_running_sinks}, team, scores_);
}

void Evictor::EvictInLayer(RowGroup& group, int layer, const Team& team) {
  Sequence& sequence = *group.sequence;
  const Policy& policy = sequence.setup->policy();
  Score(group, layer, team);
  if (FailByFault(group, team)) return;
  core_.ops->loops().Lead(team, [&] {
    const int64_t entries = EntriesOf(core_, sequence, layer), heads = core_.num_kv_heads(layer);
    const Budget budget =
        group.settles ? SettledBudget(core_, sequence, entries, heads) : BlockBudget(sequence, entries, heads);
    in_layer_.Take(policy.Select(core_.ops->inputs(), scores_, budget));
    if (in_layer_.ok()) shrinker_.ToIndices(sequence, layer, in_layer_.kept);
  });
  if (FailBySelection(in_layer_.status, group, team)) return;
  const Status status = shrinker_.KeepHeads(policy, sequence, sequence, layer, in_layer_.kept, team);
  team.One([&] {
    group.changed = true;
    if (!status) group.FailFull();
  });
}

void Evictor::BeginGroup(RowGroup& group, size_t index) {
  Sequence& sequence = *group.sequence;
  if (sequence.setup->style.schedule->LayersInCascade() == 0 || !sequence.evicts || group.num_rows == 1) return;
  const int64_t entries = GlobalEntriesOf(core_, sequence) + group.num_rows * core_.layers.num_heads();
  if (entries <= MostEntries(group)) return;
  group.cascades = true;
  cascades_.resize(std::max(cascades_.size(), index + 1));
  cascades_[index].Begin(BlockBudget(sequence, entries, core_.layers.num_heads()));
}

void Evictor::CascadeInLayer(RowGroup& group, size_t index, int layer, const Team& team) {
  const int global = core_.layers.IndexOf(layer), num_layers = core_.layers.count();
  const bool last = global + 1 == num_layers;
  Sequence& sequence = *group.sequence;
  const Policy& policy = sequence.setup->policy();
  std::vector<KeptHeads>& kept = in_first_layers_.kept;
  Score(group, layer, team);
  if (FailByFault(group, team)) return;
  core_.ops->loops().Lead(team, [&] {
    cascades_[index].Add(policy, std::move(scores_));
    const int64_t in_block = static_cast<int64_t>(group.num_rows) * core_.num_kv_heads(layer);
    const int64_t waiting = last ? 0 : (sequence.setup->style.schedule->LayersInCascade() - 1) * in_block;
    in_first_layers_ = {};
    if (GlobalEntriesOf(core_, sequence) <= MostEntries(group) + waiting) return;
    int64_t left = last ? sequence.share.keep_entries * core_.layers.num_heads() : MostEntries(group);
    for (int later = global + 1; later < num_layers; ++later) {
      left -= EntriesOf(core_, sequence, core_.layers.LayerOf(later));
    }
    in_first_layers_.Take(cascades_[index].Shrink(policy, left));
  });
  if (FailBySelection(in_first_layers_.status, group, team)) return;
  team.All([&] {
    for (size_t i = 0; i < kept.size(); ++i) {
      const int shrunk = core_.layers.LayerOf(static_cast<int>(i));
      const std::span<HeadCache> heads = core_.cache->heads(sequence.cache_id, shrunk);
      for (size_t h = static_cast<size_t>(team.ith); h < heads.size(); h += static_cast<size_t>(team.nth)) {
        if (!KeepInHead(core_, policy, shrunk, h, heads[h], kept[i][h])) {
          std::atomic_ref(group.out_of_pages).store(1, std::memory_order_relaxed);
        }
      }
    }
  });
  team.One([&] {
    group.changed = true;
    if (group.out_of_pages != 0) group.FailFull();
  });
}

}  // namespace pith
