#include "host/layer_map.h"

#include <fmt/format.h>

namespace pith {
namespace {

bool SameShape(const LayerShape& a, const LayerShape& b) {
  return a.kind == b.kind && a.num_heads == b.num_heads && a.num_kv_heads == b.num_kv_heads && a.key_dim == b.key_dim &&
         a.value_dim == b.value_dim && a.value_in_key == b.value_in_key;
}

}  // namespace

Status ApplyLayerMap(std::span<const int> map, ModelInfo& info) {
  if (map.empty()) return {};
  if (map.size() != info.layers.size()) {
    return InvalidArgument(
        fmt::format("the map of layers has {} numbers, and the model {} layers", map.size(), info.layers.size()));
  }
  for (size_t l = 0; l < map.size(); ++l) {
    const int root = map[l];
    if (root < 0 || root > static_cast<int>(l) || map[static_cast<size_t>(root)] != root) {
      return InvalidArgument(fmt::format(
          "the map of layers says that layer {} reads the cache of {}, which is no layer at or before it with "
          "a cache of its own",
          l, root));
    }
    const LayerShape &own = info.layers[l], &its = info.layers[static_cast<size_t>(root)];
    if (root == static_cast<int>(l)) continue;
    if (own.kind != LayerKind::kGlobal || own.shared || its.shared || !SameShape(own, its)) {
      return InvalidArgument(
          fmt::format("layer {} cannot read the cache of layer {}: only whole attention of the same heads is shared", l,
                      root));
    }
  }
  for (size_t l = 0; l < map.size(); ++l) {
    if (map[l] == static_cast<int>(l)) continue;
    info.layers[l] = LayerShape();
    info.layers[static_cast<size_t>(map[l])].shared = true;
  }
  info.cache_of.assign(map.begin(), map.end());
  return {};
}

}  // namespace pith
