#include "tests/support/random_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string_view>
#include <utility>
#include <variant>

#include "ggml-backend.h"
#include "ggml.h"
#include "gguf.h"
#include "llama.h"

namespace pith::testing {
namespace {

using Numbers = std::vector<uint32_t>;
using LongNumbers = std::vector<uint64_t>;
using Reals = std::vector<float>;
using Value = std::variant<uint32_t, float, bool, Numbers, LongNumbers, Reals>;

struct Shape {
  uint32_t embd = 128;
  uint32_t heads = 4;
  uint32_t kv_heads = 2;
  uint32_t ff = 192;
  uint32_t layers = 2;
  uint32_t vocab = 128;
};

// Lists of architectures are texts with blanks between the names.
bool Names(std::string_view list, std::string_view architecture) {
  for (size_t at = 0; (at = list.find(architecture, at)) != std::string_view::npos; ++at) {
    const size_t end = at + architecture.size();
    if ((at == 0 || list[at - 1] == ' ') && (end == list.size() || list[end] == ' ')) return true;
  }
  return false;
}

// Attention over a compressed latent, in which keys and values share rows.
constexpr std::string_view kMla =
    "deepseek2 deepseek32 glm-dsa dots3note kimi-linear bailingmoe3 kimi-k3 glm5-next hy_v4 mistral4";
// Layer 1 is recurrent, or has no attention for another reason.
constexpr std::string_view kNoAttentionInLayer1 =
    "plamo2 jamba nemotron_h nemotron_h_moe granitehybrid lfm2 lfm2moe kimi-linear bailingmoe3 kimi-k3 glm5-next";
// Another cache and a selection decide what attention sees.
constexpr std::string_view kIndexers = "deepseek32 deepseek4 glm-dsa dots3note hy_v4 minimax-m3 qwen4exp glm5-next";
// No form without experts exists.
constexpr std::string_view kNeedsExperts =
    "llama4 cohere2moe grok qwen2moe qwen3moe qwen3next qwen3vlmoe qwen35moe qwen4exp phimoe dbrx olmoe arctic "
    "deepseek "
    "deepseek2 deepseek2-ocr deepseek32 dots3note deepseek4 glm4moe glm-dsa exaone-moe bailingmoe bailingmoe2 "
    "bailingmoe3 "
    "dots1 afmoe ernie4_5-moe hunyuan-moe hy_v3 hy_v4 gpt-oss lfm2moe smallthinker llada-moe grovemoe minimax-01 "
    "minimax-m2 minimax-m3 rnd1 mimo2 kimi-linear kimi-k3 glm5-next step35 mistral4 mellum laguna maple nemotron_h_moe "
    "granitemoe";

struct ShapeException {
  std::string_view architectures;
  Shape shape;
};

// The first that names the architecture counts.
const ShapeException kShapes[] = {
    {"llama4", {.layers = 4}},  // every fourth layer is global and without RoPE
    {"gemma4", {.layers = 5}},
    {"gemma3n",
     {.embd = 64, .heads = 2, .kv_heads = 1, .ff = 96, .layers = 22}},  // 20 layers have a cache, the rest share
    {"deepseek4", {.embd = 512, .heads = 8, .kv_heads = 1, .ff = 1024, .layers = 4}},
    {kMla, {.kv_heads = 1}},
    {"dots1 olmoe minicpm3 plm jina-bert-v2 deepseek2-ocr", {.kv_heads = 4}},
    {"nemotron_h nemotron_h_moe", {.layers = 3}},
    {"chameleon", {.vocab = 10240}},
    {"qwen3tts", {.vocab = 3072}},
    {"hrm_text", {.layers = 6}},
};

struct KeyException {
  std::string_view architectures;
  std::string_view key;  // of the architecture; one of the file if it begins with a slash
  Value value;
};

// All that name the architecture count, later ones over earlier ones.
const std::vector<KeyException>& KeyExceptions() {
  static const std::vector<KeyException> exceptions = {
      {"gemma2 gemma3 gemma4 grok", "attn_logit_softcapping", 20.0f},
      {"gemma2 gemma4 grok", "final_logit_softcapping", 30.0f},
      {"command-r cohere2 cohere2moe granite granitemoe granitehybrid", "logit_scale", 0.5f},
      {kMla, "attention.key_length", 80u},
      {kMla, "attention.value_length", 64u},
      {kMla, "attention.key_length_mla", 48u},
      {kMla, "attention.value_length_mla", 32u},
      {kMla, "attention.kv_lora_rank", 64u},
      {kMla, "rope.dimension_count", 16u},
      {"glm5-next", "attention.key_length", 64u},  // its latent has no part with RoPE
      {"glm5-next", "rope.dimension_count", 0u},
      {"bailingmoe3", "rope.dimension_sections", Numbers{2, 3, 3, 0}},
      {"bailingmoe3", "swiglu_clamp_exp", Reals{0, 4}},
      {"bailingmoe3", "swiglu_clamp_shexp", Reals{0, 5}},
      {"cohere2moe mimo2 step35 spark2_5 muse-glimmer granite_swa dots3note maple", "attention.sliding_window_pattern",
       Numbers{0, 1}},
      {"gemma4", "attention.sliding_window_pattern", Numbers{1, 1, 0, 1, 0}},
      {"gemma4", "attention.shared_kv_layers", 2u},  // the last layers read the caches of earlier ones
      {"gemma4", "embedding_length_per_layer_input", 32u},
      {"phi3 phimoe minicpm3", "context_length", 1024u},
      {"phi3 phimoe minicpm3", "rope.scaling.original_context_length", 512u},  // LongRoPE: other factors from there on
      {"maple", "swiglu_clamp_exp", 7.0f},
      {"apertus", "/xielu.alpha_n", 1.0f},
      {"apertus", "/xielu.alpha_p", 1.0f},
      {"apertus", "/xielu.beta", 1.0f},
      {"apertus", "/xielu.eps", 1e-7f},
      {"hrm_text", "hrm.layers_per_stack", 1u},
      {"hrm_text", "hrm.h_cycles", 2u},
      {"hrm_text", "hrm.l_cycles", 2u},
      {"dots3note", "attention.kv_lora_rank_swa", 64u},
      {"dots3note", "attention.key_length_swa", 80u},
      {"dots3note", "attention.value_length_swa", 64u},
      {"dots3note", "attention.key_length_mla_swa", 48u},
      {"dots3note", "attention.value_length_mla_swa", 32u},
      {"dots3note hy_v4", "attention.indexer.types", Numbers{1, 0}},
      {"hy_v4", "swiglu_clamp_exp", 10.0f},
      {"hy_v4", "hyper_connection.magnitude", 2.0f},
      {"deepseek4", "attention.key_length", 64u},
      {"deepseek4", "attention.value_length", 64u},
      {"deepseek4", "rope.dimension_count", 32u},
      {"deepseek4", "attention.output_group_count", 8u},
      {"deepseek4", "attention.output_lora_rank", 32u},
      {"deepseek4", "attention.compress_ratios", Numbers{0, 0, 4, 128}},
      {"deepseek4", "attention.compress_rope_freq_base", 160000.0f},
      {"deepseek4", "hash_layer_count", 0u},
      {"deepseek4", "swiglu_clamp_exp", 10.0f},
      {"deepseek4", "expert_gating_func", 4u},
      {"nemotron_h nemotron_h_moe", "feed_forward_length", Numbers{0, 0, 192}},
      {"minimax-m3", "rope.dimension_count", 32u},
      {"minimax-m3", "attention.indexer.head_count", 2u},
      {"qwen4exp glm5-next", "attention.compress_ratios", Numbers{4, 4}},
      {"qwen4exp", "attention.indexer.key_length", 32u},
      {"plm minicpm3", "rope.dimension_count", 16u},
      {"gemma4-assistant", "attention.sliding_window_pattern", Numbers{1, 0}},
      {"eagle3 dflash", "target_layers", Numbers{0, 1, 1}},
      {"eagle3 dflash", "target_hidden_size", 128u},
      {"plamo2", "ssm.group_count", 0u},
      {"qwen3next qwen35 qwen35moe qwen4exp", "ssm.inner_size", 128u},
      {"rwkv7 arwkv7", "attention.decay_lora_rank", 16u},
      {"rwkv7 arwkv7", "attention.iclr_lora_rank", 16u},
      {"rwkv7 arwkv7", "attention.value_residual_mix_lora_rank", 16u},
      {"rwkv7 arwkv7", "attention.gate_lora_rank", 16u},
      {"graniteswitch", "adapters.count", 2u},
      {"graniteswitch", "adapters.lora_rank", 4u},
      {"graniteswitch", "adapters.token_ids_activate", Numbers{120, 121}},
      {"graniteswitch", "adapters.token_ids_substitute", Numbers{1, 2}},
      {"bert", "pooling_type", 1u},
      {"bert nomic-bert nomic-bert-moe jina-bert-v2 jina-bert-v3", "/tokenizer.ggml.token_type_count", 2u},
  };
  return exceptions;
}

class Metadata {
 public:
  Metadata(const std::string& architecture, const Shape& shape, bool moe) : architecture_(architecture), shape_(shape) {
    General();
    Attention();
    if (moe) Experts();
    Recurrence();
    Others();
    for (const KeyException& exception : KeyExceptions()) {
      if (Names(exception.architectures, architecture)) Set(std::string(exception.key), exception.value);
    }
  }

  void Write(gguf_context* gguf) const {
    gguf_set_val_str(gguf, "general.architecture", architecture_.c_str());
    for (const auto& [name, value] : values_) {
      const std::string key = name[0] == '/' ? name.substr(1) : architecture_ + "." + name;
      std::visit([&](const auto& v) { WriteOne(gguf, key.c_str(), v); }, value);
    }
    WriteVocabulary(gguf);
  }

 private:
  void Set(const std::string& key, Value value) { values_[key] = std::move(value); }
  bool Is(std::string_view list) const { return Names(list, architecture_); }
  Numbers PerLayer(uint32_t even, uint32_t odd) const {
    Numbers numbers;
    for (uint32_t layer = 0; layer < shape_.layers; ++layer) numbers.push_back(layer % 2 == 0 ? even : odd);
    return numbers;
  }

  static void WriteOne(gguf_context* gguf, const char* key, uint32_t v) { gguf_set_val_u32(gguf, key, v); }
  static void WriteOne(gguf_context* gguf, const char* key, float v) { gguf_set_val_f32(gguf, key, v); }
  static void WriteOne(gguf_context* gguf, const char* key, bool v) { gguf_set_val_bool(gguf, key, v); }
  static void WriteOne(gguf_context* gguf, const char* key, const Numbers& v) {
    gguf_set_arr_data(gguf, key, GGUF_TYPE_UINT32, v.data(), v.size());
  }
  static void WriteOne(gguf_context* gguf, const char* key, const LongNumbers& v) {
    gguf_set_arr_data(gguf, key, GGUF_TYPE_UINT64, v.data(), v.size());
  }
  static void WriteOne(gguf_context* gguf, const char* key, const Reals& v) {
    gguf_set_arr_data(gguf, key, GGUF_TYPE_FLOAT32, v.data(), v.size());
  }

  // libllama's own vocabulary for tests: token ids need no text.
  void WriteVocabulary(gguf_context* gguf) const {
    std::vector<std::string> texts;
    for (uint32_t i = 0; i < shape_.vocab; ++i) texts.push_back("tok_" + std::to_string(i));
    std::vector<const char*> pointers;
    for (const std::string& text : texts) pointers.push_back(text.c_str());
    const Reals scores(shape_.vocab, 0.0f);
    gguf_set_val_str(gguf, "tokenizer.ggml.model", "test");
    gguf_set_arr_str(gguf, "tokenizer.ggml.tokens", pointers.data(), pointers.size());
    gguf_set_arr_data(gguf, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores.data(), scores.size());
  }

  void General();
  void Attention();
  void Experts();
  void Recurrence();
  void Others();

  std::string architecture_;
  Shape shape_;
  std::map<std::string, Value> values_;
};

void Metadata::General() {
  Set("vocab_size", shape_.vocab);
  Set("context_length", 512u);
  Set("embedding_length", shape_.embd);
  Set("features_length", shape_.embd);
  Set("block_count", shape_.layers);
  Set("feed_forward_length", shape_.ff);
  Set("leading_dense_block_count", 1u);
  Set("use_parallel_residual", false);
  Set("logit_scale", 1.0f);
  Set("residual_scale", 1.0f);
}

void Metadata::Attention() {
  const uint32_t head_dim = shape_.embd / shape_.heads;
  Set("attention.head_count", shape_.heads);
  Set("attention.head_count_kv", shape_.kv_heads);
  if (Is(kNoAttentionInLayer1)) {
    Set("attention.head_count", PerLayer(shape_.heads, 0));
    Set("attention.head_count_kv", PerLayer(shape_.kv_heads, 0));
  }
  Set("attention.max_alibi_bias", 8.0f);
  Set("attention.clamp_kqv", 4.0f);
  Set("attention.layer_norm_epsilon", 1e-5f);
  Set("attention.layer_norm_rms_epsilon", 1e-5f);
  Set("attention.group_norm_epsilon", 1e-5f);
  Set("attention.group_norm_groups", 8u);
  Set("attention.q_lora_rank", 64u);
  Set("attention.kv_lora_rank", 64u);
  Set("attention.relative_buckets_count", 8u);
  Set("attention.sliding_window", static_cast<uint32_t>(kRandomModelWindow));
  Set("attention.sliding_window_pattern", 2u);
  Set("attention.key_length_swa", head_dim);
  Set("attention.value_length_swa", head_dim);
  Set("rope.freq_base_swa", 10000.0f);
  const uint32_t quarter = head_dim / 8;  // sections count pairs of one head
  Set("rope.dimension_sections", Numbers{quarter, quarter, quarter, quarter});
  if (Is(kIndexers)) {
    Set("attention.indexer.head_count", 64u);
    Set("attention.indexer.key_length", 128u);
    Set("attention.indexer.top_k", 16u);
    Set("attention.indexer.block_size", 4u);
    Set("attention.indexer.local_blocks", 1u);
    Set("attention.indexer.kpool", 4u);
    Set("attention.indexer.kpool_select_tail", true);
  }
}

// All experts are used: with a choice, rounding alone would flip it now and then, and no two exact
// implementations would agree.
void Metadata::Experts() {
  Set("expert_feed_forward_length", shape_.ff);
  Set("expert_shared_feed_forward_length", shape_.ff / 2);
  Set("expert_chunk_feed_forward_length", shape_.ff);
  Set("expert_latent_length", shape_.ff);
  Set("interleave_moe_layer_step", 2u);
  Set("moe_every_n_layers", 2u);
  Set("expert_count", 2u);
  Set("expert_used_count", 2u);
  Set("expert_shared_count", 1u);
  Set("expert_gating_func", 2u);
  Set("expert_group_scale", 1.0f);
  Set("experts_per_group", 1u);
  Set("expert_weights_scale", 1.0f);
  Set("expert_weights_norm", true);
}

void Metadata::Recurrence() {
  Set("full_attention_interval", 2u);
  Set("ssm.inner_size", 2 * shape_.embd);
  Set("ssm.conv_kernel", 4u);
  Set("ssm.state_size", 32u);
  Set("ssm.time_step_rank", shape_.heads);
  Set("ssm.group_count", 2u);
  Set("kda.head_dim", 32u);
  Set("kda.safe_gate", true);
  Set("kda.gate_lower_bound", -5.0f);
  Set("wkv.head_size", shape_.embd / shape_.heads);
  Set("shortconv.l_cache", 3u);
  Set("time_mix_extra_dim", 32u);
  Set("time_decay_extra_dim", 64u);
}

void Metadata::Others() {
  Set("posnet.embedding_length", shape_.embd);
  Set("posnet.block_count", shape_.layers);
  Set("convnext.embedding_length", shape_.embd);
  Set("convnext.block_count", shape_.layers);
  Set("attn_res.block_size", 12u);
  Set("activation.situ_beta", 4.0f);
  Set("activation.situ_linear_beta", 25.0f);
  Set("hyper_connection.count", 4u);
  Set("hyper_connection.sinkhorn_iterations", 2u);
  Set("hyper_connection.epsilon", 1e-6f);
  Set("hyper_connection.low_rank", 8u);
}

// What a tensor's numbers must be like for the model to behave: matrices keep the size of what
// they multiply, so that scores spread over a few units; norms stay near one; decays are negative.
void FillTensor(ggml_tensor* tensor, std::mt19937& random, std::vector<float>& values) {
  const std::string_view name = tensor->name;
  const auto contains = [name](std::string_view part) { return name.find(part) != std::string_view::npos; };
  const bool matrix = tensor->ne[1] > 1;
  std::normal_distribution<float> normal(0.0f, 1.0f);
  const float fan_in = matrix ? 1.4f / std::sqrt(static_cast<float>(tensor->ne[0])) : 0.2f;
  for (float& value : values) {
    const float x = normal(random);
    if (contains("ssm_a")) {
      value = -0.5f - std::abs(x);
    } else if (contains("rope_freqs") || contains("rope_factors")) {
      value = 1.0f + 0.5f * std::abs(x);
    } else if (contains("norm") && contains("weight")) {
      value = 1.0f + 0.2f * x;
    } else if (contains("sinks")) {
      value = x;
    } else if (contains("lora_")) {
      value = 0.3f * fan_in * x;
    } else if (contains("token_embd")) {
      value = 0.15f * x;  // often the output's weights too: larger ones would saturate the softmax
    } else {
      value = fan_in * x;
    }
  }
}

struct GgmlDeleter {
  void operator()(ggml_context* context) const { ggml_free(context); }
  void operator()(gguf_context* context) const { gguf_free(context); }
  void operator()(llama_model* model) const { llama_model_free(model); }
};
template <typename T>
using Owned = std::unique_ptr<T, GgmlDeleter>;

// Tensors as libllama asks for them, kept for the file.
struct Recorder {
  struct Tensor {
    ggml_type type;
    std::vector<int64_t> shape;
    std::vector<float> values;
  };
  uint32_t seed = 0;
  std::map<std::string, Tensor> tensors;
  std::string error;

  static void OnTensor(ggml_tensor* tensor, void* user_data) { static_cast<Recorder*>(user_data)->Add(tensor); }

  void Add(ggml_tensor* tensor) {
    if (tensor->type != GGML_TYPE_F32) {
      error = std::string(tensor->name) + " is not F32";
      return;
    }
    // Tied weights come once for each use, with the same name, and get the same numbers.
    uint32_t mixed = seed;
    for (const char* c = tensor->name; *c != '\0'; ++c) mixed = (mixed ^ static_cast<uint8_t>(*c)) * 16777619u;
    std::mt19937 random(mixed);
    std::vector<float> values(static_cast<size_t>(ggml_nelements(tensor)));
    FillTensor(tensor, random, values);
    ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
    tensors[tensor->name] = {tensor->type, {std::begin(tensor->ne), std::end(tensor->ne)}, std::move(values)};
  }
};

// llama_model_save_to_file writes the metadata that libllama understood, which loses some of it
// on some architectures; this file has what was put in.
Status WriteFile(const Metadata& metadata, Recorder& recorder, const std::string& path) {
  const Owned<gguf_context> gguf(gguf_init_empty());
  metadata.Write(gguf.get());
  const Owned<ggml_context> ggml(ggml_init({.mem_size = ggml_tensor_overhead() * (recorder.tensors.size() + 1),
                                            .mem_buffer = nullptr,
                                            .no_alloc = true}));
  if (ggml == nullptr) return IoError("ggml cannot make a context");
  for (auto& [name, recorded] : recorder.tensors) {
    ggml_tensor* tensor = ggml_new_tensor(ggml.get(), recorded.type, GGML_MAX_DIMS, recorded.shape.data());
    ggml_set_name(tensor, name.c_str());
    tensor->data = recorded.values.data();
    gguf_add_tensor(gguf.get(), tensor);
  }
  if (!gguf_write_to_file(gguf.get(), path.c_str(), false)) return IoError("cannot write " + path);
  return {};
}

const Shape& ShapeOf(const std::string& architecture) {
  static const Shape usual;
  for (const ShapeException& exception : kShapes) {
    if (Names(exception.architectures, architecture)) return exception.shape;
  }
  return usual;
}

// libllama gives its reasons in its log only: the last error is the one.
struct LastError {
  std::string text;
  ggml_log_callback before = nullptr;
  void* before_data = nullptr;
  static void OnLog(ggml_log_level level, const char* text, void* user_data) {
    static_cast<LastError*>(user_data)->text.append(level == GGML_LOG_LEVEL_ERROR ? text : "");
  }
  LastError() {
    llama_log_get(&before, &before_data);
    llama_log_set(OnLog, this);
  }
  // Back to whoever listened: a model that was loaded before wants its reasons, too.
  ~LastError() { llama_log_set(before, before_data); }
  LastError(const LastError&) = delete;
  LastError& operator=(const LastError&) = delete;
};

}  // namespace

bool NeedsExperts(const std::string& architecture) { return Names(kNeedsExperts, architecture); }

std::vector<std::string> Architectures() {
  std::vector<std::string> architectures;
  std::ifstream file(PITH_SOURCE_DIR "/tests/support/architectures.txt");
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line[0] != '#') architectures.push_back(line);
  }
  return architectures;
}

Status MakeRandomModel(const std::string& architecture, bool moe, const std::string& path, uint32_t seed) {
  LastError last_error;
  const Metadata metadata(architecture, ShapeOf(architecture), moe);
  const Owned<gguf_context> gguf(gguf_init_empty());
  metadata.Write(gguf.get());
  Recorder recorder;
  recorder.seed = seed;
  llama_model_params params = llama_model_default_params();
  params.progress_callback = [](float, void*) { return true; };
  const Owned<llama_model> model(llama_model_init_from_user(gguf.get(), Recorder::OnTensor, &recorder, params));
  if (model == nullptr) {
    std::string reason = last_error.text.substr(0, last_error.text.find('\n'));
    return Unsupported("libllama cannot make it: " + reason);
  }
  if (!recorder.error.empty()) return Unsupported(recorder.error);
  return WriteFile(metadata, recorder, path);
}

}  // namespace pith::testing
