#include "engine/full_cache.h"

#include <algorithm>
#include <cmath>

namespace pith {

bool HoldsCache(const LayerShape& layer) { return layer.kind != LayerKind::kNone && layer.num_kv_heads > 0; }

size_t BytesPerToken(const ModelInfo& info, PageFormat format) {
  size_t bytes = 0;
  for (const LayerShape& layer : info.layers) {
    if (!HoldsCache(layer)) continue;
    const PageLayout layout = PageLayout::Make(format, layer.key_dim, layer.value_in_key ? 0 : layer.value_dim, 0);
    bytes += static_cast<size_t>(std::ceil(layout.entry_bytes() * layer.num_kv_heads));
  }
  return bytes;
}

size_t FullCacheBytes(const ModelInfo& info, int num_tokens) {
  return BytesPerToken(info, KvFormat::kF16) * static_cast<size_t>(num_tokens);
}

double FormatShare(const ModelInfo& info, PageFormat format) {
  const size_t full = BytesPerToken(info, KvFormat::kF16);
  return full == 0 ? 1 : static_cast<double>(BytesPerToken(info, format)) / static_cast<double>(full);
}

int ContextOf(const ModelInfo& info, int requested) {
  if (requested > 0) return requested;
  const int trained = info.trained_ctx > 0 ? info.trained_ctx : 4096;
  return info.max_positions > 0 ? std::min(trained, info.max_positions) : trained;
}

}  // namespace pith
