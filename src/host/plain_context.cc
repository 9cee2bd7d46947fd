#include <algorithm>
#include <string>

#include "base/check.h"
#include "host/llama_util.h"
#include "host/model.h"

namespace pith {

Status ApplyAdapters(const HostModel& model, llama_context* context) {
  if (model.adapters().empty()) return {};
  std::vector<llama_adapter_lora*> adapters(model.adapters().begin(), model.adapters().end());
  std::vector<float> scales(adapters.size(), 1.0f);
  if (llama_set_adapters_lora(context, adapters.data(), adapters.size(), scales.data()) != 0) {
    return Unsupported("libllama cannot apply the LoRA adapters to this model");
  }
  return {};
}

Status CheckPosition(const ModelInfo& info, int32_t position) {
  if (info.max_positions == 0 || position < info.max_positions) return {};
  return InvalidArgument("the positions of " + info.path + " end after " + std::to_string(info.max_positions) + " tokens");
}

struct PlainContext::Private {
  LlamaContextPtr context;
  std::unique_ptr<Batch> batch;
  int block_tokens = 0;
  int num_vocab = 0;
  ModelInfo info;
  std::vector<int32_t> next_position;
};

PlainContext::~PlainContext() = default;

Result<std::unique_ptr<PlainContext>> PlainContext::Create(const HostModel& model, int num_ctx, int block_tokens,
                                                           bool flash_attention, int num_threads, int max_sequences) {
  std::unique_ptr<PlainContext> plain(new PlainContext);
  plain->private_ = std::make_unique<Private>();
  Private& self = *plain->private_;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>(num_ctx);
  params.n_batch = params.n_ubatch = static_cast<uint32_t>(block_tokens);
  params.n_seq_max = static_cast<uint32_t>(max_sequences);
  params.kv_unified = true;
  params.n_threads = params.n_threads_batch = num_threads;
  params.flash_attn_type = flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.no_perf = true;
  self.context.reset(llama_init_from_model(model.handle(), params));
  if (self.context == nullptr) return IoError("libllama cannot make a context of " + std::to_string(num_ctx) + " tokens");
  PITH_RETURN_IF_ERROR(ApplyAdapters(model, self.context.get()));
  self.batch = std::make_unique<Batch>(block_tokens);
  self.block_tokens = block_tokens;
  self.num_vocab = model.info().num_vocab;
  self.info = model.info();
  self.next_position.assign(static_cast<size_t>(max_sequences), 0);
  return plain;
}

Status PlainContext::Decode(int sequence, std::span<const int32_t> tokens, std::vector<float>* all_logits) {
  Private& self = *private_;
  int32_t& position = self.next_position.at(static_cast<size_t>(sequence));
  PITH_RETURN_IF_ERROR(CheckPosition(self.info, position + static_cast<int32_t>(tokens.size()) - 1));
  for (size_t at = 0; at < tokens.size();) {
    const size_t count = std::min(tokens.size() - at, static_cast<size_t>(self.block_tokens));
    self.batch->Clear();
    for (size_t i = 0; i < count; ++i) {
      self.batch->Add(tokens[at + i], position++, sequence, all_logits != nullptr || at + i + 1 == tokens.size());
    }
    at += count;
    if (llama_decode(self.context.get(), self.batch->get()) != 0) return IoError("libllama could not decode a block");
    if (all_logits == nullptr) continue;
    for (size_t i = 0; i < count; ++i) {
      const float* row = llama_get_logits_ith(self.context.get(), static_cast<int32_t>(i));
      all_logits->insert(all_logits->end(), row, row + self.num_vocab);
    }
  }
  return {};
}

std::span<const float> PlainContext::logits() const {
  const float* row = llama_get_logits_ith(private_->context.get(), -1);
  PITH_CHECK(row != nullptr);
  return {row, static_cast<size_t>(private_->num_vocab)};
}

void PlainContext::Clear() {
  llama_memory_clear(llama_get_memory(private_->context.get()), false);
  std::fill(private_->next_position.begin(), private_->next_position.end(), 0);
}

}  // namespace pith
