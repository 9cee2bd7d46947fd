#include "host/context.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/own_code.h"
#include "ggml-cpu.h"
#include "host/block_product.h"
#include "host/llama_util.h"
#include "host/row_product.h"
#include "host/slot_state.h"

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

// A set of cache tensors of one graph: few, asked for in every block, so a sorted or hashed set would only allocate.
class LayerSet {
 public:
  explicit LayerSet(size_t num_layers = 0) : has_(num_layers, 0) {}
  void Clear() { std::fill(has_.begin(), has_.end(), uint8_t{0}); }
  // True: it was not there.
  bool Insert(int layer) { return std::exchange(has_.at(static_cast<size_t>(layer)), uint8_t{1}) == 0; }
  bool operator==(const LayerSet& other) const { return has_ == other.has_; }

 private:
  std::vector<uint8_t> has_;
};

}  // namespace

struct HostContext::Private {
  // What a node of the graph keeps when it becomes a custom op: one that stores a block's rows or
  // one that attends.
  struct Node {
    Private* owner = nullptr;
    int cache_layer = 0;
    bool first = true;
    int key_buffer = -1;    // attention: row_buffers that hold the block's rows, -1: libllama's cache does
    int value_buffer = -1;
    int buffer = -1;        // stores: where to
    float scale = 1;
    float soft_cap = 0;
    std::vector<float> alibi_slopes;
    std::vector<std::byte> op_params;  // of the function below, made once
    ggml_custom_op_t function = nullptr;
  };
  // A product with weights, of a prompt's block or of a few rows.
  struct ProductNode {
    Private* owner = nullptr;
    BlockProduct of_block;
    RowProduct of_rows;
    std::vector<std::byte> block_op_params, rows_op_params;
  };
  // What a thread needs for products.
  struct ProductScratch {
    std::vector<float> unpacked;
    kernels::RoundedRows rounded;
  };

  LlamaContextPtr context;
  llama_memory_t memory = nullptr;
  AttentionSink* sink = nullptr;
  bool hybrid = false;
  bool ignore_history = false;
  bool keeps_hidden = false;  // of all rows
  int num_threads = 1;
  int num_vocab = 0;
  ModelInfo info;
  std::unique_ptr<Batch> batch;
  std::vector<int> output_rows;
  std::vector<llama_seq_id> sequence_of_slot;
  llama_seq_id spare = 0;
  int slot_of_block = 0;
  Barrier barrier;

  std::vector<std::unique_ptr<Node>> nodes;  // in graph order
  size_t next_node = 0;
  bool own_products = false;
  std::vector<std::unique_ptr<ProductNode>> products;  // in graph order
  size_t next_product = 0;
  std::vector<ProductScratch> product_scratch;  // of each thread
  LayerSet caches_read;
  LayerSet caches_expected;  // what each block must read: graphs may depend on sizes
  // Rows of the block in f16, between the node that would store them and the layer's attention.
  std::vector<std::vector<ggml_fp16_t>> row_buffers;
  std::vector<bool> buffer_busy;
  std::vector<int> buffer_of[2];  // of keys and of values: cache layer -> row buffer, -1: none
  std::set<const void*> buffers_dropped;          // libllama's cache buffers whose pages were given back
  std::map<std::string, size_t> block_tensors;  // name -> bytes
  std::map<std::string, size_t> recurrent_tensors;
  std::set<std::string> unwritten_tensors;  // of block_tensors: their rows go to row_buffers

  // A one-node graph that runs a function on the same threads.
  std::vector<std::byte> graph_memory;
  ggml_cgraph* team_graph = nullptr;
  const std::function<void(const Team&)>* team_function = nullptr;

  static bool OnNode(ggml_tensor* node, bool ask, void* user_data);
  static void OnAttention(ggml_tensor* node, int ith, int nth, void* user_data);
  static void OnStore(ggml_tensor* node, int ith, int nth, void* user_data);
  static void OnBlockProduct(ggml_tensor* node, int ith, int nth, void* user_data);
  static void OnRowProduct(ggml_tensor* node, int ith, int nth, void* user_data);
  static void OnTeam(ggml_tensor* node, int ith, int nth, void* user_data);
  Node& NextNode();
  static void Become(ggml_tensor* node, Node& entry, ggml_custom_op_t function);
  static void Become(ggml_tensor* node, std::span<const std::byte> op_params);
  void TakeOverAttention(ggml_tensor* node);
  ProductNode& NextProduct();
  void TakeOverStore(ggml_tensor* node, int layer, char kind);
  int& BufferOf(int layer, char kind) { return buffer_of[kind == 'v'].at(static_cast<size_t>(layer)); }
  int ReleaseBuffer(int layer, char kind);
  void DropPages(const ggml_tensor* cache);
  void NoteMemory(const ggml_tensor* node);
  bool BuildTeamGraph();
  void EmptyBlock();
};

void HostContext::Private::NoteMemory(const ggml_tensor* node) {
  for (const ggml_tensor* source : node->src) {
    if (source == nullptr) continue;
    const ggml_tensor* root = CacheTensorOf(source);
    if (std::strncmp(root->name, "cache_", 6) != 0) continue;
    const bool recurrent = root->name[6] == 'r' || root->name[6] == 's';
    (recurrent ? recurrent_tensors : block_tensors)[root->name] = ggml_nbytes(root);
  }
}

// libllama asks about each node before it runs it: the moment to change it.
bool HostContext::Private::OnNode(ggml_tensor* node, bool ask, void* user_data) {
  Private& self = *static_cast<Private*>(user_data);
  if (!ask) return true;
  const OwnCode own(true);
  if (self.next_node == 0) self.NoteMemory(node);
  if (self.ignore_history) return false;
  for (const char kind : {'k', 'v'}) {
    const int layer = CacheLayerWritten(node, kind);
    if (layer >= 0 && StoresPlainRows(node)) {
      self.TakeOverStore(node, layer, kind);
      return false;
    }
  }
  if (IsCachedAttention(node)) {
    self.TakeOverAttention(node);
  } else if (self.own_products && RowProduct::Suits(node)) {
    Become(node, self.NextProduct().rows_op_params);
  } else if (self.own_products && BlockProduct::Suits(node)) {
    Become(node, self.NextProduct().block_op_params);
  }
  return false;
}

HostContext::Private::Node& HostContext::Private::NextNode() {
  if (next_node == 0) {
    caches_read.Clear();
    for (std::vector<int>& buffers : buffer_of) std::fill(buffers.begin(), buffers.end(), -1);
    buffer_busy.assign(buffer_busy.size(), false);
  }
  if (next_node == nodes.size()) nodes.push_back(std::make_unique<Node>());
  Node& entry = *nodes[next_node++];
  entry.owner = this;
  return entry;
}

// Only the op and its parameters change: sources, output and schedule stay.
void HostContext::Private::Become(ggml_tensor* node, std::span<const std::byte> op_params) {
  node->op = GGML_OP_CUSTOM;
  std::memcpy(node->op_params, op_params.data(), op_params.size());
}

void HostContext::Private::Become(ggml_tensor* node, Node& entry, ggml_custom_op_t function) {
  if (entry.function != function) {
    entry.op_params = CustomOpParams(function, &entry);
    entry.function = function;
  }
  Become(node, entry.op_params);
}

// libllama's cache is never written, so its memory need not be there.
void HostContext::Private::DropPages(const ggml_tensor* cache) {
  if (cache->buffer == nullptr || !buffers_dropped.insert(cache->buffer).second) return;
  if (!ggml_backend_buffer_is_host(cache->buffer)) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto base = reinterpret_cast<uintptr_t>(ggml_backend_buffer_get_base(cache->buffer));
  const uintptr_t from = (base + page - 1) / page * page;
  const uintptr_t to = (base + ggml_backend_buffer_get_size(cache->buffer)) / page * page;
  if (to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
}

HostContext::Private::ProductNode& HostContext::Private::NextProduct() {
  if (next_product == products.size()) {
    ProductNode& entry = *products.emplace_back(std::make_unique<ProductNode>());
    entry.owner = this;
    entry.block_op_params = CustomOpParams(OnBlockProduct, &entry);
    entry.rows_op_params = CustomOpParams(OnRowProduct, &entry);
  }
  return *products[next_product++];
}

void HostContext::Private::OnBlockProduct(ggml_tensor* node, int ith, int nth, void* user_data) {
  const OwnCode own(true);
  ProductNode& entry = *static_cast<ProductNode*>(user_data);
  entry.of_block.Run(node, nth, entry.owner->product_scratch[static_cast<size_t>(ith)].unpacked);
}

void HostContext::Private::OnRowProduct(ggml_tensor* node, int ith, int nth, void* user_data) {
  const OwnCode own(true);
  ProductNode& entry = *static_cast<ProductNode*>(user_data);
  entry.of_rows.Run(node, nth, entry.owner->product_scratch[static_cast<size_t>(ith)].rounded);
}

void HostContext::Private::TakeOverStore(ggml_tensor* node, int layer, char kind) {
  Node& entry = NextNode();
  const ggml_tensor* root = CacheTensorOf(node);
  // Nodes run in the order in which they are asked about, so a buffer is free again once its layer has attended.
  auto free = std::find(buffer_busy.begin(), buffer_busy.end(), false);
  if (free == buffer_busy.end()) {
    row_buffers.emplace_back();
    buffer_busy.push_back(false);
    free = buffer_busy.end() - 1;
  }
  *free = true;
  entry.buffer = static_cast<int>(free - buffer_busy.begin());
  entry.cache_layer = layer;
  BufferOf(layer, kind) = entry.buffer;
  std::vector<ggml_fp16_t>& rows = row_buffers[static_cast<size_t>(entry.buffer)];
  const size_t needed = static_cast<size_t>(root->ne[0] * node->src[0]->ne[1]);
  if (rows.size() < needed) rows.resize(needed);
  DropPages(root);
  if (!unwritten_tensors.contains(root->name)) unwritten_tensors.insert(root->name);
  Become(node, entry, OnStore);
}

void HostContext::Private::OnStore(ggml_tensor* node, int ith, int nth, void* user_data) {
  const OwnCode own(true);
  const Node& entry = *static_cast<const Node*>(user_data);
  const ggml_tensor* rows = node->src[0];
  ggml_fp16_t* to = entry.owner->row_buffers[static_cast<size_t>(entry.buffer)].data();
  for (int64_t t = ith; t < rows->ne[1]; t += nth) {
    const auto* from =
        reinterpret_cast<const float*>(static_cast<const char*>(rows->data) + static_cast<size_t>(t) * rows->nb[1]);
    ggml_cpu_fp32_to_fp16(from, to + t * rows->ne[0], rows->ne[0]);
  }
}

int HostContext::Private::ReleaseBuffer(int layer, char kind) {
  const int buffer = BufferOf(layer, kind);
  if (buffer >= 0) buffer_busy[static_cast<size_t>(buffer)] = false;
  return buffer;
}

void HostContext::Private::TakeOverAttention(ggml_tensor* node) {
  NoteMemory(node);
  Node& entry = NextNode();
  float params[3];  // scale, ALiBi bias, soft-cap
  std::memcpy(params, node->op_params, sizeof params);
  entry.cache_layer = CacheLayerOf(CacheTensorOf(node->src[1])->name);
  entry.first = caches_read.Insert(entry.cache_layer);
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

namespace {

// Where a view of libllama's cache lies in the buffer that holds its rows instead.
const uint16_t* RowsBehind(const ggml_tensor* view, const std::vector<std::vector<ggml_fp16_t>>& buffers, int buffer) {
  if (buffer < 0) return static_cast<const uint16_t*>(view->data);
  const auto offset = static_cast<const char*>(view->data) - static_cast<const char*>(CacheTensorOf(view)->data);
  return buffers[static_cast<size_t>(buffer)].data() + offset / static_cast<std::ptrdiff_t>(sizeof(ggml_fp16_t));
}

}  // namespace

void HostContext::Private::OnAttention(ggml_tensor* node, int ith, int nth, void* user_data) {
  const OwnCode own(true);
  const Node& entry = *static_cast<const Node*>(user_data);
  Private& self = *entry.owner;
  const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *sinks = node->src[4];
  const AttentionCall call{
      .cache_layer = entry.cache_layer,
      .first = entry.first,
      .num_tokens = static_cast<int>(q->ne[1]),
      .queries = static_cast<const float*>(q->data),
      .query_token_stride = q->nb[1] / sizeof(float),
      .query_head_stride = q->nb[2] / sizeof(float),
      .keys = RowsBehind(k, self.row_buffers, entry.key_buffer),
      .key_token_stride = k->nb[1] / sizeof(uint16_t),
      .key_head_stride = k->nb[2] / sizeof(uint16_t),
      .values = RowsBehind(v, self.row_buffers, entry.value_buffer),
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
  self.sink->OnAttention(call, Team{.ith = ith, .nth = nth, .barrier = &self.barrier});
}

void HostContext::Private::OnTeam(ggml_tensor*, int ith, int nth, void* user_data) {
  const OwnCode own(true);
  Private& self = *static_cast<Private*>(user_data);
  (*self.team_function)(Team{.ith = ith, .nth = nth, .barrier = &self.barrier});
}

bool HostContext::Private::BuildTeamGraph() {
  graph_memory.resize(ggml_graph_overhead() + ggml_tensor_overhead() * 4 + 1024);
  GgmlContextPtr ggml(
      ggml_init({.mem_size = graph_memory.size(), .mem_buffer = graph_memory.data(), .no_alloc = false}));
  if (ggml == nullptr) return false;
  ggml_tensor* node = ggml_custom_4d(ggml.get(), GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, OnTeam, GGML_N_TASKS_MAX, this);
  team_graph = ggml_new_graph(ggml.get());
  ggml_build_forward_expand(team_graph, node);
  return true;
}

Result<std::unique_ptr<HostContext>> HostContext::Create(const HostModel& model, int block_tokens, int num_slots,
                                                         int num_threads, AttentionSink* sink) {
  std::unique_ptr<HostContext> host(new HostContext);
  host->private_ = std::make_unique<Private>();
  Private& self = *host->private_;
  self.sink = sink;
  self.own_products = model.own_products();
  self.hybrid = model.info().hybrid;
  self.num_threads = num_threads;
  self.product_scratch.resize(static_cast<size_t>(num_threads));
  self.num_vocab = model.info().num_vocab;
  self.info = model.info();
  const size_t num_layers = model.info().layers.size();
  self.caches_read = self.caches_expected = LayerSet(num_layers);
  for (std::vector<int>& buffers : self.buffer_of) buffers.assign(num_layers, -1);
  for (size_t layer = 0; layer < num_layers; ++layer) {
    if (model.info().layers[layer].kind != LayerKind::kNone) self.caches_expected.Insert(static_cast<int>(layer));
  }

  llama_context_params params = llama_context_default_params();
  params.n_ctx = params.n_batch = params.n_ubatch = static_cast<uint32_t>(block_tokens);
  // Recurrent states are libllama's, one for each slot and one through which they are moved. Otherwise only the rows of
  // a block are told apart. libllama holds logits of as many rows as it has sequences.
  const int block_sequences = std::min(num_slots, block_tokens);
  params.n_seq_max = static_cast<uint32_t>(self.hybrid ? num_slots + 1 : block_sequences);
  params.n_outputs_max = std::max(params.n_batch, params.n_seq_max);
  params.kv_unified = true;
  params.pooling_type = LLAMA_POOLING_TYPE_NONE;
  params.n_threads = params.n_threads_batch = num_threads;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.type_k = params.type_v = GGML_TYPE_F16;
  params.offload_kqv = false;  // attention and its rows are ours, on the CPU, wherever the weights lie
  params.no_perf = true;
  params.cb_eval = Private::OnNode;
  params.cb_eval_user_data = host->private_.get();
  params.abort_callback = [](void* user_data) { return static_cast<AttentionSink*>(user_data)->ShouldStop(); };
  params.abort_callback_data = sink;
  self.context.reset(llama_init_from_model(model.handle(), params));
  if (self.context == nullptr) return IoError("libllama cannot make a context for " + model.info().path);
  PITH_RETURN_IF_ERROR(ApplyAdapters(model, self.context.get()));
  self.memory = llama_get_memory(self.context.get());
  self.batch = std::make_unique<Batch>(block_tokens);
  for (int slot = 0; slot < num_slots; ++slot) self.sequence_of_slot.push_back(slot);
  self.spare = num_slots;
  if (!self.BuildTeamGraph()) return IoError("ggml cannot make a graph");
  return host;
}

HostContext::~HostContext() = default;

void HostContext::Private::EmptyBlock() {
  const OwnCode own(false);
  if (!hybrid) {
    llama_memory_clear(memory, false);
    return;
  }
  const llama_seq_id used = sequence_of_slot[static_cast<size_t>(slot_of_block)];
  llama_memory_seq_cp(memory, used, spare, kBeyond, kBeyond + 1);
  llama_memory_seq_rm(memory, used, -1, -1);
  sequence_of_slot[static_cast<size_t>(slot_of_block)] = spare;
  spare = used;
}

Status HostContext::Decode(const BlockRows& rows) {
  Private& self = *private_;
  self.batch->Clear();
  self.output_rows.clear();
  llama_seq_id sequence_in_block = 0;
  for (size_t i = 0; i < rows.tokens.size(); ++i) {
    PITH_RETURN_IF_ERROR(CheckPosition(self.info, rows.positions[i]));
    if (self.hybrid && rows.slots[i] != rows.slots[0]) {
      return InvalidArgument("a model with a recurrent state reads one sequence at a time");
    }
    if (i > 0 && rows.slots[i] != rows.slots[i - 1]) ++sequence_in_block;
    const llama_seq_id sequence =
        self.hybrid ? self.sequence_of_slot[static_cast<size_t>(rows.slots[i])] : sequence_in_block;
    self.batch->Add(rows.tokens[i], rows.positions[i], sequence, rows.wants_logits[i] != 0);
    if (rows.wants_logits[i] != 0) self.output_rows.push_back(static_cast<int>(i));
  }
  self.slot_of_block = rows.slots[0];
  self.next_node = self.next_product = 0;
  const int status = [&] {
    const OwnCode own(false);
    if (std::exchange(self.keeps_hidden, rows.wants_hidden) != rows.wants_hidden) {
      llama_set_embeddings(self.context.get(), rows.wants_hidden);
    }
    return llama_decode(self.context.get(), self.batch->get());
  }();
  const bool complete = self.ignore_history || self.caches_read == self.caches_expected;
  self.EmptyBlock();
  if (status == 0 && !complete) {
    return Unsupported(
        "libllama's graph attends in another form in this block than when the model was loaded, which pith cannot take "
        "over");
  }
  constexpr int kAborted = 2;
  if (status == kAborted) return Cancelled("stopped in the middle of a step");
  if (status != 0) return IoError("libllama could not decode a block (status " + std::to_string(status) + ")");
  return {};
}

std::span<const float> HostContext::logits(int output) const {
  const OwnCode own(false);
  const float* row =
      llama_get_logits_ith(private_->context.get(), private_->output_rows.at(static_cast<size_t>(output)));
  PITH_CHECK(row != nullptr);
  return {row, static_cast<size_t>(private_->num_vocab)};
}

std::span<const float> HostContext::hidden(int output) const {
  const OwnCode own(false);
  const float* row =
      llama_get_embeddings_ith(private_->context.get(), private_->output_rows.at(static_cast<size_t>(output)));
  PITH_CHECK(row != nullptr);
  return {row, static_cast<size_t>(private_->info.hidden_dim)};
}

void HostContext::CopySlot(int from, int to) {
  Private& self = *private_;
  if (!self.hybrid) return;
  ClearSlot(to);
  llama_memory_seq_cp(self.memory, self.sequence_of_slot[static_cast<size_t>(from)],
                      self.sequence_of_slot[static_cast<size_t>(to)], kBeyond, kBeyond + 1);
}

void HostContext::ClearSlot(int slot) {
  Private& self = *private_;
  if (self.hybrid) llama_memory_seq_rm(self.memory, self.sequence_of_slot[static_cast<size_t>(slot)], -1, -1);
}

Result<std::vector<std::byte>> HostContext::SaveSlot(int slot, int32_t num_tokens) const {
  const Private& self = *private_;
  if (!self.hybrid || num_tokens == 0) return std::vector<std::byte>();
  const llama_seq_id sequence = self.sequence_of_slot[static_cast<size_t>(slot)];
  llama_context* context = self.context.get();
  std::vector<std::byte> state(llama_state_seq_get_size_ext(context, sequence, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY));
  const size_t written = llama_state_seq_get_data_ext(context, reinterpret_cast<uint8_t*>(state.data()), state.size(),
                                                      sequence, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
  if (written != state.size() || !CheckSlotState(state, num_tokens)) {
    return Unsupported("libllama writes the recurrent state of " + self.info.architecture +
                       " models in a form that pith does not know");
  }
  return state;
}

Status HostContext::RestoreSlot(int slot, int32_t num_tokens, std::span<const std::byte> state) {
  Private& self = *private_;
  if (state.empty() == (self.hybrid && num_tokens > 0))
    return Corrupt("its recurrent state is missing, or of no use to this model");
  if (state.empty()) return {};
  PITH_RETURN_IF_ERROR(CheckSlotState(state, num_tokens));
  const size_t read = llama_state_seq_set_data_ext(self.context.get(), reinterpret_cast<const uint8_t*>(state.data()),
                                                   state.size(), self.sequence_of_slot[static_cast<size_t>(slot)],
                                                   LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
  if (read != state.size()) return Corrupt("libllama cannot read its recurrent state");
  return {};
}

size_t HostContext::block_bytes() const {
  size_t bytes = 0;
  for (const auto& [name, size] : private_->block_tensors)
    bytes += private_->unwritten_tensors.contains(name) ? 0 : size;
  for (const std::vector<ggml_fp16_t>& rows : private_->row_buffers) bytes += rows.size() * sizeof(ggml_fp16_t);
  return bytes;
}

size_t HostContext::recurrent_bytes() const {
  size_t bytes = 0;
  for (const auto& [name, size] : private_->recurrent_tensors) bytes += size;
  return bytes;
}

void HostContext::RunOnTeam(const std::function<void(const Team&)>& fn) {
  Private& self = *private_;
  self.team_function = &fn;
  const OwnCode own(false);
  ggml_cplan plan = ggml_graph_plan(self.team_graph, self.num_threads, nullptr);
  PITH_CHECK(plan.work_size == 0);
  ggml_graph_compute(self.team_graph, &plan);
}

int HostContext::num_threads() const { return private_->num_threads; }

void HostContext::SetThreads(int num_threads) {
  if (num_threads == private_->num_threads) return;
  private_->num_threads = num_threads;
  std::vector<Private::ProductScratch>& scratch = private_->product_scratch;
  scratch.resize(std::max(scratch.size(), static_cast<size_t>(num_threads)));
  llama_set_n_threads(private_->context.get(), num_threads, num_threads);
}

void HostContext::IgnoreHistory(bool on) { private_->ignore_history = on; }

}  // namespace pith
