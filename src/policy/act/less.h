// A constant-size state that takes in what is evicted (LESS, arXiv:2402.09398; github.com/hdong920/LESS
// src/inference/generative/llama_gen.py): small learned feature maps of queries and keys stand for the exponential, so
// that evicted entries go on contributing to attention. Keys' map and state are a kv head's, queries' maps a query
// head's; the formulas are kernels/feature_maps.h.
//
// One difference from the authors' code: it floors phi.z and phi at 1e-6, which changes outputs by about 1e-6; here a
// state that has taken in nothing changes nothing.
#ifndef PITH_POLICY_ACT_LESS_H_
#define PITH_POLICY_ACT_LESS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/feature_maps.h"
#include "pith/types.h"

namespace pith {

// Maps of one layer, all heads one behind the other. H query heads, G kv heads.
struct LessLayer {
  int num_heads = 0, num_kv_heads = 0, dim = 0, hidden = 0;
  std::vector<float> query_w1 = {}, query_w2 = {};  // [H, D, m], [H, m, R]
  std::vector<float> key_w1 = {}, key_w2 = {};      // [G, D, m], [G, m, R]
  std::vector<float> key_w3 = {};                   // [G, R, R]
  std::vector<float> key_s1 = {}, key_s2 = {};      // [G, R]
};

// Maps of all layers with a global cache, from a file that training or `pith tune less` has written. Immutable.
class LessMaps {
 public:
  // GGUF with general.architecture "pith-less", pith.less.layers and pith.less.rank, and for each layer the float32
  // tensors "{layer}.phi.w1", "{layer}.phi.w2", "{layer}.psi.w1", "{layer}.psi.w2", "{layer}.psi.w3", "{layer}.psi.s1"
  // and "{layer}.psi.s2" of the shapes above. kNotFound, kIo, kCorrupt: one sentence that names the file.
  static Result<std::shared_ptr<const LessMaps>> Load(const std::string& path);
  // kInvalidArgument: numbers that are none, or sizes that do not fit together.
  static Result<std::shared_ptr<const LessMaps>> Make(int rank, std::vector<LessLayer> layers);
  // What Load() reads.
  std::string Bytes() const;

  int rank() const { return rank_; }
  int num_layers() const { return static_cast<int>(layers_.size()); }
  const LessLayer& layer(int layer) const { return layers_[static_cast<size_t>(layer)]; }
  kernels::FeatureMap QueryMap(int layer, int head) const;
  kernels::FeatureMap KeyMap(int layer, int kv_head) const;
  // Of all weights: states belong to the maps that they were made with.
  uint64_t fingerprint() const { return fingerprint_; }

 private:
  LessMaps(int rank, std::vector<LessLayer> layers);

  int rank_;
  std::vector<LessLayer> layers_;
  uint64_t fingerprint_ = 0;
};

}  // namespace pith

#endif  // PITH_POLICY_ACT_LESS_H_
