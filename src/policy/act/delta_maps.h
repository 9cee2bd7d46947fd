// Maps of latents (cache/latents.h) of a whole model, from a file that training or `pith tune delta` has written.
#ifndef PITH_POLICY_ACT_DELTA_MAPS_H_
#define PITH_POLICY_ACT_DELTA_MAPS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "pith/types.h"

namespace pith {

// Of one layer.
struct DeltaLayer {
  int key_dim = 0, value_dim = 0;
  std::vector<std::vector<uint16_t>> heads = {};  // of each kv head, as pages of latents take them
};

// Immutable.
class DeltaMaps {
 public:
  // GGUF with general.architecture "pith-delta", pith.delta.layers, pith.delta.latent (256ths of the numbers of a key
  // and a value) and for each layer pith.delta.{layer}.key_dim and the float32 tensors "{layer}.up" [G, r, D] and
  // either
  // "{layer}.key_weight" [G] or "{layer}.down" [G, r, D], where D is of a key before RoPE with its value.
  // kNotFound, kIo, kCorrupt: one sentence that names the file.
  static Result<std::shared_ptr<const DeltaMaps>> Load(const std::string& path);
  // kInvalidArgument: numbers that are none, or sizes that do not fit together.
  static Result<std::shared_ptr<const DeltaMaps>> Make(uint8_t latents, std::vector<DeltaLayer> layers);
  // What Load() reads.
  std::string Bytes() const;

  uint8_t latents() const { return latents_; }
  int num_layers() const { return static_cast<int>(layers_.size()); }
  const DeltaLayer& layer(int layer) const { return layers_[static_cast<size_t>(layer)]; }

 private:
  DeltaMaps(uint8_t latents, std::vector<DeltaLayer> layers) : latents_(latents), layers_(std::move(layers)) {}

  uint8_t latents_;
  std::vector<DeltaLayer> layers_;
};

}  // namespace pith

#endif  // PITH_POLICY_ACT_DELTA_MAPS_H_
