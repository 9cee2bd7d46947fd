// A libllama context whose attention is somebody else's.
//
// libllama builds and runs the graph of the model; every attention node in it is
// turned, before it runs, into a custom op that calls an AttentionSink on ggml's
// own threads. libllama's KV memory holds one block only and is emptied after
// each, while positions go on (docs/architecture.md).
#ifndef PITH_HOST_CONTEXT_H_
#define PITH_HOST_CONTEXT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/team.h"
#include "host/model.h"
#include "pith/types.h"

namespace pith {

// One attention node of one block, as libllama's graph has it. T tokens.
struct AttentionCall {
  int cache_layer = 0;  // whose cache is read; layers may share one
  bool first = true;    // the first node of this block that reads cache_layer: append the block's entries now
  int num_tokens = 0;   // T
  const float* queries = nullptr;  // (t, h) at t*query_token_stride + h*query_head_stride, in floats
  size_t query_token_stride = 0;
  size_t query_head_stride = 0;
  const uint16_t* keys = nullptr;    // f16 rows of the block, (t, kv head), strides in halves
  size_t key_token_stride = 0;
  size_t key_head_stride = 0;
  const uint16_t* values = nullptr;
  size_t value_token_stride = 0;
  size_t value_head_stride = 0;
  float* output = nullptr;           // (t, h), strides in floats
  size_t output_token_stride = 0;
  size_t output_head_stride = 0;
  const float* sinks = nullptr;      // [H] or null
  const float* alibi_slopes = nullptr;  // [H] or null
  float scale = 1;
  float soft_cap = 0;
};

class AttentionSink {
 public:
  virtual ~AttentionSink() = default;
  // Called by every member of ggml's team, for each attention node in graph order.
  virtual void OnAttention(const AttentionCall& call, const Team& team) = 0;
  // Asked between nodes of a block's graph, on the first thread, others being at the node before: true ends the block
  // with kCancelled.
  virtual bool ShouldStop() { return false; }
};

// Token rows of one block, in the order in which the graph sees them.
struct BlockRows {
  std::span<const int32_t> tokens;
  std::span<const int32_t> positions;
  std::span<const int32_t> slots;         // sequence slot of each row; rows of a slot stand together
  std::span<const uint8_t> wants_logits;  // 1: keep this row's logits
  bool wants_hidden = false;              // and what the output layer got for it; libllama then keeps every row's
};

class HostContext {
 public:
  // block_tokens: rows per block at most. num_slots: sequences alive at once.
  static Result<std::unique_ptr<HostContext>> Create(const HostModel& model, int block_tokens, int num_slots,
                                                     int num_threads, AttentionSink* sink);
  ~HostContext();

  // Runs one block. Rows of different slots may be mixed only if !model.info().hybrid.
  Status Decode(const BlockRows& rows);
  // Logits of the i-th row that wanted them, [vocab]. Valid until the next Decode.
  std::span<const float> logits(int output) const;
  // The same of the hidden state behind the last norm, [hidden_dim], of a block that wanted it;
  // empty where the architecture's graph has none.
  std::span<const float> hidden(int output) const;

  // Recurrent state (nothing for attention-only models).
  void CopySlot(int from, int to);
  void ClearSlot(int slot);

  // The slot's recurrent state after `num_tokens` tokens as bytes (none for attention-only models), and back.
  // kUnsupported: libllama writes it in a form that pith does not know. kCorrupt: no such bytes.
  Result<std::vector<std::byte>> SaveSlot(int slot, int32_t num_tokens) const;
  Status RestoreSlot(int slot, int32_t num_tokens, std::span<const std::byte> state);

  // Bytes that rows of a block take on their way into the cache, libllama's own KV memory included where it is written,
  // and of recurrent state: as the blocks so far had them.
  size_t block_bytes() const;
  size_t recurrent_bytes() const;

  // Runs fn once on each of the context's threads, between blocks.
  void RunOnTeam(const std::function<void(const Team&)>& fn);
  int num_threads() const;
  // Between blocks, for all that follows.
  void SetThreads(int num_threads);

  // True: attention is left to libllama, which sees one block only (the control of parity tests).
  void IgnoreHistory(bool on);

 private:
  HostContext() = default;
  struct Private;
  std::unique_ptr<Private> private_;
};

}  // namespace pith

#endif  // PITH_HOST_CONTEXT_H_
