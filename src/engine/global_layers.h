// The layers that recipes act on: those that attend over everything. They are counted by themselves.
#ifndef PITH_ENGINE_GLOBAL_LAYERS_H_
#define PITH_ENGINE_GLOBAL_LAYERS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "host/model.h"

namespace pith {

class GlobalLayers {
 public:
  GlobalLayers() = default;
  explicit GlobalLayers(const ModelInfo& info) {
    for (const LayerShape& shape : info.layers) {
      const bool global = shape.kind == LayerKind::kGlobal;
      indices_.push_back(global ? count() : -1);
      if (!global) continue;
      layers_.push_back(static_cast<int>(indices_.size()) - 1);
      num_heads_ += shape.num_kv_heads;
    }
  }

  int count() const { return static_cast<int>(layers_.size()); }
  int64_t num_heads() const { return num_heads_; }  // kv heads of all of them
  // Of a layer of the model among them, -1: it is none. And back.
  int IndexOf(int layer) const { return indices_[static_cast<size_t>(layer)]; }
  int LayerOf(int index) const { return layers_[static_cast<size_t>(index)]; }
  // The layers of the model, ascending.
  std::span<const int> layers() const { return layers_; }

 private:
  std::vector<int> indices_;  // of each layer of the model
  std::vector<int> layers_;
  int64_t num_heads_ = 0;
};

}  // namespace pith

#endif  // PITH_ENGINE_GLOBAL_LAYERS_H_
