#include "engine/less_states.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "policy/select.h"

namespace pith {
namespace {

// Entries whose rows are in memory at once.
constexpr size_t kAtOnce = 256;

// visit(layer) for those that recipes act on.
template <class Visit>
void ForEachGlobal(const ModelInfo& info, const Visit& visit) {
  for (const LayerShape& layer : info.layers) {
    if (layer.kind == LayerKind::kGlobal && layer.num_kv_heads > 0) visit(layer);
  }
}

}  // namespace

Status KeepAndAbsorb(HeadCache& head, std::span<const int32_t> kept, const kernels::FeatureMap& map) {
  const std::vector<int32_t> dropped = NotKept(0, head.num_entries(), kept);
  const auto key_dim = static_cast<size_t>(head.layout().key_dim),
             value_dim = static_cast<size_t>(head.layout().value_dim), rank = static_cast<size_t>(map.rank);
  std::vector<float> sums(kernels::StateFloats(map.rank, head.layout().value_dim), 0);
  std::vector<float> keys, values, features;
  for (size_t first = 0; first < dropped.size(); first += kAtOnce) {
    const std::span<const int32_t> some =
        std::span<const int32_t>(dropped).subspan(first, std::min(kAtOnce, dropped.size() - first));
    keys.resize(some.size() * key_dim);
    values.resize(some.size() * value_dim);
    features.resize(some.size() * rank);
    head.ReadKeysOf(some, keys.data());
    head.ReadValuesOf(some, values.data());
    kernels::MapFeatures(map, keys.data(), key_dim, some.size(), features.data(), rank);
    for (size_t i = 0; i < some.size(); ++i) {
      kernels::AddToState({features.data() + i * rank, rank}, {values.data() + i * value_dim, value_dim}, sums.data());
    }
  }
  PITH_RETURN_IF_ERROR(head.Keep(kept));
  if (!dropped.empty()) head.state().Add(sums, static_cast<int64_t>(dropped.size()));
  return {};
}

size_t StateBytes(const ModelInfo& info, const LessMaps& maps) {
  size_t floats = 0;
  ForEachGlobal(info, [&](const LayerShape& layer) {
    floats += static_cast<size_t>(layer.num_kv_heads) * kernels::StateFloats(maps.rank(), layer.value_dim);
  });
  return floats * sizeof(float);
}

double StateEntries(const ModelInfo& info, const LessMaps& maps) {
  double entry_bytes = 0;  // of all heads
  ForEachGlobal(info, [&](const LayerShape& layer) {
    entry_bytes += layer.num_kv_heads * PageLayout::Make(PageFormat(), layer.key_dim, layer.value_dim, 0).entry_bytes();
  });
  return entry_bytes > 0 ? static_cast<double>(StateBytes(info, maps)) / entry_bytes : 0;
}

Status CheckCanHaveMaps(const ModelInfo& info) {
  if (std::ranges::none_of(info.layers, &LayerShape::shared)) return {};
  return Unsupported("act=less has maps of each layer's own queries, and layers of this model share their caches");
}

Status CheckMaps(const ModelInfo& info, const LessMaps& maps) {
  PITH_RETURN_IF_ERROR(CheckCanHaveMaps(info));
  int num_layers = 0;
  Status status;
  ForEachGlobal(info, [&](const LayerShape& layer) {
    const int at = num_layers++;
    if (!status || at >= maps.num_layers()) return;
    const LessLayer& of = maps.layer(at);
    if (of.num_heads == layer.num_heads && of.num_kv_heads == layer.num_kv_heads && of.dim == layer.key_dim) return;
    status = InvalidArgument(fmt::format(
        "the maps of act=less are for {} query and {} kv heads of {} channels, and the model's layer {} has {}, {} and "
        "{}",
        of.num_heads, of.num_kv_heads, of.dim, at, layer.num_heads, layer.num_kv_heads, layer.key_dim));
  });
  if (status && num_layers != maps.num_layers()) {
    return InvalidArgument(
        fmt::format("the maps of act=less are for {} layers with a global cache, and the model has "
                    "{}",
                    maps.num_layers(), num_layers));
  }
  return status;
}

}  // namespace pith
