#include "host/model.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/byte_io.h"
#include "base/escaped.h"
#include "ggml-cpu.h"
#include "host/block_product.h"
#include "host/chat_template.h"
#include "host/embedding_context.h"
#include "host/fingerprint.h"
#include "host/gguf_check.h"
#include "host/layer_map.h"
#include "host/llama_util.h"
#include "host/log.h"
#include "host/output_projection.h"
#include "host/probe.h"
#include "host/tokenizer.h"
#include "host/trial.h"
#include "host/tried_files.h"
#include "kernels/byte_products.h"

namespace pith {
namespace {

// libllama says why it cannot load a file in its log only, on the thread that loads.
thread_local std::string load_error;
// So it does where an override has another type than what it reads there.
thread_local std::string override_ignored;

// "...: Bad metadata override type for key 'X', expected int but got str"
void NoteIgnoredOverride(std::string_view line) {
  constexpr std::string_view kMark = "Bad metadata override type for ";
  const size_t at = line.find(kMark);
  if (at == std::string_view::npos) return;
  override_ignored = Escaped(line.substr(at + kMark.size(), line.find('\n', at) - at - kMark.size()), 300);
}

void OnLog(ggml_log_level level, const char* text, void*) {
  WriteHostLog(level, text);
  constexpr std::string_view kMarks[] = {"error loading model: ", "failed to apply lora adapter: "};
  if (level == GGML_LOG_LEVEL_WARN) NoteIgnoredOverride(text);
  if (level != GGML_LOG_LEVEL_ERROR) return;
  for (const std::string_view mark : kMarks) {
    const std::string_view line(text);
    if (const size_t at = line.find(mark); at != std::string_view::npos) load_error = line.substr(at + mark.size());
  }
}

// What libllama has said since `load_error` was cleared, as the end of a sentence.
std::string LoadReason(const std::string& otherwise) {
  const std::string_view line = std::string_view(load_error).substr(0, load_error.find('\n'));
  return line.empty() ? otherwise : Escaped(line, 300);
}

bool KnowsTemplate(const std::string& text) {
  const llama_chat_message message{"user", "x"};
  return llama_chat_apply_template(text.c_str(), &message, 1, true, nullptr, 0) >= 0;
}

// And not a name.
bool LooksLikeJinja(const std::string& text) {
  return text.find("{%") != std::string::npos || text.find("{{") != std::string::npos;
}

std::string TemplateNames() {
  std::vector<const char*> names(static_cast<size_t>(std::max(0, llama_chat_builtin_templates(nullptr, 0))));
  llama_chat_builtin_templates(names.data(), names.size());
  return fmt::format("{}", fmt::join(names, ", "));
}

Status RefuseUnhostable(const llama_model* model, const ModelInfo& info) {
  const std::string& architecture = info.architecture;
  // Its values are rows of the wrong shape for libllama's own cache: no context can be made.
  if (architecture == "plm") return Unsupported("libllama aborts on plm models");
  if (llama_model_has_encoder(model))
    return Unsupported(architecture + " models have an encoder, which pith does not host");
  if (MetadataOf(model, info.overrides, (architecture + ".attention.causal").c_str()) == "false") {
    return Unsupported(architecture + " models give embeddings and do not generate text");
  }
  if (!llama_model_has_decoder(model)) return Unsupported(architecture + " models do not generate text");
  if (llama_model_is_diffusion(model))
    return Unsupported(architecture + " models diffuse instead of decoding token by token");
  // Found by `pith parity`: behind a block of several tokens their state gives other logits than libllama's own.
  if (architecture.find("rwkv") != std::string::npos) {
    return Unsupported(architecture + " models lose a part of their recurrent state where pith hands it on");
  }
  return {};
}

// Of what libllama has read of the metadata (arrays apart).
void AddMetadata(const llama_model* model, Hash64& hash) {
  char buffer[1024];
  for (int32_t i = 0; i < llama_model_meta_count(model); ++i) {
    if (llama_model_meta_key_by_index(model, i, buffer, sizeof buffer) >= 0) hash.Add(std::string_view(buffer));
    if (llama_model_meta_val_str_by_index(model, i, buffer, sizeof buffer) >= 0) hash.Add(std::string_view(buffer));
  }
}

// libllama takes the context that YaRN extends for a number of 32 bits, whatever comes out.
Status CheckExtendedContext(const llama_model* model, const ModelInfo& info) {
  const RopeOptions& rope = info.overrides.rope;
  if (rope.freq_scale == 0) return {};
  double original = std::max(llama_model_n_ctx_train(model), OriginalContext(model, info).value_or(0));
  if (rope.yarn_orig_ctx > 0) original = rope.yarn_orig_ctx;
  if (original / static_cast<double>(rope.freq_scale) <= std::numeric_limits<int32_t>::max()) return {};
  return InvalidArgument(
      fmt::format("rope-scale extends a context of {:.0f} tokens to more than libllama counts", original));
}

// What was asked for, or else the file's. libllama's word for that is not always the metadata's.
std::string TemplateOf(const llama_model* model, const HostModelOptions& options) {
  constexpr const char* kTemplate = "tokenizer.chat_template";
  if (!options.chat_template.empty()) return options.chat_template;
  if (options.overrides.Find(kTemplate) != nullptr) return MetadataOf(model, options.overrides, kTemplate);
  const char* own = llama_model_chat_template(model, nullptr);
  return own != nullptr ? own : "";
}

EmbeddingPooling PoolingOf(const llama_model* model, const ModelInfo& info) {
  const std::string type = MetadataOf(model, info.overrides, (info.architecture + ".pooling_type").c_str());
  if (type == std::to_string(LLAMA_POOLING_TYPE_CLS)) return EmbeddingPooling::kFirst;
  return type == std::to_string(LLAMA_POOLING_TYPE_LAST) ? EmbeddingPooling::kLast : EmbeddingPooling::kMean;
}

void FillInfo(const llama_model* model, const std::string& path, ModelInfo& info) {
  info.path = path;
  info.architecture = MetadataOf(model, info.overrides, "general.architecture");
  char description[256] = "";
  llama_model_desc(model, description, sizeof description);
  info.description = description;
  info.num_layers = llama_model_n_layer(model);
  info.num_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
  info.hidden_dim = llama_model_n_embd_out(model);
  info.pooling = PoolingOf(model, info);
  info.trained_ctx = llama_model_n_ctx_train(model);
  info.window = llama_model_n_swa(model);
  info.num_params = llama_model_n_params(model);
  info.file_bytes = llama_model_size(model);
  const llama_ftype type = llama_model_ftype(model);
  info.quantised = type != LLAMA_FTYPE_ALL_F32 && type != LLAMA_FTYPE_MOSTLY_F16 && type != LLAMA_FTYPE_MOSTLY_BF16;
}

}  // namespace

void InitLlamaOnce() {
  static std::once_flag once;
  std::call_once(once, [] {
    llama_log_set(OnLog, nullptr);
    llama_backend_init();
  });
}

std::string HostVersion() {
  InitLlamaOnce();
  std::string features = llama_print_system_info();
  while (!features.empty() && (features.back() == ' ' || features.back() == '|')) features.pop_back();
  return std::string("ggml ") + ggml_version() + " (" + ggml_commit() + "), " + features;
}

struct HostModel::Private {
  std::vector<llama_adapter_lora*> adapters;
  std::vector<float> scales;
  std::string pre_tokenizer;
  std::string chat_template;
  std::optional<ChatTemplate> jinja;  // of the text above, where it is Jinja
  OutputProjections projections;
  std::vector<std::string> lora_paths;
  std::once_flag fingerprint_once;
  uint64_t fingerprint = 0;
};

HostModel::~HostModel() {
  if (model_ != nullptr) llama_model_free(model_);
}

Result<std::shared_ptr<HostModel>> HostModel::Load(const std::string& path, const HostModelOptions& options) {
  if (const std::string& text = options.chat_template; !text.empty() && !KnowsTemplate(text)) {
    if (!LooksLikeJinja(text))
      return InvalidArgument("there is no such chat template; libllama knows " + TemplateNames());
    if (const auto parsed = ChatTemplate::Parse(text, "", ""); !parsed) return tl::unexpected<Error>(parsed.error());
  }
  size_t file_bytes = 0;
  PITH_ASSIGN_OR_RETURN(const std::vector<std::string> paths, CheckModelFiles(path, &file_bytes));
  for (const std::string& lora : options.lora_paths) {
    PITH_ASSIGN_OR_RETURN(const GgufFacts facts, CheckGguf(lora));
    file_bytes += facts.file_bytes;
  }
  InitLlamaOnce();
  std::vector<std::string> all_paths = paths;
  all_paths.insert(all_paths.end(), options.lora_paths.begin(), options.lora_paths.end());
  PITH_RETURN_IF_ERROR(CheckTypes(options.overrides, paths.front()));
  if (const std::string key = FilesKey(all_paths, TextOf(options.overrides)); options.try_in_child && !WasTried(key)) {
    const auto start = std::chrono::steady_clock::now();
    const auto load = [&]() -> Status {
      const auto loaded = LoadHere(paths, options, true);
      return loaded ? Status() : Status(tl::unexpected<Error>(loaded.error()));
    };
    const auto keep_waiting = [&options] { return !options.progress || options.progress(0); };
    PITH_RETURN_IF_ERROR(TryInChild("libllama cannot load " + path, LimitsForFile(file_bytes), load, keep_waiting));
    constexpr auto kWorthRemembering = std::chrono::milliseconds(100);
    if (std::chrono::steady_clock::now() - start > kWorthRemembering) RememberTried(key);
  }
  return LoadHere(paths, options, false);
}

Result<std::shared_ptr<HostModel>> HostModel::LoadHere(std::vector<std::string> paths, const HostModelOptions& options,
                                                       bool is_trial) {
  const std::string& path = paths.front();
  llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = options.num_gpu_layers;
  ggml_backend_dev_t no_devices[] = {nullptr};
  if (is_trial) {  // a GPU that this process has opened cannot be used by its child
    params.n_gpu_layers = 0;
    params.devices = no_devices;
  }
  params.vocab_only = options.use == ModelUse::kVocabulary;
  params.check_tensors = options.check_weights;
  if (!is_trial && (options.lock_memory || !options.map_file)) {
    params.load_mode = !options.lock_memory ? LLAMA_LOAD_MODE_NONE
                       : options.map_file   ? LLAMA_LOAD_MODE_MMAP_MLOCK
                                            : LLAMA_LOAD_MODE_MLOCK;
  }
  params.use_extra_bufts = !is_trial;  // no repacked copies of the weights: the file itself is mapped
  if (options.progress && !is_trial) {
    params.progress_callback = [](float share, void* user_data) {
      return (*static_cast<const std::function<bool(float)>*>(user_data))(share);
    };
    params.progress_callback_user_data = const_cast<std::function<bool(float)>*>(&options.progress);
  }
  std::shared_ptr<HostModel> host(new HostModel);
  host->private_ = std::make_unique<Private>();
  load_error.clear();
  override_ignored.clear();
  const std::vector<llama_model_kv_override> overrides = LlamaOverrides(options.overrides);
  params.kv_overrides = overrides.data();
  host->model_ = llama_model_load_from_file(path.c_str(), params);
  if (host->model_ == nullptr) {
    return Corrupt("libllama cannot load " + path + ": " +
                   LoadReason("its hyper-parameters or tensors do not fit its architecture"));
  }
  if (!override_ignored.empty()) return InvalidArgument("an override has the wrong type: " + override_ignored);
  host->info_.overrides = options.overrides;
  FillInfo(host->model_, path, host->info_);
  host->private_->pre_tokenizer = MetadataOf(host->model_, options.overrides, "tokenizer.ggml.pre");
  PITH_RETURN_IF_ERROR(CheckExtendedContext(host->model_, host->info_));
  host->info_.use = options.use;
  if (options.use == ModelUse::kEmbeddings) {
    PITH_RETURN_IF_ERROR(ProbeEmbeddings(*host));
  } else if (options.use == ModelUse::kText) {
    PITH_RETURN_IF_ERROR(RefuseUnhostable(host->model_, host->info_));
    PITH_RETURN_IF_ERROR(ProbeLayers(host->model_, host->info_));
    if (!is_trial) PITH_RETURN_IF_ERROR(ApplyLayerMap(options.layer_map, host->info_));
  }
  host->info_.trained_ctx = llama_model_n_ctx_train(host->model_);  // with a context YaRN may have extended it
  for (const std::string& lora : options.lora_paths) {
    load_error.clear();
    llama_adapter_lora* adapter = llama_adapter_lora_init(host->model_, lora.c_str());
    if (adapter == nullptr)
      return Corrupt("libllama cannot load the LoRA adapter " + lora + ": " + LoadReason("it does not fit this model"));
    const size_t index = host->private_->adapters.size();
    host->private_->adapters.push_back(adapter);
    host->private_->scales.push_back(index < options.lora_scales.size() ? options.lora_scales[index] : 1.0f);
  }
  host->private_->chat_template = TemplateOf(host->model_, options);
  host->ReadChatTemplate();
  if (is_trial) host->TryChatTemplate();
  host->own_products_ = options.own_products;
  host->private_->lora_paths = options.lora_paths;
  host->info_.part_paths = std::move(paths);
  return host;
}

uint64_t HostModel::fingerprint() const {
  std::call_once(private_->fingerprint_once, [this] {
    std::vector<std::string> paths = info_.part_paths;
    paths.insert(paths.end(), private_->lora_paths.begin(), private_->lora_paths.end());
    const Result<uint64_t> contents = ContentFingerprint(paths);
    if (!contents) return;
    Hash64 hash;
    AddMetadata(model_, hash);
    hash.Add(fmt::format("|{}|{}|{}", *contents, info_.part_paths.size(), fmt::join(private_->scales, "*")));
    if (!info_.cache_of.empty()) hash.Add(fmt::format("|{}", fmt::join(info_.cache_of, ",")));
    if (const std::string others = IdentityOf(info_.overrides); !others.empty()) hash.Add("|overrides " + others);
    private_->fingerprint = std::max<uint64_t>(hash.value(), 1);
  });
  return private_->fingerprint;
}

bool HostModel::float_products() const { return own_products_ && info_.quantised && BlockProduct::IsBuilt(); }

bool HostModel::byte_products() const { return own_products_ && info_.quantised && kernels::ByteProductsAreFast(); }

std::span<llama_adapter_lora* const> HostModel::adapters() const { return private_->adapters; }
std::span<const float> HostModel::adapter_scales() const { return private_->scales; }

Result<std::vector<int32_t>> HostModel::Tokenize(std::string_view text, bool add_special, bool parse_special) const {
  return TokenizeText(llama_model_get_vocab(model_), private_->pre_tokenizer, text, add_special, parse_special);
}

Result<std::vector<int32_t>> HostModel::TokenizeWhole(std::string_view text) const {
  return TokenizeText(llama_model_get_vocab(model_), private_->pre_tokenizer, text, true, false, true);
}

std::string HostModel::Piece(int32_t token) const {
  const llama_vocab* vocab = llama_model_get_vocab(model_);
  std::string piece(32, '\0');
  int32_t length = llama_token_to_piece(vocab, token, piece.data(), static_cast<int32_t>(piece.size()), 0, true);
  if (length < 0) {
    piece.resize(static_cast<size_t>(-length));
    length = llama_token_to_piece(vocab, token, piece.data(), static_cast<int32_t>(piece.size()), 0, true);
  }
  piece.resize(static_cast<size_t>(std::max(length, 0)));
  return piece;
}

size_t HostModel::MostBytesOfToken() const {
  const llama_vocab* vocab = llama_model_get_vocab(model_);
  const auto type = llama_vocab_type(vocab);
  if (type != LLAMA_VOCAB_TYPE_BPE && type != LLAMA_VOCAB_TYPE_SPM) return 0;
  size_t most = 4;  // of a character that the vocabulary does not have
  for (int32_t token = 0; token < info_.num_vocab; ++token) most = std::max(most, Piece(token).size());
  return most;
}

bool HostModel::IsControl(int32_t token) const {
  return llama_vocab_is_control(llama_model_get_vocab(model_), token);
}

bool HostModel::IsEndOfGeneration(int32_t token) const {
  return llama_vocab_is_eog(llama_model_get_vocab(model_), token);
}

bool HostModel::has_chat_template() const { return !private_->chat_template.empty(); }
bool HostModel::knows_chat_template() const {
  return has_chat_template() && (private_->jinja || KnowsTemplate(private_->chat_template));
}

std::string HostModel::bos_text() const {
  const llama_token token = llama_vocab_bos(llama_model_get_vocab(model_));
  return token == LLAMA_TOKEN_NULL ? std::string() : Piece(token);
}
std::string HostModel::eos_text() const {
  const llama_token token = llama_vocab_eos(llama_model_get_vocab(model_));
  return token == LLAMA_TOKEN_NULL ? std::string() : Piece(token);
}

static_assert(LLAMA_TOKEN_NULL == -1);
int32_t HostModel::bos_token() const { return llama_vocab_bos(llama_model_get_vocab(model_)); }
int32_t HostModel::eos_token() const { return llama_vocab_eos(llama_model_get_vocab(model_)); }
int32_t HostModel::newline_token() const { return llama_vocab_nl(llama_model_get_vocab(model_)); }
bool HostModel::adds_bos() const { return llama_vocab_get_add_bos(llama_model_get_vocab(model_)); }

std::vector<std::pair<std::string, std::string>> HostModel::ListMetadata() const {
  return ListMetadataOf(model_, info_.overrides);
}

// A name of libllama's stays one; a text is Jinja if it can be.
void HostModel::ReadChatTemplate() {
  if (!LooksLikeJinja(private_->chat_template)) return;
  auto parsed = ChatTemplate::Parse(private_->chat_template, bos_text(), eos_text());
  if (parsed) private_->jinja.emplace(std::move(*parsed));
}

// What does not end, or ends the process, does so here.
void HostModel::TryChatTemplate() const {
  if (!private_->jinja) return;
  const ChatMessage messages[] = {{"system", "a"}, {"user", "b"}, {"assistant", "c"}, {"user", "d"}};
  (void)private_->jinja->Apply(messages, true);
  (void)private_->jinja->Apply(std::span(messages).subspan(1, 1), true);
  const ChatMessage call[] = {
      {"user", "a"}, {"assistant", "", {{"b", "c", R"({"d":1})"}}}, {"tool", "e", {}, "b", "c"}};
  (void)private_->jinja->Apply(call, true,
                               R"([{"type":"function","function":{"name":"c","description":"","parameters":{}}}])");
}

bool HostModel::SupportsGpu() {
  InitLlamaOnce();
  return llama_supports_gpu_offload();
}

const std::string& HostModel::chat_template() const { return private_->chat_template; }

Result<std::string> HostModel::ApplyChatTemplate(std::span<const ChatMessage> messages, bool add_assistant,
                                                 const std::string& tools) const {
  if (!has_chat_template()) return Unsupported(info_.path + " has no chat template");
  if (private_->jinja) {
    Result<std::string> text = private_->jinja->Apply(messages, add_assistant, tools);
    if (text || !KnowsTemplate(private_->chat_template)) return text;
  }
  // libllama's templates end at a NUL: a byte that UTF-8 never has stands for it meanwhile.
  constexpr char kForNul = '\xff';
  std::vector<ChatMessage> safe(messages.begin(), messages.end());
  const auto has = [&safe](char byte) {
    return std::any_of(safe.begin(), safe.end(), [byte](const ChatMessage& message) {
      return message.role.find(byte) != std::string::npos || message.content.find(byte) != std::string::npos;
    });
  };
  const bool has_nul = has('\0');
  if (has_nul && has(kForNul)) return InvalidArgument("the messages are not valid UTF-8");
  for (ChatMessage& message : safe) {
    std::replace(message.role.begin(), message.role.end(), '\0', kForNul);
    std::replace(message.content.begin(), message.content.end(), '\0', kForNul);
  }
  std::vector<llama_chat_message> chat;
  size_t bytes = 256;
  for (const ChatMessage& message : safe) {
    chat.push_back({message.role.c_str(), message.content.c_str()});
    bytes += message.role.size() + 2 * message.content.size() + 64;
  }
  std::string text(bytes, '\0');
  for (int attempt = 0; attempt < 2; ++attempt) {
    const int32_t length = llama_chat_apply_template(private_->chat_template.c_str(), chat.data(), chat.size(),
                                                     add_assistant, text.data(), static_cast<int32_t>(text.size()));
    if (length < 0) {
      return Unsupported("the chat template of " + info_.path +
                         " is neither valid Jinja nor of a kind that libllama knows: "
                         "name one with --chat-template, or give the text as it is with --raw");
    }
    const bool fits = static_cast<size_t>(length) <= text.size();
    text.resize(static_cast<size_t>(length));
    if (!fits) continue;
    if (has_nul) std::replace(text.begin(), text.end(), kForNul, '\0');
    return text;
  }
  return Unsupported("the chat template of " + info_.path + " could not be applied");
}

std::shared_ptr<const std::vector<float>> HostModel::OutputProjection(int layer) const {
  return private_->projections.Get(info_, layer);
}

}  // namespace pith
