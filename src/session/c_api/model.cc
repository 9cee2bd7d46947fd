#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/cores.h"
#include "base/json_text.h"
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
  PITH_ASSIGN_OR_RETURN(own.overrides.rope, ParseRope(Text(options.rope)));
  PITH_ASSIGN_OR_RETURN(const std::vector<std::string> overrides,
                        ReadTexts(options.overrides, options.num_overrides, "overrides"));
  for (const std::string& text : overrides) {
    PITH_ASSIGN_OR_RETURN(std::vector<MetadataOverride> parsed, ParseMetadataOverrides(text));
    std::ranges::move(parsed, std::back_inserter(own.overrides.metadata));
  }
  static_assert(static_cast<int>(ModelUse::kVocabulary) == PITH_USE_VOCABULARY);
  if (options.use < PITH_USE_TEXT || options.use > PITH_USE_VOCABULARY) {
    return InvalidArgument(fmt::format("a model has no use {}", options.use));
  }
  own.use = static_cast<ModelUse>(options.use);
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

using Json = nlohmann::json;

// Member `name` as a text: "" where it is missing or null, the texts of an array of parts one after the other.
Result<std::string> TextMember(const Json& object, const char* name) {
  const auto at = object.find(name);
  if (at == object.end() || at->is_null()) return std::string();
  if (at->is_string()) return at->get<std::string>();
  std::string all;
  for (const Json& part : *at) {
    const bool is_text = part.is_object() && part.contains("text") && part.at("text").is_string();
    if (!is_text)
      return InvalidArgument(fmt::format("'{}' of a message must be a text, or an array of text parts", name));
    all += part.at("text").get<std::string>();
  }
  if (at->is_array()) return all;
  return InvalidArgument(fmt::format("'{}' of a message must be a text, or an array of text parts", name));
}

Result<ChatToolCall> ReadToolCall(const Json& call) {
  ChatToolCall own;
  if (!call.is_object() || !call.contains("function") || !call.at("function").is_object()) {
    return InvalidArgument("each of 'tool_calls' must be an object with a 'function'");
  }
  const Json& function = call.at("function");
  PITH_ASSIGN_OR_RETURN(own.id, TextMember(call, "id"));
  PITH_ASSIGN_OR_RETURN(own.name, TextMember(function, "name"));
  if (function.contains("arguments") && function.at("arguments").is_object()) {
    own.arguments = JsonText(function.at("arguments"));
  } else {
    PITH_ASSIGN_OR_RETURN(own.arguments, TextMember(function, "arguments"));
  }
  return own;
}

Result<std::vector<ChatMessage>> ReadMessages(const char* text) {
  const Json list = JsonOf(text);
  if (!list.is_array()) return InvalidArgument("messages must be a JSON array");
  std::vector<ChatMessage> all;
  for (const Json& message : list) {
    if (!message.is_object() || !message.contains("role") || !message.at("role").is_string())
      return InvalidArgument("each message must be an object with a 'role'");
    ChatMessage own;
    own.role = message.at("role").get<std::string>();
    PITH_ASSIGN_OR_RETURN(own.content, TextMember(message, "content"));
    PITH_ASSIGN_OR_RETURN(own.tool_call_id, TextMember(message, "tool_call_id"));
    PITH_ASSIGN_OR_RETURN(own.name, TextMember(message, "name"));
    const auto calls = message.find("tool_calls");
    if (calls != message.end() && calls->is_array()) {
      for (const Json& call : *calls) {
        PITH_ASSIGN_OR_RETURN(ChatToolCall one, ReadToolCall(call));
        own.tool_calls.push_back(std::move(one));
      }
    }
    all.push_back(std::move(own));
  }
  return all;
}

// Empty for none.
Result<std::string> ReadTools(const char* text) {
  if (text == nullptr) return std::string();
  const Json list = JsonOf(text);
  if (!list.is_array()) return InvalidArgument("tools must be a JSON array");
  return list.empty() ? std::string() : JsonText(list);
}

// tokenize: (text) -> tokens.
template <typename Tokenize>
pith_status Tokenized(const pith_model* model, const char* text, size_t length, int32_t* tokens, size_t capacity,
                      size_t* count, const Tokenize& tokenize) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(count, "place for the number of tokens"));
    *count = 0;
    PITH_RETURN_IF_ERROR(Require(model, "model"));
    if (length > 0) PITH_RETURN_IF_ERROR(Require(text, "text"));
    if (capacity > 0) PITH_RETURN_IF_ERROR(Require(tokens, "place for tokens"));
    PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> own,
                          tokenize(length > 0 ? std::string_view(text, length) : std::string_view()));
    std::copy_n(own.begin(), std::min(own.size(), capacity), tokens);
    *count = own.size();
    return {};
  });
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
    full.hybrid = own.hybrid && CountLayers(own, LayerKind::kNone) < static_cast<int>(own.layers.size());
    full.has_chat_template = model->state->model->has_chat_template();
    full.architecture = own.architecture.c_str();
    full.description = own.description.c_str();
    full.num_embd = own.hidden_dim;
    full.bos_token = model->state->model->bos_token();
    full.eos_token = model->state->model->eos_token();
    full.newline_token = model->state->model->newline_token();
    full.adds_bos = model->state->model->adds_bos();
    full.chat_template = model->state->model->chat_template().c_str();
    return Fill(full, info, "place for the model's description");
  });
}

void pith_model_list_metadata(const pith_model* model, void (*visit)(void* user, const char* key, const char* value),
                              void* user) {
  (void)Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(model, "model"));
    if (visit == nullptr) return InvalidArgument("there is no function that takes metadata");
    for (const auto& [key, value] : model->state->model->ListMetadata()) visit(user, key.c_str(), value.c_str());
    return {};
  });
}

pith_status pith_tokenize(const pith_model* model, const char* text, size_t length, bool begins, bool special,
                          int32_t* tokens, size_t capacity, size_t* count) {
  return Tokenized(model, text, length, tokens, capacity, count,
                   [&](std::string_view view) { return model->state->text->Tokenize(view, begins, special); });
}

pith_status pith_tokenize_whole(const pith_model* model, const char* text, size_t length, int32_t* tokens,
                                size_t capacity, size_t* count) {
  return Tokenized(model, text, length, tokens, capacity, count,
                   [&](std::string_view view) { return model->state->model->TokenizeWhole(view); });
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

bool pith_token_is_control(const pith_model* model, int32_t token) {
  return Guarded([&] { return CheckToken(model, token); }) == PITH_OK && model->state->model->IsControl(token);
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

pith_status pith_apply_template_json(const pith_model* model, const char* messages, const char* tools,
                                     bool opens_answer, char* buffer, size_t capacity, size_t* length) {
  return Guarded([&]() -> Status {
    if (length != nullptr) *length = 0;
    PITH_RETURN_IF_ERROR(Require(model, "model"));
    PITH_RETURN_IF_ERROR(Require(messages, "messages"));
    PITH_ASSIGN_OR_RETURN(const std::vector<ChatMessage> history, ReadMessages(messages));
    PITH_ASSIGN_OR_RETURN(const std::string own_tools, ReadTools(tools));
    PITH_ASSIGN_OR_RETURN(const std::string text,
                          model->state->model->ApplyChatTemplate(history, opens_answer, own_tools));
    const size_t needed = CopyText(text, buffer, capacity);
    if (length != nullptr) *length = needed;
    return {};
  });
}

}  // extern "C"
