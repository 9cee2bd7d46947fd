#include "host/probe.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "host/llama_util.h"
#include "host/rotation_probe.h"

namespace pith {
namespace {

constexpr uint32_t kProbeSequences = 3;
constexpr const char* kSelectsEntries =
    "an indexer selects what their attention sees, from a cache that pith does not keep";

struct Seen {
  std::set<int> written;                  // layers whose key cache gets rows
  std::map<int, LayerShape> read;         // layers whose cache an attention node reads
  std::map<std::string, size_t> recurrent;  // bytes of each recurrent state tensor
  std::set<int> stored_otherwise;         // layers whose rows do not come as plain float32 rows
  std::set<int> read_now;                 // caches that this decode's graph has read so far
  std::map<std::pair<int, char>, const ggml_tensor*> caches;  // (layer, 'k' or 'v') -> its tensor
  bool look_at_masks = false;
  int64_t learned_positions = 0;  // rows of the table of learned positions
  bool short_rope = false;        // RoPE uses factors that hold for short contexts only
  std::string unsupported;
};

// Cells that the last token sees. Counted, not looked up by index: a sliding cache may put a new
// token into the cell of one that has left the window.
int NumVisible(const ggml_tensor* mask) {
  int count = 0;
  for (int64_t cell = 0; cell < mask->ne[0]; ++cell) {
    const float value = mask->type == GGML_TYPE_F16
                            ? ggml_fp16_to_fp32(static_cast<const ggml_fp16_t*>(mask->data)[cell])
                            : static_cast<const float*>(mask->data)[cell];
    count += value > -1e30f;
  }
  return count;
}

// Only positions decide what a mask from outside the graph hides. One that the graph computes selects
// entries by their content, over a cache of its own (an indexer's) that pith does not have.
bool ComesFromOutside(const ggml_tensor* mask) {
  while (mask->op == GGML_OP_CPY || mask->op == GGML_OP_CONT || mask->op == GGML_OP_VIEW ||
         mask->op == GGML_OP_RESHAPE || mask->op == GGML_OP_PERMUTE) {
    mask = mask->src[0];
  }
  return mask->op == GGML_OP_NONE;
}

// Indexers keep their keys in a second cache, whose tensors have the names of the first one's.
void NoteCache(const ggml_tensor* view, Seen& seen) {
  const ggml_tensor* root = CacheTensorOf(view);
  for (const char kind : {'k', 'v'}) {
    const int layer = CacheLayerOf(root->name, kind);
    if (layer >= 0 && seen.caches.emplace(std::pair(layer, kind), root).first->second != root) {
      seen.unsupported = kSelectsEntries;
    }
  }
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
    seen.unsupported = "their attention does not read an f16 cache";
  }
  if (node->src[2]->ne[2] != shape.num_kv_heads)
    seen.unsupported = "they have different numbers of key and value heads";
  if (node->src[1]->ne[3] != 1) seen.unsupported = "their cache is split into streams";
  if (node->src[3] != nullptr && !ComesFromOutside(node->src[3])) seen.unsupported = kSelectsEntries;
  shape.value_in_key = CacheTensorOf(node->src[1]) == CacheTensorOf(node->src[2]);
  if (!seen.read.contains(layer)) shape.rotation = RotationOf(node->src[0]);
  if (!seen.read.emplace(layer, shape).second && seen.read_now.contains(layer)) seen.read[layer].shared = true;
  seen.read_now.insert(layer);
}

bool OnNode(ggml_tensor* node, bool ask, void* user_data) {
  Seen& seen = *static_cast<Seen*>(user_data);
  if (ask) {
    for (const char kind : {'k', 'v'}) {
      const int layer = CacheLayerWritten(node, kind);
      if (layer < 0) continue;
      NoteCache(node, seen);
      if (kind == 'k') seen.written.insert(layer);
      if (!StoresPlainRows(node)) seen.stored_otherwise.insert(layer);
    }
    for (const ggml_tensor* source : node->src) {
      if (source == nullptr) continue;
      const ggml_tensor* root = CacheTensorOf(source);
      NoteCache(root, seen);
      if (node->op == GGML_OP_GET_ROWS && std::strcmp(source->name, "position_embd.weight") == 0) {
        seen.learned_positions = source->ne[1];
      }
      if (node->op == GGML_OP_ROPE && std::strstr(source->name, "rope_factors_short") != nullptr)
        seen.short_rope = true;
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

// LongRoPE has two sets of factors, and libllama chooses by the size of its own cache, which is one
// block here: always the short set.
int ShortRopeLimit(const llama_model* model, const ModelInfo& info) {
  return OriginalContext(model, info).value_or(info.trained_ctx);
}

// Some architectures attend to everything while it is short and begin to select later, which no short
// probe shows, so that the file's own word counts too.
bool SaysItHasAnIndexer(const llama_model* model, const ModelInfo& info) {
  for (const char* key : {".attention.indexer.top_k", ".attention.indexer.head_count"}) {
    const std::string number = MetadataOf(model, info.overrides, (info.architecture + key).c_str());
    if (!number.empty() && number != "0") return true;
  }
  return false;
}

class Prober {
 public:
  Prober(llama_context* context, int32_t token, Seen& seen)
      : context_(context), memory_(llama_get_memory(context)), token_(token), seen_(seen) {}

  bool Decode(int32_t position, llama_seq_id sequence) {
    seen_.read_now.clear();
    batch_.Clear();
    batch_.Add(token_, position, sequence, true);
    return llama_decode(context_, batch_.get()) == 0;
  }

  // One sequence with tokens at 0, w - 1 and w, although libllama takes no gaps within a sequence: the
  // first two begin sequences of their own, and the first is copied to the second's. Shifting
  // positions would be shorter, but not all models can.
  bool DecodeAcross(int32_t window) {
    constexpr llama_seq_id kFirst = 0, kBoth = 1, kRecurrent = 2;
    if (memory_ == nullptr || !Decode(0, kFirst) || !Decode(window - 1, kBoth)) return false;
    llama_memory_seq_cp(memory_, kFirst, kBoth, -1, -1);
    // The copy took recurrent state along, which has a position too: it must be that of w - 1. A range
    // beyond every position carries it without any attention cell.
    if (!Decode(window - 1, kRecurrent)) return false;
    llama_memory_seq_cp(memory_, kRecurrent, kBoth, kBeyond, kBeyond + 1);
    seen_.look_at_masks = true;
    return Decode(window, kBoth);
  }

 private:
  llama_context* context_;
  llama_memory_t memory_;
  int32_t token_;
  Seen& seen_;
  Batch batch_{1};
};

}  // namespace

std::optional<int> OriginalContext(const llama_model* model, const ModelInfo& info) {
  const std::string key = info.architecture + ".rope.scaling.original_context_length";
  const std::string length = MetadataOf(model, info.overrides, key.c_str());
  return length.empty() ? std::nullopt : std::optional(std::atoi(length.c_str()));
}

Status ProbeLayers(llama_model* model, ModelInfo& info) {
  Seen seen;
  llama_context_params params = ContextParams(info);
  params.n_ctx = 256;
  params.n_batch = params.n_ubatch = 16;
  params.n_seq_max = kProbeSequences;
  params.kv_unified = true;
  params.swa_full = true;
  params.n_threads = params.n_threads_batch = 1;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.offload_kqv = false;  // as the context that follows
  params.no_perf = true;
  params.cb_eval = OnNode;
  params.cb_eval_user_data = &seen;
  LlamaContextPtr context(llama_init_from_model(model, params));
  if (context == nullptr) return Unsupported("libllama cannot make a context with flash attention for " + info.path);

  if (llama_get_memory(context.get()) == nullptr) {
    return Unsupported(info.architecture + " models have no KV cache: they embed text and do not generate it");
  }
  const int32_t token = std::max(0, std::min(info.num_vocab - 1, 3));
  Prober prober(context.get(), token, seen);
  const bool ok = info.window > 2 ? prober.DecodeAcross(info.window) : prober.Decode(0, 0) && prober.Decode(1, 0);
  if (!ok) return Unsupported("libllama cannot decode with " + info.architecture + " models in small blocks");
  if (SaysItHasAnIndexer(model, info)) seen.unsupported = kSelectsEntries;

  if (!seen.unsupported.empty())
    return Unsupported(info.architecture + " models cannot be hosted: " + seen.unsupported);
  if (seen.read.empty() && !seen.written.empty()) {
    return Unsupported(info.architecture +
                       " models cannot be hosted: libllama computes their attention without flash attention, "
                       "the form that pith takes over");
  }
  const bool recurs = !seen.recurrent.empty() || llama_model_is_hybrid(model) || llama_model_is_recurrent(model);
  if (seen.read.empty() && !recurs) {
    return Unsupported(info.architecture + " models cannot be hosted: their graph has no attention over a KV cache");
  }
  for (const int layer : seen.written) {
    if (!seen.read.contains(layer)) {
      return Unsupported(info.architecture + " models cannot be hosted: layer " + std::to_string(layer) +
                         " attends in a form that pith cannot take over");
    }
  }
  const int last_read = seen.read.empty() ? -1 : seen.read.rbegin()->first;
  info.layers.assign(static_cast<size_t>(std::max(info.num_layers, last_read + 1)), LayerShape{});
  for (const auto& [layer, shape] : seen.read) {
    info.layers[static_cast<size_t>(layer)] = shape;
    info.layers[static_cast<size_t>(layer)].bypasses_block =
        seen.written.contains(layer) && !seen.stored_otherwise.contains(layer);
  }
  if (seen.short_rope) info.max_positions = ShortRopeLimit(model, info);
  if (seen.learned_positions > 0) info.max_positions = static_cast<int>(seen.learned_positions);
  info.hybrid = recurs;
  for (const auto& [name, bytes] : seen.recurrent) info.recurrent_bytes += bytes / kProbeSequences;
  return {};
}

}  // namespace pith
