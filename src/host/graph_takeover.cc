#include "host/graph_takeover.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/own_code.h"
#include "ggml-cpu.h"
#include "host/llama_util.h"

namespace pith {
namespace {

// The parameters of a custom op, as ggml itself lays them out.
std::vector<std::byte> CustomOpParams(ggml_custom_op_t function, void* user_data) {
  GgmlContextPtr ggml(
      ggml_init({.mem_size = ggml_tensor_overhead() * 2 + 1024, .mem_buffer = nullptr, .no_alloc = true}));
  PITH_CHECK(ggml != nullptr);
  const ggml_tensor* node =
      ggml_custom_4d(ggml.get(), GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, function, GGML_N_TASKS_MAX, user_data);
  std::vector<std::byte> params(sizeof node->op_params);
  std::memcpy(params.data(), node->op_params, params.size());
  return params;
}

// Where a view of libllama's cache lies in the buffer that holds its rows instead.
const uint16_t* RowsBehind(const ggml_tensor* view, const std::vector<std::vector<ggml_fp16_t>>& buffers, int buffer) {
  if (buffer < 0) return static_cast<const uint16_t*>(view->data);
  const auto offset = static_cast<const char*>(view->data) - static_cast<const char*>(CacheTensorOf(view)->data);
  return buffers[static_cast<size_t>(buffer)].data() + offset / static_cast<std::ptrdiff_t>(sizeof(ggml_fp16_t));
}

}  // namespace

GraphTakeover::GraphTakeover(const ModelInfo& info, bool own_products, int num_threads, AttentionSink* sink)
    : sink_(sink),
      own_products_(own_products),
      cache_of_(info.cache_of),
      product_scratch_(static_cast<size_t>(num_threads)),
      caches_read_(info.layers.size()),
      caches_expected_(info.layers.size()) {
  for (std::vector<int>& buffers : buffer_of_) buffers.assign(info.layers.size(), -1);
  for (size_t layer = 0; layer < info.layers.size(); ++layer) {
    if (info.layers[layer].kind != LayerKind::kNone) caches_expected_.Insert(static_cast<int>(layer));
  }
}

void GraphTakeover::SetThreads(int num_threads) {
  product_scratch_.resize(std::max(product_scratch_.size(), static_cast<size_t>(num_threads)));
}

size_t GraphTakeover::block_bytes() const {
  size_t bytes = 0;
  for (const auto& [name, size] : block_tensors_) bytes += unwritten_tensors_.contains(name) ? 0 : size;
  for (const std::vector<ggml_fp16_t>& rows : row_buffers_) bytes += rows.size() * sizeof(ggml_fp16_t);
  return bytes;
}

size_t GraphTakeover::recurrent_bytes() const {
  size_t bytes = 0;
  for (const auto& [name, size] : recurrent_tensors_) bytes += size;
  return bytes;
}

void GraphTakeover::NoteMemory(const ggml_tensor* node) {
  for (const ggml_tensor* source : node->src) {
    if (source == nullptr) continue;
    const ggml_tensor* root = CacheTensorOf(source);
    if (std::strncmp(root->name, "cache_", 6) != 0) continue;
    const bool recurrent = root->name[6] == 'r' || root->name[6] == 's';
    (recurrent ? recurrent_tensors_ : block_tensors_)[root->name] = ggml_nbytes(root);
  }
}

// libllama asks about each node before it runs it: the moment to change it.
bool GraphTakeover::OnNode(ggml_tensor* node, bool ask, void* user_data) {
  GraphTakeover& self = *static_cast<GraphTakeover*>(user_data);
  if (!ask) return true;
  const OwnCode own(true);
  if (self.next_node_ == 0) self.NoteMemory(node);
  if (self.ignore_history_) return false;
  for (const char kind : {'k', 'v'}) {
    const int layer = CacheLayerWritten(node, kind);
    if (layer >= 0 && StoresPlainRows(node)) {
      self.TakeOverStore(node, layer, kind);
      return false;
    }
  }
  if (IsCachedAttention(node)) {
    self.TakeOverAttention(node);
  } else if (self.own_products_ && RowProduct::Suits(node)) {
    // Of all threads, also those that compute nothing yet: while tokens are decoded nothing is allocated.
    for (ProductScratch& of_thread : self.product_scratch_) {
      of_thread.rounded.Reserve(static_cast<int>(node->src[1]->ne[1]), static_cast<int>(node->src[1]->ne[0]));
    }
    Become(node, self.NextProduct().rows_op_params);
  } else if (self.own_products_ && BlockProduct::Suits(node)) {
    Become(node, self.NextProduct().block_op_params);
  }
  return false;
}

GraphTakeover::Node& GraphTakeover::NextNode() {
  if (next_node_ == 0) {
    caches_read_.Clear();
    for (std::vector<int>& buffers : buffer_of_) std::fill(buffers.begin(), buffers.end(), -1);
    buffer_busy_.assign(buffer_busy_.size(), false);
  }
  if (next_node_ == nodes_.size()) nodes_.push_back(std::make_unique<Node>());
  Node& entry = *nodes_[next_node_++];
  entry.owner = this;
  return entry;
}

// Only the op and its parameters change: sources, output and schedule stay.
void GraphTakeover::Become(ggml_tensor* node, std::span<const std::byte> op_params) {
  node->op = GGML_OP_CUSTOM;
  std::memcpy(node->op_params, op_params.data(), op_params.size());
}

void GraphTakeover::Become(ggml_tensor* node, Node& entry, ggml_custom_op_t function) {
  if (entry.function != function) {
    entry.op_params = CustomOpParams(function, &entry);
    entry.function = function;
  }
  Become(node, entry.op_params);
}

// libllama's cache is never written, so its memory need not be there.
void GraphTakeover::DropPages(const ggml_tensor* cache) {
  if (cache->buffer == nullptr || !buffers_dropped_.insert(cache->buffer).second) return;
  if (!ggml_backend_buffer_is_host(cache->buffer)) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto base = reinterpret_cast<uintptr_t>(ggml_backend_buffer_get_base(cache->buffer));
  const uintptr_t from = (base + page - 1) / page * page;
  const uintptr_t to = (base + ggml_backend_buffer_get_size(cache->buffer)) / page * page;
  if (to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
}

GraphTakeover::ProductNode& GraphTakeover::NextProduct() {
  if (next_product_ == products_.size()) {
    ProductNode& entry = *products_.emplace_back(std::make_unique<ProductNode>());
    entry.owner = this;
    entry.block_op_params = CustomOpParams(OnBlockProduct, &entry);
    entry.rows_op_params = CustomOpParams(OnRowProduct, &entry);
  }
  return *products_[next_product_++];
}

void GraphTakeover::OnBlockProduct(ggml_tensor* node, int ith, int nth, void* user_data) {
  const OwnCode own(true);
  ProductNode& entry = *static_cast<ProductNode*>(user_data);
  entry.of_block.Run(node, nth, entry.owner->product_scratch_[static_cast<size_t>(ith)].unpacked);
}

void GraphTakeover::OnRowProduct(ggml_tensor* node, int ith, int nth, void* user_data) {
  const OwnCode own(true);
  ProductNode& entry = *static_cast<ProductNode*>(user_data);
  entry.of_rows.Run(node, nth, entry.owner->product_scratch_[static_cast<size_t>(ith)].rounded);
}

void GraphTakeover::TakeOverStore(ggml_tensor* node, int layer, char kind) {
  Node& entry = NextNode();
  const ggml_tensor* root = CacheTensorOf(node);
  // Nodes run in the order in which they are asked about, so a buffer is free again once its layer has attended.
  auto free = std::find(buffer_busy_.begin(), buffer_busy_.end(), false);
  if (free == buffer_busy_.end()) {
    row_buffers_.emplace_back();
    buffer_busy_.push_back(false);
    free = buffer_busy_.end() - 1;
  }
  *free = true;
  entry.buffer = static_cast<int>(free - buffer_busy_.begin());
  entry.cache_layer = layer;
  BufferOf(layer, kind) = entry.buffer;
  std::vector<ggml_fp16_t>& rows = row_buffers_[static_cast<size_t>(entry.buffer)];
  const size_t needed = static_cast<size_t>(root->ne[0] * node->src[0]->ne[1]);
  if (rows.size() < needed) rows.resize(needed);
  DropPages(root);
  if (!unwritten_tensors_.contains(root->name)) unwritten_tensors_.insert(root->name);
  Become(node, entry, OnStore);
}

void GraphTakeover::OnStore(ggml_tensor* node, int ith, int nth, void* user_data) {
  const OwnCode own(true);
  const Node& entry = *static_cast<const Node*>(user_data);
  const ggml_tensor* rows = node->src[0];
  ggml_fp16_t* to = entry.owner->row_buffers_[static_cast<size_t>(entry.buffer)].data();
  for (int64_t t = ith; t < rows->ne[1]; t += nth) {
    const auto* from =
        reinterpret_cast<const float*>(static_cast<const char*>(rows->data) + static_cast<size_t>(t) * rows->nb[1]);
    ggml_cpu_fp32_to_fp16(from, to + t * rows->ne[0], rows->ne[0]);
  }
}

int GraphTakeover::ReleaseBuffer(int layer, char kind) {
  const int buffer = BufferOf(layer, kind);
  if (buffer >= 0) buffer_busy_[static_cast<size_t>(buffer)] = false;
  return buffer;
}

void GraphTakeover::TakeOverAttention(ggml_tensor* node) {
  NoteMemory(node);
  Node& entry = NextNode();
  float params[3];  // scale, ALiBi bias, soft-cap
  std::memcpy(params, node->op_params, sizeof params);
  const int own_layer = CacheLayerOf(CacheTensorOf(node->src[1])->name);
  entry.cache_layer = cache_of_.empty() ? own_layer : cache_of_.at(static_cast<size_t>(own_layer));
  if (entry.cache_layer != own_layer) {  // its own rows are nobody's
    (void)ReleaseBuffer(own_layer, 'k');
    (void)ReleaseBuffer(own_layer, 'v');
  }
  entry.first = caches_read_.Insert(entry.cache_layer);
  // ggml stores the scale divided out of the cap: score = cap * tanh(scale / cap * q.k).
  entry.soft_cap = params[2];
  entry.scale = params[0];
  entry.alibi_slopes.clear();
  if (params[1] > 0) {
    const int num_heads = static_cast<int>(node->src[0]->ne[2]);
    const int power = 1 << static_cast<int>(std::floor(std::log2(num_heads)));
    const float m0 = std::pow(2.0f, -params[1] / static_cast<float>(power));
    const float m1 = std::pow(2.0f, -params[1] / 2.0f / static_cast<float>(power));
    for (int h = 0; h < num_heads; ++h) {
      entry.alibi_slopes.push_back(h < power ? std::pow(m0, static_cast<float>(h + 1))
                                             : std::pow(m1, static_cast<float>(2 * (h - power) + 1)));
    }
  }
  entry.key_buffer = entry.value_buffer = -1;
  if (entry.first) {
    const bool value_in_key = CacheTensorOf(node->src[1]) == CacheTensorOf(node->src[2]);
    entry.key_buffer = ReleaseBuffer(entry.cache_layer, 'k');
    entry.value_buffer = value_in_key ? entry.key_buffer : ReleaseBuffer(entry.cache_layer, 'v');
  }
  Become(node, entry, OnAttention);
}

void GraphTakeover::OnAttention(ggml_tensor* node, int ith, int nth, void* user_data) {
  const OwnCode own(true);
  const Node& entry = *static_cast<const Node*>(user_data);
  GraphTakeover& self = *entry.owner;
  const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *sinks = node->src[4];
  const AttentionCall call{
      .cache_layer = entry.cache_layer,
      .first = entry.first,
      .num_tokens = static_cast<int>(q->ne[1]),
      .queries = static_cast<const float*>(q->data),
      .query_token_stride = q->nb[1] / sizeof(float),
      .query_head_stride = q->nb[2] / sizeof(float),
      .keys = RowsBehind(k, self.row_buffers_, entry.key_buffer),
      .key_token_stride = k->nb[1] / sizeof(uint16_t),
      .key_head_stride = k->nb[2] / sizeof(uint16_t),
      .values = RowsBehind(v, self.row_buffers_, entry.value_buffer),
      .value_token_stride = v->nb[1] / sizeof(uint16_t),
      .value_head_stride = v->nb[2] / sizeof(uint16_t),
      .output = static_cast<float*>(node->data),
      .output_token_stride = node->nb[2] / sizeof(float),
      .output_head_stride = node->nb[1] / sizeof(float),
      .sinks = sinks == nullptr ? nullptr : static_cast<const float*>(sinks->data),
      .alibi_slopes = entry.alibi_slopes.empty() ? nullptr : entry.alibi_slopes.data(),
      .scale = entry.scale,
      .soft_cap = entry.soft_cap,
  };
  self.sink_->OnAttention(call, Team{.ith = ith, .nth = nth, .barrier = &self.barrier_});
}

}  // namespace pith
