// How DeltaKV cuts a text into blocks and which of their tokens are references (arXiv:2602.08005; github.com/CURRENTF/
// Sparse-vLLM src/sparsevllm/engine/cache_manager/deltakv_base.py), with maps of any of its kinds. What is near and
// what a base is says cache/latents.h, which pages of act=delta go by, too.
//
// Where fewer than k references can be seen, those that are there are averaged; the code fills up with later ones.
#ifndef PITH_TESTS_SUPPORT_DELTA_CODEC_H_
#define PITH_TESTS_SUPPORT_DELTA_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "cache/latents.h"

namespace pith::testing {

// A learned map: W x + b, W2 gelu(W1 x + b1) + b2, or W2 (silu(first half of W1 x + b1) * second half) + b2. Rows of
// matrices are outputs; biases may be empty.
struct DeltaMap {
  enum class Kind : uint8_t { kLinear, kGelu, kSwiGlu };
  Kind kind = Kind::kLinear;
  std::span<const float> w1, b1, w2, b2;  // w2, b2: not kLinear

  std::vector<double> Apply(std::span<const double> x) const;
};

struct DeltaOptions {
  int sink = 8;         // first tokens, raw
  int recent = 128;     // newest tokens, raw, and the unit of blocks
  int stride = 10;      // every so many tokens of a block one is a reference
  int neighbours = 4;   // references of a token
  DeltaMetric metric = DeltaMetric::kL2;
};

struct DeltaEntry {
  std::vector<int32_t> references;  // tokens, nearest first; fewer than wanted where fewer can be seen
  std::vector<float> base;          // [D] their mean
  std::vector<double> latent;       // [r] f(x) - f(base)
};

class DeltaCodec {
 public:
  // dim: D of a token's vector.
  DeltaCodec(const DeltaOptions& options, DeltaMap down, DeltaMap up, size_t dim)
      : options_(options), down_(down), up_(up), dim_(dim) {}

  // Vectors of the next tokens [count, D]; a block of old ones is coded where so many wait.
  void Append(std::span<const float> vectors);

  // Tokens [first, second) of each coded block.
  const std::vector<std::pair<int, int>>& blocks() const { return blocks_; }
  bool IsReference(int token) const;
  // Of coded tokens, which begin behind the sinks.
  const std::vector<DeltaEntry>& entries() const { return entries_; }
  // g(latent) + base
  std::vector<double> Reconstruct(const DeltaEntry& entry) const;

 private:
  const float* VectorOf(int token) const { return vectors_.data() + static_cast<size_t>(token) * dim_; }
  // Those of a block, whose references are there.
  void Code(int first, int count);

  const DeltaOptions options_;
  const DeltaMap down_, up_;
  const size_t dim_;
  std::vector<float> vectors_;
  std::vector<int32_t> references_;  // ascending; sinks are the first
  std::vector<std::pair<int, int>> blocks_;
  std::vector<DeltaEntry> entries_;
};

}  // namespace pith::testing

#endif  // PITH_TESTS_SUPPORT_DELTA_CODEC_H_
