#include "engine/demotion.h"

#include <algorithm>
#include <atomic>
#include <utility>

namespace pith {
namespace {

// Pages of entries that were there before the group's rows would be converted. Those of the rows themselves are cut off
// again where they fail, and a page that they complete shows in Truncate().
bool DemotesOld(const EngineCore& core, const RowGroup& group, int layer) {
  return std::ranges::any_of(std::as_const(*core.cache).heads(group.sequence->cache_id, layer),
                             [&](const HeadCache& head) { return head.HasOldPages(group.num_rows); });
}

bool Demotes(const EngineCore& core, const RowGroup& group) {
  const SequenceSetup& setup = *group.sequence->setup;
  return !group.failed() &&
         (setup.formats.converted || core.cache->layout(group.sequence->cache_id).pruned.share > 0) &&
         (setup.style.schedule->FinishesLayers() || !group.sequence->evicts_while_running());
}

}  // namespace

void DemoteLayer(EngineCore& core, std::span<RowGroup> groups, int layer, const Team& team) {
  if (std::ranges::none_of(groups, [&](const RowGroup& group) { return Demotes(core, group); })) return;
  team.One([&] {
    for (RowGroup& group : groups) {
      if (Demotes(core, group)) group.changed = group.changed || DemotesOld(core, group, layer);
    }
  });
  team.All([&] {
    for (RowGroup& group : groups) {
      if (!Demotes(core, group)) continue;
      if (!core.ops->Demote(group.sequence->cache_id, layer, team)) {
        std::atomic_ref(group.out_of_pages).store(1, std::memory_order_relaxed);
      }
      // Where the budget does not hold a copy of a page that forks share, it stays whole.
      (void)core.ops->Prune(group.sequence->cache_id, layer, team);
    }
  });
  if (team.ith != 0) return;
  for (RowGroup& group : groups) {
    if (group.out_of_pages != 0) group.FailFull();
  }
}

Status DemoteAll(EngineCore& core, const Sequence& sequence) {
  return DemoteLayers(core, sequence, 0, static_cast<int>(core.info->layers.size()));
}

Status DemoteLayers(EngineCore& core, const Sequence& sequence, int first, int count) {
  std::atomic<bool> out_of_pages{false};
  core.context->RunOnTeam([&](const Team& team) {
    for (int layer = first; layer < first + count; ++layer) {
      if (!core.ops->Demote(sequence.cache_id, layer, team)) out_of_pages.store(true, std::memory_order_relaxed);
    }
  });
  if (out_of_pages.load()) return OutOfBudget("the KV budget has no free page left");
  return {};
}

void DropOutOfWindow(EngineCore& core, RowGroup& group, int layer) {
  for (HeadCache& head : core.cache->heads(group.sequence->cache_id, layer)) {
    group.changed = head.DropPagesBefore(group.sequence->next_position - core.info->window + 1) > 0 || group.changed;
  }
}

}  // namespace pith
