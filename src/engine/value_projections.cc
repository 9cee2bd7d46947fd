#include "engine/value_projections.h"

#include <memory>
#include <utility>

#include "base/parallel.h"

namespace pith {

std::vector<kernels::PackedProjection> ValueProjections::Pack(int layer) const {
  const LayerShape& shape = model_.info().layers[static_cast<size_t>(layer)];
  const auto dim = static_cast<size_t>(shape.value_dim),
             group = static_cast<size_t>(shape.num_heads / shape.num_kv_heads);
  const size_t row = static_cast<size_t>(shape.num_heads) * dim;
  const std::shared_ptr<const std::vector<float>> weights = model_.OutputProjection(layer);
  if (weights->empty() || weights->size() % row != 0) return {};
  std::vector<kernels::PackedProjection> packed(static_cast<size_t>(shape.num_kv_heads));
  ParallelFor(packed.size(), [&](size_t h) {
    packed[h].Pack(weights->data() + h * group * dim, static_cast<int>(weights->size() / row), row,
                   static_cast<int>(group), shape.value_dim);
  });
  return packed;
}

std::span<const kernels::PackedProjection> ValueProjections::Of(int layer) {
  if (const auto kept = kept_.find(layer); kept != kept_.end()) return kept->second;
  latest_ = Pack(layer);
  size_t bytes = 0;
  for (const kernels::PackedProjection& projection : latest_) bytes += projection.num_bytes();
  if (kept_bytes_ + bytes > most_kept_bytes_) return latest_;
  kept_bytes_ += bytes;
  return kept_[layer] = std::move(latest_);
}

}  // namespace pith
