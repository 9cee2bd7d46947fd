#include "host/plain_context.h"

#include <algorithm>
#include <string>

#include "host/llama_util.h"
#include "host/model.h"

namespace pith {

llama_context_params ContextParams(const ModelInfo& info) {
  static_assert(static_cast<int>(RopeScaling::kOfFile) == LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED);
  static_assert(static_cast<int>(RopeScaling::kNone) == LLAMA_ROPE_SCALING_TYPE_NONE);
  static_assert(static_cast<int>(RopeScaling::kLinear) == LLAMA_ROPE_SCALING_TYPE_LINEAR);
  static_assert(static_cast<int>(RopeScaling::kYarn) == LLAMA_ROPE_SCALING_TYPE_YARN);
  const RopeOptions& rope = info.overrides.rope;
  llama_context_params params = llama_context_default_params();
  params.rope_scaling_type = static_cast<llama_rope_scaling_type>(rope.scaling);
  params.rope_freq_base = rope.freq_base;
  params.rope_freq_scale = rope.freq_scale;
  params.yarn_orig_ctx = static_cast<uint32_t>(rope.yarn_orig_ctx);
  params.yarn_ext_factor = rope.yarn_ext_factor;
  params.yarn_attn_factor = rope.yarn_attn_factor;
  params.yarn_beta_slow = rope.yarn_beta_slow;
  params.yarn_beta_fast = rope.yarn_beta_fast;
  return params;
}

Status ApplyAdapters(const HostModel& model, llama_context* context) {
  if (model.adapters().empty()) return {};
  std::vector<llama_adapter_lora*> adapters(model.adapters().begin(), model.adapters().end());
  std::vector<float> scales(model.adapter_scales().begin(), model.adapter_scales().end());
  if (llama_set_adapters_lora(context, adapters.data(), adapters.size(), scales.data()) != 0) {
    return Unsupported("libllama cannot apply the LoRA adapters to this model");
  }
  return {};
}

Status CheckPosition(const ModelInfo& info, int32_t position) {
  if (info.max_positions == 0 || position < info.max_positions) return {};
  return InvalidArgument("the positions of " + info.path + " end after " + std::to_string(info.max_positions) +
                         " tokens");
}

namespace {

Status CheckSequence(int sequence, size_t num_sequences) {
  if (sequence >= 0 && static_cast<size_t>(sequence) < num_sequences) return {};
  return InvalidArgument("this context of libllama has no sequence " + std::to_string(sequence));
}

// GGML_TYPE_COUNT: no such type.
ggml_type CacheType(const std::string& name) {
  for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
    const char* known = ggml_type_name(static_cast<ggml_type>(type));
    if (known != nullptr && name == known) return static_cast<ggml_type>(type);
  }
  return GGML_TYPE_COUNT;
}

}  // namespace

int PlainContext::Private::Run(size_t rows) {
  ThreadGovernor& governor = rows <= static_cast<size_t>(options.max_sequences) ? *token_governor : *block_governor;
  StepClock& clock = SystemStepClock();
  llama_set_n_threads(context.get(), governor.threads(), governor.threads());
  const double wall = clock.Wall(), cpu = clock.Cpu();
  const int code = llama_decode(context.get(), batch->get());
  governor.Step(clock.Wall() - wall, clock.Cpu() - cpu, WorkOf(rows));
  return code;
}

PlainContext::~PlainContext() = default;

Result<std::unique_ptr<PlainContext>> PlainContext::Create(const HostModel& model, const PlainOptions& options) {
  std::unique_ptr<PlainContext> plain(new PlainContext);
  plain->private_ = std::make_unique<Private>();
  Private& self = *plain->private_;
  self.options = options;
  self.type = CacheType(options.cache_type);
  if (self.type == GGML_TYPE_COUNT) return InvalidArgument("libllama has no cache type " + options.cache_type);
  const bool streams = options.separate_streams && options.max_sequences > 1;
  llama_context_params params = ContextParams(model.info());
  params.n_ctx = static_cast<uint32_t>(options.num_ctx) * static_cast<uint32_t>(streams ? options.max_sequences : 1);
  params.n_batch = params.n_ubatch = static_cast<uint32_t>(options.block_tokens);
  // The spare sequence is the one through which FillForBenchmark() hands cells over.
  params.n_seq_max = static_cast<uint32_t>(options.max_sequences) + (options.for_benchmark && !streams ? 1 : 0);
  params.kv_unified = !streams;
  params.n_threads = params.n_threads_batch = options.num_threads;
  params.flash_attn_type = options.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.type_k = params.type_v = self.type;
  params.no_perf = true;
  self.context.reset(llama_init_from_model(model.handle(), params));
  if (self.context == nullptr) {
    return IoError("libllama cannot make a context of " + std::to_string(params.n_ctx) + " tokens");
  }
  PITH_RETURN_IF_ERROR(ApplyAdapters(model, self.context.get()));
  self.batch = std::make_unique<Batch>(std::max(options.block_tokens, options.max_sequences));
  self.info = model.info();
  const int least = options.adapt_threads ? 1 : options.num_threads;
  self.token_governor.emplace(options.num_threads, least, kTokenPace);
  self.block_governor.emplace(options.num_threads, least, kBlockPace);
  self.next_position.assign(static_cast<size_t>(options.max_sequences), 0);
  return plain;
}

Status PlainContext::Decode(int sequence, std::span<const int32_t> tokens, std::vector<float>* all_logits) {
  Private& self = *private_;
  PITH_RETURN_IF_ERROR(CheckSequence(sequence, self.next_position.size()));
  int32_t& position = self.next_position[static_cast<size_t>(sequence)];
  PITH_RETURN_IF_ERROR(CheckPosition(self.info, position + static_cast<int32_t>(tokens.size()) - 1));
  for (size_t at = 0; at < tokens.size();) {
    const size_t count = std::min(tokens.size() - at, static_cast<size_t>(self.options.block_tokens));
    self.batch->Clear();
    for (size_t i = 0; i < count; ++i) {
      self.batch->Add(tokens[at + i], position++, sequence, all_logits != nullptr || at + i + 1 == tokens.size());
    }
    at += count;
    if (self.Run(count) != 0) return IoError("libllama could not decode a block");
    if (all_logits == nullptr) continue;
    for (size_t i = 0; i < count; ++i) {
      const float* row = llama_get_logits_ith(self.context.get(), static_cast<int32_t>(i));
      all_logits->insert(all_logits->end(), row, row + self.info.num_vocab);
    }
  }
  return {};
}

Status PlainContext::DecodeBatch(std::span<const int32_t> tokens) {
  Private& self = *private_;
  if (tokens.size() > self.next_position.size()) {
    return InvalidArgument("a batch of " + std::to_string(tokens.size()) + " sequences is more than the " +
                           std::to_string(self.next_position.size()) + " of this context of libllama");
  }
  self.batch->Clear();
  for (size_t i = 0; i < tokens.size(); ++i) {
    PITH_RETURN_IF_ERROR(CheckPosition(self.info, self.next_position[i]));
    self.batch->Add(tokens[i], self.next_position[i]++, static_cast<int32_t>(i), true);
  }
  if (self.Run(tokens.size()) != 0) return IoError("libllama could not decode a batch");
  return {};
}

std::span<const float> PlainContext::logits() const {
  const float* row = llama_get_logits_ith(private_->context.get(), -1);
  if (row == nullptr) return {};
  return {row, static_cast<size_t>(private_->info.num_vocab)};
}

void PlainContext::Clear() {
  llama_memory_clear(llama_get_memory(private_->context.get()), false);
  std::fill(private_->next_position.begin(), private_->next_position.end(), 0);
}

}  // namespace pith
