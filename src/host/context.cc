#include "host/context.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/own_code.h"
#include "ggml-cpu.h"
#include "host/graph_takeover.h"
#include "host/llama_util.h"
#include "host/slot_state.h"

namespace pith {

struct HostContext::Private {
  LlamaContextPtr context;
  llama_memory_t memory = nullptr;
  std::unique_ptr<GraphTakeover> takeover;
  bool hybrid = false;
  bool keeps_hidden = false;  // of all rows
  int num_threads = 1;
  int num_vocab = 0;
  ModelInfo info;
  std::unique_ptr<Batch> batch;
  std::vector<int> output_rows;
  std::vector<llama_seq_id> sequence_of_slot;
  llama_seq_id spare = 0;
  int slot_of_block = 0;

  // A one-node graph that runs a function on the same threads.
  std::vector<std::byte> graph_memory;
  ggml_cgraph* team_graph = nullptr;
  const std::function<void(const Team&)>* team_function = nullptr;

  static void OnTeam(ggml_tensor* node, int ith, int nth, void* user_data);
  bool BuildTeamGraph();
  void EmptyBlock();
};

void HostContext::Private::OnTeam(ggml_tensor*, int ith, int nth, void* user_data) {
  const OwnCode own(true);
  Private& self = *static_cast<Private*>(user_data);
  (*self.team_function)(Team{.ith = ith, .nth = nth, .barrier = &self.takeover->barrier()});
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
  self.takeover = std::make_unique<GraphTakeover>(model.info(), model.own_products(), num_threads, sink);
  self.hybrid = model.info().hybrid;
  self.num_threads = num_threads;
  self.num_vocab = model.info().num_vocab;
  self.info = model.info();

  llama_context_params params = ContextParams(model.info());
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
  params.cb_eval = GraphTakeover::OnNode;
  params.cb_eval_user_data = self.takeover.get();
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
  self.takeover->BeginBlock();
  const int status = [&] {
    const OwnCode own(false);
    if (std::exchange(self.keeps_hidden, rows.wants_hidden) != rows.wants_hidden) {
      llama_set_embeddings(self.context.get(), rows.wants_hidden);
    }
    return llama_decode(self.context.get(), self.batch->get());
  }();
  const bool complete = self.takeover->complete();
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
  if (row == nullptr) return {};
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

size_t HostContext::block_bytes() const { return private_->takeover->block_bytes(); }

size_t HostContext::recurrent_bytes() const { return private_->takeover->recurrent_bytes(); }

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
  private_->takeover->SetThreads(num_threads);
  llama_set_n_threads(private_->context.get(), num_threads, num_threads);
}

void HostContext::IgnoreHistory(bool on) { private_->takeover->IgnoreHistory(on); }

}  // namespace pith
