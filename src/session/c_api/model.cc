#include <fmt/format.h>

#include <utility>

#include "base/cores.h"
#include "session/c_api/handles.h"

namespace pith::c_api {
namespace {

Result<HostModelOptions> ReadModelOptions(const pith_model_options* given) {
  PITH_ASSIGN_OR_RETURN(const pith_model_options options, Read(given, "options of the model"));
  if (options.num_threads < 0 || options.num_gpu_layers < 0) {
    return InvalidArgument("num_threads and num_gpu_layers must not be negative");
  }
  HostModelOptions own;
  own.num_threads = options.num_threads > 0 ? options.num_threads : PhysicalCores();
  own.num_gpu_layers = options.num_gpu_layers;
  own.chat_template = Text(options.chat_template);
  PITH_ASSIGN_OR_RETURN(own.lora_paths, ReadTexts(options.lora_paths, options.num_loras, "adapters"));
  if (options.lora_scales != nullptr)
    own.lora_scales.assign(options.lora_scales, options.lora_scales + options.num_loras);
  own.own_products = !options.libllama_products;
  own.try_in_child = !options.trusted;
  if (options.progress != nullptr) {
    own.progress = [progress = options.progress, user = options.progress_user](float share) {
      constexpr uint64_t kWhole = 1000;
      return progress(user, static_cast<uint64_t>(share * static_cast<float>(kWhole)), kWhole);
    };
  }
  return own;
}

Status CheckToken(const pith_model* model, int32_t token) {
  PITH_RETURN_IF_ERROR(Require(model, "model"));
  if (token >= 0 && token < model->state->model->info().num_vocab) return {};
  return InvalidArgument(fmt::format("{} is no token of the vocabulary", token));
}

}  // namespace
}  // namespace pith::c_api

using namespace pith;         // NOLINT: functions of C have no namespace of their own
using namespace pith::c_api;  // NOLINT

extern "C" {

pith_status pith_model_load(const char* path, const pith_model_options* options, pith_model** model) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(model, "place for the model"));
    *model = nullptr;
    PITH_RETURN_IF_ERROR(Require(path, "path of a model"));
    PITH_ASSIGN_OR_RETURN(const HostModelOptions own, ReadModelOptions(options));
    auto state = std::make_shared<ModelState>();
    PITH_ASSIGN_OR_RETURN(state->model, HostModel::Load(path, own));
    state->text = std::make_unique<HostText>(state->model);
    *model = new pith_model{std::move(state)};
    return {};
  });
}

void pith_model_free(pith_model* model) { delete model; }

pith_status pith_model_get_info(const pith_model* model, pith_model_info* info) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(model, "model"));
    const ModelInfo& own = model->state->model->info();
    pith_model_info full{};
    full.num_layers = own.num_layers;
    full.num_vocab = own.num_vocab;
    full.trained_ctx = own.trained_ctx;
    full.window = own.window;
    full.file_bytes = own.file_bytes;
    full.num_params = own.num_params;
    full.recurrent_bytes = own.recurrent_bytes;
    full.hybrid = own.hybrid;
    full.has_chat_template = model->state->model->has_chat_template();
    full.architecture = own.architecture.c_str();
    full.description = own.description.c_str();
    return Fill(full, info, "place for the model's description");
  });
}

pith_status pith_tokenize(const pith_model* model, const char* text, size_t length, bool begins, bool special,
                          int32_t* tokens, size_t capacity, size_t* count) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(count, "place for the number of tokens"));
    *count = 0;
    PITH_RETURN_IF_ERROR(Require(model, "model"));
    if (length > 0) PITH_RETURN_IF_ERROR(Require(text, "text"));
    if (capacity > 0) PITH_RETURN_IF_ERROR(Require(tokens, "place for tokens"));
    const std::string_view view = length > 0 ? std::string_view(text, length) : std::string_view();
    PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> own, model->state->text->Tokenize(view, begins, special));
    std::copy_n(own.begin(), std::min(own.size(), capacity), tokens);
    *count = own.size();
    return {};
  });
}

size_t pith_token_piece(const pith_model* model, int32_t token, char* buffer, size_t capacity) {
  size_t length = 0;
  (void)CopyText({}, buffer, capacity);
  (void)Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(CheckToken(model, token));
    length = CopyText(model->state->model->Piece(token), buffer, capacity);
    return {};
  });
  return length;
}

bool pith_token_ends(const pith_model* model, int32_t token) {
  return Guarded([&] { return CheckToken(model, token); }) == PITH_OK && model->state->model->IsEndOfGeneration(token);
}

pith_status pith_apply_template(const pith_model* model, const pith_message* messages, size_t num_messages,
                                bool opens_answer, char* buffer, size_t capacity, size_t* length) {
  return Guarded([&]() -> Status {
    if (length != nullptr) *length = 0;
    PITH_RETURN_IF_ERROR(Require(model, "model"));
    PITH_ASSIGN_OR_RETURN(const std::vector<pith_message> own, ReadAll(messages, num_messages, "messages"));
    std::vector<ChatMessage> history;
    for (const pith_message& message : own) {
      PITH_RETURN_IF_ERROR(Require(message.role, "role of a message"));
      PITH_RETURN_IF_ERROR(Require(message.content, "content of a message"));
      history.push_back({message.role, message.content});
    }
    PITH_ASSIGN_OR_RETURN(const std::string text, model->state->model->ApplyChatTemplate(history, opens_answer));
    const size_t needed = CopyText(text, buffer, capacity);
    if (length != nullptr) *length = needed;
    return {};
  });
}

}  // extern "C"
