// A network in a file: what it is for, how its inputs are scaled, its weights, one input with the output that it must
// give, and a checksum.
//
//   "PITHNET1", u32 kind, u32 number of widths, u32 widths[], f32 mean[in], f32 deviation[in],
//   per layer f32 weights[in][out], f32 biases[out]; f32 input[in], f32 output[out]; u64 FNV-1a of all before.
// Little-endian.
#ifndef PITH_EVICT_LEARN_MODEL_FILE_H_
#define PITH_EVICT_LEARN_MODEL_FILE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "evict/learn/net.h"
#include "pith/types.h"

namespace pith::evict {

enum class ModelKind : uint32_t { kColdRl = 1, kSurvival = 2, kDiscardBit = 3, kPhaseBit = 4 };

struct Model {
  ModelKind kind = ModelKind::kColdRl;
  std::vector<float> mean;       // by input
  std::vector<float> deviation;  // by input, above 0
  Net net;

  // (x - mean) / deviation, cut at +-5; NaN, which stands for "unknown", becomes 0: the mean.
  void Normalize(const float* features, float* inputs) const;
};

inline constexpr size_t kMostModelBytes = 4 << 20;

// All weights are finite.
std::string SerializeModel(const Model& model);

// `name` begins the sentence of an error. kCorrupt: no such file, damaged, or its own test fails; kInvalidArgument:
// made for another evictor.
Result<Model> ParseModel(std::string_view bytes, ModelKind kind, std::string_view name);
// From a file, or from what the program carries where `path` is empty.
Result<Model> LoadModel(const std::string& path, ModelKind kind);

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_MODEL_FILE_H_
