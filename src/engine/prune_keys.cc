#include "engine/prune_keys.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "host/halves.h"
#include "kernels/key_channels.h"

namespace pith {
namespace {

// The energy of the last queries that are known, and of all keys, of one kv head.
std::vector<uint16_t> ChooseChannelsOf(const Sequence& source, const LayerShape& shape, int global_layer,
                                       int head_index, const HeadCache& head, const PruneOptions& prune) {
  const size_t dim = static_cast<size_t>(shape.key_dim),
               group = static_cast<size_t>(shape.num_heads / shape.num_kv_heads);
  ChannelEnergies energies(dim);
  std::vector<float> rows(std::max<size_t>(group, kPageEntries) * dim);
  const int window = std::min(prune.window, source.known_queries());
  for (int32_t position = source.next_position - window; position < source.next_position; ++position) {
    ToFloats(source.queries.row(global_layer, position) + static_cast<size_t>(head_index) * group * dim, group * dim,
             rows.data());
    energies.AddQueries(std::span(rows).first(group * dim));
  }
  for (int first = 0; first < head.num_entries(); first += kPageEntries) {
    const int count = std::min(kPageEntries, head.num_entries() - first);
    const PageLayout& layout = head.layout_of(first);
    kernels::ReadKeys(layout, head.page_of(first), count, rows.data());
    if (layout.key_dim < shape.key_dim) {
      kernels::SpreadKeys(head.key_channels(), count, shape.key_dim, rows.data());
    }
    energies.AddKeys(std::span(rows).first(static_cast<size_t>(count) * dim));
  }
  return KeptChannels(energies.Scores(), prune.share);
}

}  // namespace

void ChooseChannels(EngineCore& core, const Sequence& source, const Sequence& target, const PruneOptions& prune,
                    int first, int count, ChosenChannels& chosen) {
  chosen.resize(static_cast<size_t>(core.layers.count()));
  core.context->RunOnTeam([&](const Team& team) {
    for (int global = first + team.ith; global < first + count; global += team.nth) {
      const int layer = core.layers.LayerOf(global);
      const std::span<const HeadCache> heads = std::as_const(*core.cache).heads(target.cache_id, layer);
      for (size_t h = 0; h < heads.size(); ++h) {
        chosen[static_cast<size_t>(global)].push_back(
            ChooseChannelsOf(source, core.shape(layer), global, static_cast<int>(h), heads[h], prune));
      }
    }
  });
}

Status BeginPruning(EngineCore& core, const Sequence& target, const PruneOptions& prune, const ChosenChannels& chosen) {
  const SequenceLayout& layout = core.cache->layout(target.cache_id);
  if (layout.pruned.share > 0) return {};
  PITH_RETURN_IF_ERROR(
      core.cache->SetLower(target.cache_id, layout.full(), {.share = prune.share, .recent = prune.recent}));
  for (int global = 0; global < core.layers.count(); ++global) {
    const std::span<HeadCache> heads = core.cache->heads(target.cache_id, core.layers.LayerOf(global));
    for (size_t h = 0; h < heads.size(); ++h) {
      if (!heads[h].prunes()) continue;
      PITH_RETURN_IF_ERROR(heads[h].ChooseChannels(chosen[static_cast<size_t>(global)][h]));
    }
  }
  return {};
}

Status PruneKeys(EngineCore& core, const Sequence& target, int first, int count) {
  std::atomic<bool> out_of_pages{false};
  core.context->RunOnTeam([&](const Team& team) {
    for (int global = first; global < first + count; ++global) {
      if (!core.ops->Prune(target.cache_id, core.layers.LayerOf(global), team))
        out_of_pages.store(true, std::memory_order_relaxed);
    }
  });
  if (out_of_pages.load()) return OutOfBudget("the KV budget has no free page left");
  return {};
}

}  // namespace pith
