#include "engine/cache_formats.h"

#include <algorithm>
#include <cmath>

#include "kernels/key_channels.h"
#include "policy/act/think.h"

namespace pith {

CacheFormats FormatsOf(PageFormat format) {
  if (format.whole_pages()) return {.entry = PageFormat(), .converted = format};
  return {.entry = format, .converted = std::nullopt};
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

double ContentShare(const KvCache& cache, int cache_id, std::span<const int> layers, int32_t num_tokens) {
  double bytes = 0, full = 0;
  for (const int layer : layers) {
    for (const HeadCache& head : cache.heads(cache_id, layer)) {
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
