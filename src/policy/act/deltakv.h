// Entries as small latents beside a few that stay whole (DeltaKV, arXiv:2602.08005; github.com/CURRENTF/Sparse-vLLM
// src/sparsevllm/engine/cache_manager/deltakv_base.py): a vector of keys before RoPE and values, of all heads of a
// layer, becomes the difference of its compressed form to that of the mean of its nearest earlier references.
//
// Where fewer than k references can be seen, those that are there are averaged; the code fills up with later ones.
#ifndef PITH_POLICY_ACT_DELTAKV_H_
#define PITH_POLICY_ACT_DELTAKV_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace pith {

// A learned map: W x + b, W2 gelu(W1 x + b1) + b2, or W2 (silu(first half of W1 x + b1) * second half) + b2. Rows of
// matrices are outputs; biases may be empty.
struct DeltaMap {
  enum class Kind : uint8_t { kLinear, kGelu, kSwiGlu };
  Kind kind = Kind::kLinear;
  std::span<const float> w1, b1, w2, b2;  // w2, b2: not kLinear

  std::vector<double> Apply(std::span<const double> x) const;
};

enum class DeltaMetric : uint8_t { kL2, kDot, kCosine };

struct DeltaOptions {
  int sink = 8;         // first tokens, raw
  int recent = 128;     // newest tokens, raw, and the unit of blocks
  int stride = 10;      // every so many tokens of a block one is a reference
  int neighbours = 4;   // references of a token
  DeltaMetric metric = DeltaMetric::kL2;
};

struct DeltaEntry {
  std::vector<int32_t> references;  // tokens, nearest first; fewer than wanted where fewer can be seen
  std::vector<double> base;         // [D] their mean
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
  std::span<const float> VectorOf(int token) const {
    return std::span(vectors_).subspan(static_cast<size_t>(token) * dim_, dim_);
  }
  double Similarity(int token, int reference) const;
  void Code(int token);

  const DeltaOptions options_;
  const DeltaMap down_, up_;
  const size_t dim_;
  std::vector<float> vectors_;
  std::vector<int32_t> references_;  // ascending; sinks are the first
  std::vector<std::pair<int, int>> blocks_;
  std::vector<DeltaEntry> entries_;
};

}  // namespace pith

#endif  // PITH_POLICY_ACT_DELTAKV_H_
