// Embeddings by models that have no KV cache: libllama runs them whole, a text at a time.
//
// Models that generate text give embeddings through an engine, within its budget (StepItem::all_hidden).
#ifndef PITH_HOST_EMBEDDING_CONTEXT_H_
#define PITH_HOST_EMBEDDING_CONTEXT_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "host/model.h"
#include "pith/types.h"

namespace pith {

// Of length 1; zeros stay zeros.
std::vector<float> UnitVector(std::span<const double> values);

// Not thread-safe.
class EmbeddingContext {
 public:
  // `model` was loaded for embeddings, and outlives it. kUnsupported: it has a KV cache.
  static Result<std::unique_ptr<EmbeddingContext>> Create(const HostModel& model, int num_threads);
  ~EmbeddingContext();

  // Tokens of a text at most.
  int num_ctx() const;
  // Main memory of libllama's context, without what a graph takes while it runs.
  size_t bytes() const;
  // [hidden_dim], pooled as the file says, of length 1. rows: empty, or for the hidden states, [tokens, hidden_dim].
  // kOutOfContext: more than num_ctx() tokens.
  Result<std::vector<float>> Embed(std::span<const int32_t> tokens, std::span<float> rows = {});

 private:
  EmbeddingContext();
  struct Private;
  std::unique_ptr<Private> private_;
};

// Embeds a few tokens.
Status ProbeEmbeddings(const HostModel& model);

}  // namespace pith

#endif  // PITH_HOST_EMBEDDING_CONTEXT_H_
