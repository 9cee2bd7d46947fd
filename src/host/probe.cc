#include "host/probe.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "host/llama_util.h"

namespace pith {
namespace {

struct Seen {
  std::set<int> written;                  // layers whose key cache gets rows
  std::map<int, LayerShape> read;         // layers whose cache an attention node reads
  std::map<std::string, size_t> recurrent;  // bytes of each recurrent state tensor
  std::set<int> stored_otherwise;         // layers whose rows do not come as plain float32 rows
  std::set<int> read_now;                 // caches that this decode's graph has read so far
  bool look_at_masks = false;
  std::string unsupported;
};

// Cells that the last token sees. Counted, not looked up by index: a sliding cache may put a new
// token into the cell of one that has left the window.
int NumVisible(const ggml_tensor* mask) {
  int count = 0;
  for (int64_t cell = 0; cell < mask->ne[0]; ++cell) {
    const float value = mask->type == GGML_TYPE_F16 ? ggml_fp16_to_fp32(static_cast<const ggml_fp16_t*>(mask->data)[cell])
                                                    : static_cast<const float*>(mask->data)[cell];
    count += value > -1e30f;
  }
  return count;
}

void NoteShape(const ggml_tensor* node, Seen& seen) {
  const int layer = CacheLayerOf(CacheTensorOf(node->src[1])->name);
  LayerShape shape;
  shape.kind = LayerKind::kGlobal;
  shape.num_heads = static_cast<int>(node->src[0]->ne[2]);
  shape.num_kv_heads = static_cast<int>(node->src[1]->ne[2]);
  shape.key_dim = static_cast<int>(node->src[1]->ne[0]);
  shape.value_dim = static_cast<int>(node->src[2]->ne[0]);
  if (node->src[1]->type != GGML_TYPE_F16 || node->src[2]->type != GGML_TYPE_F16) {
    seen.unsupported = "its attention does not read an f16 cache";
  }
  if (node->src[2]->ne[2] != shape.num_kv_heads) seen.unsupported = "it has different numbers of key and value heads";
  if (node->src[1]->ne[3] != 1) seen.unsupported = "its cache is split into streams";
  shape.value_in_key = CacheTensorOf(node->src[1]) == CacheTensorOf(node->src[2]);
  if (!seen.read.emplace(layer, shape).second && seen.read_now.contains(layer)) seen.read[layer].shared = true;
  seen.read_now.insert(layer);
}

bool OnNode(ggml_tensor* node, bool ask, void* user_data) {
  Seen& seen = *static_cast<Seen*>(user_data);
  if (ask) {
    for (const char kind : {'k', 'v'}) {
      const int layer = CacheLayerWritten(node, kind);
      if (layer < 0) continue;
      if (kind == 'k') seen.written.insert(layer);
      if (!StoresPlainRows(node)) seen.stored_otherwise.insert(layer);
    }
    for (const ggml_tensor* source : node->src) {
      if (source == nullptr) continue;
      const ggml_tensor* root = CacheTensorOf(source);
      if (std::strncmp(root->name, "cache_r_l", 9) == 0 || std::strncmp(root->name, "cache_s_l", 9) == 0) {
        seen.recurrent[root->name] = ggml_nbytes(root);
      }
    }
    if (IsCachedAttention(node)) NoteShape(node, seen);
    return seen.look_at_masks && IsCachedAttention(node);
  }
  LayerShape& shape = seen.read.at(CacheLayerOf(CacheTensorOf(node->src[1])->name));
  // Of the tokens at 0, w - 1 and w itself.
  const int visible = node->src[3] == nullptr ? 3 : NumVisible(node->src[3]);
  shape.kind = visible >= 3 ? LayerKind::kGlobal : visible == 2 ? LayerKind::kWindow : LayerKind::kChunk;
  return true;
}

bool DecodeOne(llama_context* context, Batch& batch, int32_t token, int32_t position, Seen& seen) {
  seen.read_now.clear();
  batch.Clear();
  batch.Add(token, position, 0, true);
  return llama_decode(context, batch.get()) == 0;
}

}  // namespace

Status ProbeLayers(llama_model* model, ModelInfo& info) {
  Seen seen;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = 256;
  params.n_batch = params.n_ubatch = 16;
  params.n_seq_max = 1;
  params.kv_unified = true;
  params.swa_full = true;
  params.n_threads = params.n_threads_batch = 1;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.no_perf = true;
  params.cb_eval = OnNode;
  params.cb_eval_user_data = &seen;
  LlamaContextPtr context(llama_init_from_model(model, params));
  if (context == nullptr) return Unsupported("libllama cannot make a context with flash attention for " + info.path);

  // Three tokens at positions 0, w - 1 and w. Without a window they are simply 0, 1, 2.
  const int32_t token = std::max(0, std::min(info.num_vocab - 1, 3));
  Batch batch(16);
  bool ok = DecodeOne(context.get(), batch, token, 0, seen) && DecodeOne(context.get(), batch, token, 1, seen);
  llama_memory_t memory = llama_get_memory(context.get());
  int32_t next = 2;
  if (ok && info.window > 2) {
    if (memory == nullptr || !llama_memory_can_shift(memory)) {
      return Unsupported("the layers of " + info.architecture +
                         " that slide cannot be told apart, since its positions cannot be shifted");
    }
    llama_memory_seq_add(memory, 0, 1, -1, info.window - 2);
    next = info.window;
  }
  seen.look_at_masks = info.window > 0;
  ok = ok && DecodeOne(context.get(), batch, token, next, seen);
  if (!ok) return Unsupported("libllama cannot decode with " + info.architecture + " models in small blocks");

  if (!seen.unsupported.empty()) return Unsupported(info.architecture + " models cannot be hosted: " + seen.unsupported);
  if (seen.read.empty()) {
    return Unsupported(info.architecture + " models cannot be hosted: their graph has no attention over a KV cache");
  }
  for (const int layer : seen.written) {
    if (!seen.read.contains(layer)) {
      return Unsupported(info.architecture + " models cannot be hosted: layer " + std::to_string(layer) +
                         " attends in a form that pith cannot take over");
    }
  }
  info.layers.assign(static_cast<size_t>(std::max(info.num_layers, seen.read.rbegin()->first + 1)), LayerShape{});
  for (const auto& [layer, shape] : seen.read) {
    info.layers[static_cast<size_t>(layer)] = shape;
    info.layers[static_cast<size_t>(layer)].bypasses_block =
        seen.written.contains(layer) && !seen.stored_otherwise.contains(layer);
  }
  info.hybrid = !seen.recurrent.empty() || llama_model_is_hybrid(model) || llama_model_is_recurrent(model);
  for (const auto& [name, bytes] : seen.recurrent) info.recurrent_bytes += bytes;
  return {};
}

}  // namespace pith
