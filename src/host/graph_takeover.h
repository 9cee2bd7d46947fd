// How libllama's graph comes to compute with pith's attention, cache and products, without a copy of libllama.
//
// libllama builds a graph for each block of rows and hands it to ggml's scheduler, which offers an evaluation callback:
// before a node is computed, the scheduler *asks* whether the caller wants to see its result. A yes would cut the graph
// there. pith uses the question alone. By then the graph is planned, its memory is laid out and the node's sources,
// output and place in the schedule are fixed; what the node computes is decided by two fields, `op` and `op_params`. So
// OnNode() writes GGML_OP_CUSTOM and a function of pith's into them, and answers no. ggml then runs that function in
// the node's place, on all of its threads, and neither the scheduler nor libllama learns of it. Three kinds of nodes
// become something else:
//
//   store      SET_ROWS of a block's keys or values into a cache tensor. The rows go, as f16, into a buffer of our own
//              (OnStore). libllama's cache is never written; its pages are given back to the system.
//   attention  FLASH_ATTN_EXT over a cache. It keeps its sources: q, k and v after RoPE, sinks, and with its parameters
//              scale, ALiBi and soft-cap. OnAttention() describes them to the AttentionSink, with the buffers in place
//              of the cache, and the sink writes the node's output.
//   product    MUL_MAT with quantised weights that row_product.h or block_product.h knows how to do faster.
//
// What this rests on:
//
//  - Nodes are asked about in the order in which they run, once a block. Buffers are dealt out on that: a layer's is
//    taken when its store is asked about and free again when its attention is, so that one or two serve all layers.
//  - The same graph may be asked about again for the next block (libllama reuses graphs), or be another one. Entries of
//    nodes are therefore kept by their number in the block, and only what may have changed is written anew; after the
//    first blocks nothing is allocated.
//  - Several layers may read one cache. The first of them brings the block's rows (AttentionCall::first).
//  - A graph may attend in a form that is not known here (another build of libllama, a size on which the form depends).
//    complete() compares the caches that were read with those that the model has: a block in which one is missing is
//    refused, instead of being wrong.
//  - Where rows are stored in another form than plain ones (StoresPlainRows), libllama's own store stays, its cache
//    holds the block, and is charged to the budget: block_bytes().
#ifndef PITH_HOST_GRAPH_TAKEOVER_H_
#define PITH_HOST_GRAPH_TAKEOVER_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/team.h"
#include "ggml.h"
#include "host/block_product.h"
#include "host/context.h"
#include "host/row_product.h"

namespace pith {

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

class GraphTakeover {
 public:
  GraphTakeover(const ModelInfo& info, bool own_products, int num_threads, AttentionSink* sink);
  GraphTakeover(const GraphTakeover&) = delete;

  // The evaluation callback of a context, with a GraphTakeover as user_data.
  static bool OnNode(ggml_tensor* node, bool ask, void* user_data);

  // Around each block.
  void BeginBlock() { next_node_ = next_product_ = 0; }
  // Every cache of the model was attended to by us, or by nobody (IgnoreHistory).
  bool complete() const { return ignore_history_ || caches_read_ == caches_expected_; }

  // Between blocks.
  void SetThreads(int num_threads);
  void IgnoreHistory(bool on) { ignore_history_ = on; }

  // As HostContext has them.
  size_t block_bytes() const;
  size_t recurrent_bytes() const;

  // Of the team that runs the graph.
  Barrier& barrier() { return barrier_; }

 private:
  // What a node of the graph keeps when it becomes a custom op: one that stores a block's rows or
  // one that attends.
  struct Node {
    GraphTakeover* owner = nullptr;
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
    GraphTakeover* owner = nullptr;
    BlockProduct of_block;
    RowProduct of_rows;
    std::vector<std::byte> block_op_params, rows_op_params;
  };
  // What a thread needs for products.
  struct ProductScratch {
    std::vector<float> unpacked;
    kernels::RoundedRows rounded;
  };

  static void OnAttention(ggml_tensor* node, int ith, int nth, void* user_data);
  static void OnStore(ggml_tensor* node, int ith, int nth, void* user_data);
  static void OnBlockProduct(ggml_tensor* node, int ith, int nth, void* user_data);
  static void OnRowProduct(ggml_tensor* node, int ith, int nth, void* user_data);
  Node& NextNode();
  static void Become(ggml_tensor* node, Node& entry, ggml_custom_op_t function);
  static void Become(ggml_tensor* node, std::span<const std::byte> op_params);
  void TakeOverAttention(ggml_tensor* node);
  void TakeOverStore(ggml_tensor* node, int layer, char kind);
  ProductNode& NextProduct();
  int& BufferOf(int layer, char kind) { return buffer_of_[kind == 'v'].at(static_cast<size_t>(layer)); }
  int ReleaseBuffer(int layer, char kind);
  void DropPages(const ggml_tensor* cache);
  void NoteMemory(const ggml_tensor* node);

  AttentionSink* const sink_;
  const bool own_products_;
  const std::vector<int> cache_of_;  // ModelInfo::cache_of
  bool ignore_history_ = false;
  Barrier barrier_;

  std::vector<std::unique_ptr<Node>> nodes_;  // in graph order
  size_t next_node_ = 0;
  std::vector<std::unique_ptr<ProductNode>> products_;  // in graph order
  size_t next_product_ = 0;
  std::vector<ProductScratch> product_scratch_;  // of each thread
  LayerSet caches_read_;
  LayerSet caches_expected_;  // what each block must read: graphs may depend on sizes
  // Rows of the block in f16, between the node that would store them and the layer's attention.
  std::vector<std::vector<ggml_fp16_t>> row_buffers_;
  std::vector<bool> buffer_busy_;
  std::vector<int> buffer_of_[2];        // of keys and of values: cache layer -> row buffer, -1: none
  std::set<const void*> buffers_dropped_;  // libllama's cache buffers whose pages were given back
  std::map<std::string, size_t> block_tensors_;  // name -> bytes
  std::map<std::string, size_t> recurrent_tensors_;
  std::set<std::string> unwritten_tensors_;  // of block_tensors_: their rows go to row_buffers_
};

}  // namespace pith

#endif  // PITH_HOST_GRAPH_TAKEOVER_H_
