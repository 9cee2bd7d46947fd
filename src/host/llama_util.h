// Small helpers over llama.h, for this folder only.
#ifndef PITH_HOST_LLAMA_UTIL_H_
#define PITH_HOST_LLAMA_UTIL_H_

#include <cstdlib>
#include <cstring>
#include <memory>

#include "ggml.h"
#include "gguf.h"
#include "host/model.h"
#include "llama.h"
#include "pith/types.h"

namespace pith {

struct LlamaDeleter {
  void operator()(llama_context* context) const { llama_free(context); }
  void operator()(llama_model* model) const { llama_model_free(model); }
  void operator()(llama_sampler* sampler) const { llama_sampler_free(sampler); }
  void operator()(ggml_context* context) const { ggml_free(context); }
  void operator()(gguf_context* context) const { gguf_free(context); }
};
using GgmlContextPtr = std::unique_ptr<ggml_context, LlamaDeleter>;
using GgufContextPtr = std::unique_ptr<gguf_context, LlamaDeleter>;
using LlamaContextPtr = std::unique_ptr<llama_context, LlamaDeleter>;
using LlamaSamplerPtr = std::unique_ptr<llama_sampler, LlamaDeleter>;

// A position beyond every real one: a copy of the empty range that starts there
// carries recurrent state and no attention cell.
inline constexpr llama_pos kBeyond = 1 << 29;

// A llama_batch that frees itself; tokens only, one sequence id per row.
class Batch {
 public:
  explicit Batch(int capacity) : batch_(llama_batch_init(capacity, 0, 1)) { batch_.n_tokens = 0; }
  ~Batch() { llama_batch_free(batch_); }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  void Clear() { batch_.n_tokens = 0; }
  void Add(int32_t token, int32_t position, int32_t sequence, bool logits) {
    const int row = batch_.n_tokens++;
    batch_.token[row] = token;
    batch_.pos[row] = position;
    batch_.n_seq_id[row] = 1;
    batch_.seq_id[row][0] = sequence;
    batch_.logits[row] = logits;
  }
  int size() const { return batch_.n_tokens; }
  const llama_batch& get() const { return batch_; }

 private:
  llama_batch batch_;
};

// "cache_k_l12" -> 12 for kind 'k'; -1 if the tensor is no attention cache of a layer.
inline int CacheLayerOf(const char* name, char kind = 'k') {
  const char prefix[] = {'c', 'a', 'c', 'h', 'e', '_', kind, '_', 'l'};
  if (std::strncmp(name, prefix, sizeof prefix) != 0) return -1;
  return std::atoi(name + sizeof prefix);
}

inline const ggml_tensor* CacheTensorOf(const ggml_tensor* view) {
  while (view->view_src != nullptr) view = view->view_src;
  return view;
}

// A node of the graph that attends over a KV cache: its k is a view of a cache tensor. (K can
// be cast or copied first in graphs without a cache: those have no cache tensor behind.)
inline bool IsCachedAttention(const ggml_tensor* node) {
  return node->op == GGML_OP_FLASH_ATTN_EXT && CacheLayerOf(CacheTensorOf(node->src[1])->name) >= 0;
}

// The layer into whose key ('k') or value ('v') cache a node writes, or -1.
inline int CacheLayerWritten(const ggml_tensor* node, char kind = 'k') {
  if (node->op != GGML_OP_SET_ROWS && node->op != GGML_OP_CPY) return -1;
  return CacheLayerOf(CacheTensorOf(node)->name, kind);
}

// A node that stores the block's rows [row, T] of float32 into an f16 cache tensor of the same row
// length: the form that can be taken over.
inline bool StoresPlainRows(const ggml_tensor* node) {
  const ggml_tensor* root = CacheTensorOf(node);
  const ggml_tensor* rows = node->src[0];
  return node->op == GGML_OP_SET_ROWS && root->type == GGML_TYPE_F16 && rows->type == GGML_TYPE_F32 &&
         rows->ne[0] == root->ne[0] && rows->ne[2] == 1 && rows->ne[3] == 1 && rows->nb[0] == sizeof(float);
}

// Before anything else of libllama.
void InitLlamaOnce();

// kInvalidArgument: the model has no position as far as `position`, where libllama would abort or go wrong.
Status CheckPosition(const ModelInfo& info, int32_t position);

// libllama's defaults, and how the model's overrides have positions turn queries and keys.
llama_context_params ContextParams(const ModelInfo& info);

// Puts the model's LoRA adapters, if it has any, into a context.
Status ApplyAdapters(const HostModel& model, llama_context* context);

}  // namespace pith

#endif  // PITH_HOST_LLAMA_UTIL_H_
