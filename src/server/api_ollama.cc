// Ollama's /api: NDJSON streams, durations in nanoseconds.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/escaped.h"
#include "base/json_text.h"
#include "server/answer.h"
#include "server/api.h"
#include "server/infill.h"
#include "server/members.h"

namespace pith::server {
namespace {

using Clock = std::chrono::steady_clock;

int64_t Nanoseconds(double seconds) { return static_cast<int64_t>(seconds * 1e9); }

Json CallsJson(const std::vector<ChatToolCall>& calls) {
  Json list = Json::array();
  for (const ChatToolCall& call : calls) {
    list.push_back({{"id", call.id},
                    {"function", {{"name", call.name}, {"arguments", Json::parse(call.arguments, nullptr, false)}}}});
  }
  return list;
}

class OllamaWriter final : public AnswerWriter {
 public:
  OllamaWriter(Call& call, const ChatRequest& request, bool is_chat, std::string name)
      : model_(call.context.model),
        exchange_(call.exchange),
        stream_(request.stream),
        is_chat_(is_chat),
        wants_logprobs_(request.base.generation.num_logprobs >= 0),
        name_(std::move(name)),
        prompt_(is_chat ? std::vector<int32_t>() : request.prompts.front()) {}

  void Begin(const RequestUsage&, int) override {
    if (stream_) exchange_->BeginStream("application/x-ndjson");
  }

  void Text(Delta delta) override {
    context_.insert(context_.end(), delta.tokens.begin(), delta.tokens.end());
    if (delta.text.empty() && !wants_logprobs_) return;
    Json line = Line(std::move(delta.text), {}, false);
    if (wants_logprobs_) line["logprobs"] = LogprobsJson(model_, delta.logprobs);
    exchange_->Write(JsonText(line) + "\n");
  }

  void Ended(ChoiceEnd end) override {
    if (stream_ && (!end.text.empty() || !end.calls.empty()))
      exchange_->Write(JsonText(Line(end.text, end.calls, false)) + "\n");
    end_ = std::move(end);
  }

  void Finished(const AnswerTotals& totals) override {
    Json line = stream_ ? Line("", {}, true) : Line(end_.text, end_.calls, true);
    const bool complete = end_.stop == StopReason::kEnd || end_.stop == StopReason::kStopString;
    line["done_reason"] = complete ? "stop" : "length";
    if (!is_chat_) {
      std::vector<int32_t> context = prompt_;
      context.insert(context.end(), context_.begin(), context_.end());
      context.insert(context.end(), end_.tokens.begin(), end_.tokens.end());
      line["context"] = context;
    }
    if (wants_logprobs_ && !stream_) line["logprobs"] = LogprobsJson(model_, end_.logprobs);
    const double total = std::chrono::duration<double>(Clock::now() - start_).count();
    line["total_duration"] = Nanoseconds(total);
    line["load_duration"] = Nanoseconds(totals.times.queued);
    line["prompt_eval_count"] = totals.usage.prompt_tokens;
    line["prompt_eval_duration"] = Nanoseconds(totals.times.prompt);
    line["eval_count"] = totals.usage.completion_tokens;
    line["eval_duration"] = Nanoseconds(totals.times.generation);
    line["kv"] = KvJson(totals.cache);
    if (!stream_) return exchange_->Send(JsonResponse(line));
    exchange_->Write(JsonText(line) + "\n");
    exchange_->EndStream();
  }

  void Failed(const Error&, HttpResponse response, bool begun) override {
    if (!stream_ || !begun) return exchange_->Send(std::move(response));
    exchange_->Write(response.body + "\n");
    exchange_->EndStream();
  }

 private:
  Json Line(std::string text, const std::vector<ChatToolCall>& calls, bool done) const {
    Json line = {{"model", name_}, {"created_at", TimestampNow()}};
    if (is_chat_) {
      line["message"] = {{"role", "assistant"}, {"content", std::move(text)}};
      if (!calls.empty()) line["message"]["tool_calls"] = CallsJson(calls);
    } else {
      line["response"] = std::move(text);
    }
    line["done"] = done;
    return line;
  }

  const ServedModel& model_;
  std::shared_ptr<HttpExchange> exchange_;
  bool stream_, is_chat_, wants_logprobs_;
  std::string name_;
  std::vector<int32_t> prompt_, context_;
  Clock::time_point start_ = Clock::now();
  ChoiceEnd end_;
};

// "json", or a schema.
Status ReadOllamaFormat(JsonReader& reader, ChatRequest& request) {
  const Json* format = reader.Find("format");
  if (format == nullptr || (format->is_string() && format->get<std::string>().empty())) return {};
  if (format->is_object())
    request.schema = JsonText(*format);
  else if (format->is_string() && format->get<std::string>() == "json")
    request.schema = R"({"type":"object"})";
  else
    reader.Fail("format", "must be \"json\" or a JSON schema");
  return reader.status();
}

Status ReadOptions(JsonReader& outer, const ServedModel& model, ChatRequest& request) {
  const Json* options = outer.Object("options");
  PITH_RETURN_IF_ERROR(outer.status());
  if (options == nullptr) return {};
  JsonReader reader(*options, "options.");
  reader.Integer("num_predict", -2, INT32_MAX, request.base.generation.max_tokens);
  request.base.generation.max_tokens = std::max(request.base.generation.max_tokens, -1);
  CheckMembers(reader, kOllamaOptions);
  ReadStops(reader, "stop", request.base.generation.stops);
  ReadSampling(reader, model, SamplingRules::kLlama, request.base.sampling);
  return reader.status();
}

struct OllamaExtras {
  std::string name;
  std::optional<double> keep_seconds;
  bool unloads() const { return keep_seconds == 0.0; }
};

Status ReadShared(JsonReader& reader, const ServedModel& model, ChatRequest& request, OllamaExtras& extras) {
  reader.Require("model");
  reader.Text("model", extras.name);
  request.stream = true;
  reader.Bool("stream", request.stream);
  bool logprobs = false;
  int top = 0;
  CheckMembers(reader, kOllamaMembers);
  reader.Bool("logprobs", logprobs);
  reader.Integer("top_logprobs", 0, 20, top);
  if (logprobs) request.base.generation.num_logprobs = top;
  PITH_RETURN_IF_ERROR(ReadKeepAlive(reader, extras.keep_seconds));
  PITH_RETURN_IF_ERROR(ReadOllamaFormat(reader, request));
  PITH_RETURN_IF_ERROR(ReadOptions(reader, model, request));
  return ReadOwnFields(reader, model, request);
}

// Nothing is asked: the client wants the model in memory, or out of it.
void ReplyLoaded(Call& call, const OllamaExtras& extras, bool is_chat) {
  Json line = {{"model", extras.name}, {"created_at", TimestampNow()}};
  if (is_chat)
    line["message"] = {{"role", "assistant"}, {"content", ""}};
  else
    line["response"] = "";
  line["done"] = true;
  line["done_reason"] = extras.unloads() ? "unload" : "load";
  call.exchange->Send({.status = 200, .body = JsonText(line) + "\n"});
}

bool HasImages(const JsonReader& reader) {
  const Json* images = reader.Find("images");
  return images != nullptr && !(images->is_array() && images->empty());
}

Status ReadGenerate(JsonReader& reader, const ServedModel& model, ChatRequest& request, bool& is_empty) {
  std::string prompt, system, suffix, own_template;
  bool raw = false;
  reader.Text("prompt", prompt);
  reader.Text("system", system);
  ReadSuffix(reader, model, suffix);
  reader.Text("template", own_template);
  reader.Bool("raw", raw);
  if (!own_template.empty()) reader.Fail("template", "is not supported: the model's own is used, or none with 'raw'");
  if (HasImages(reader)) reader.Fail("images", "are not supported: this model reads text alone");
  const Json* context = reader.Array("context");
  if (raw && (!system.empty() || (context != nullptr && !context->empty())))
    reader.Fail("raw", "is a prompt as it is, which has no 'system' and no 'context'");
  PITH_RETURN_IF_ERROR(reader.status());
  is_empty = prompt.empty();
  if (is_empty) return {};
  std::vector<int32_t> tokens;
  if (!suffix.empty()) {  // as in the templates of models that do that, system message and context have no place
    PITH_ASSIGN_OR_RETURN(
        tokens, InfillPrompt(model, {.prefix = prompt, .suffix = suffix}, request.base.generation.max_tokens));
    request.prompts.push_back(std::move(tokens));
    return {};
  }
  if (context != nullptr) {
    PITH_ASSIGN_OR_RETURN(tokens, ReadTokens(*context, "context", model.info.num_vocab));
  }
  std::string text = prompt;
  if (!raw && model.text->has_template()) {
    if (!system.empty()) request.messages.push_back({"system", system});
    request.messages.push_back({"user", prompt});
    if (tokens.empty()) return {};
    PITH_ASSIGN_OR_RETURN(text, RenderPrompt(model, request, true));
    request.messages.clear();
  }
  PITH_ASSIGN_OR_RETURN(const auto more, TokenizePrompt(model, request, text, tokens.empty()));
  tokens.insert(tokens.end(), more.begin(), more.end());
  request.prompts.push_back(std::move(tokens));
  return {};
}

Status ReadOllamaMessages(JsonReader& reader, ChatRequest& request, bool& is_empty) {
  const Json* list = reader.Array("messages");
  PITH_RETURN_IF_ERROR(reader.status());
  is_empty = list == nullptr || list->empty();
  if (is_empty) return {};
  for (size_t i = 0; i < list->size(); ++i) {
    const std::string at = fmt::format("messages[{}]", i);
    if (!(*list)[i].is_object()) return InvalidArgument(fmt::format("'{}' must be an object", at));
    JsonReader inner((*list)[i], at + ".");
    if (HasImages(inner)) inner.Fail("images", "are not supported: this model reads text alone");
    PITH_RETURN_IF_ERROR(inner.status());
    Json message = (*list)[i];
    if (message.contains("tool_name")) message["name"] = message["tool_name"];
    if (!message.contains("content")) message["content"] = "";
    if (!message.contains("tool_call_id")) message["tool_call_id"] = "";  // Ollama's results have none
    std::vector<ChatMessage> one;
    const Status read = ReadMessages(Json::array({message}), "messages", one);
    if (!read) {
      std::string text = read.error().message;
      if (const size_t first = text.find("messages[0]"); first != std::string::npos) text.replace(first, 11, at);
      return InvalidArgument(text);
    }
    request.messages.push_back(std::move(one.front()));
  }
  return {};
}

void Answer(Call& call, ChatRequest request, bool is_chat, const OllamaExtras& extras) {
  if (const Status ready = Prepare(call.context, request); !ready) return call.Fail(ready.error());
  auto writer = std::make_unique<OllamaWriter>(call, request, is_chat, extras.name);
  StartAnswer(call, std::move(request), std::move(writer));
}

Json DetailsJson(const ServedModel& model) {
  const std::string& text = model.info.description;  // "llama 135M Q4_1"
  const size_t last = text.rfind(' ');
  return {{"parent_model", ""},
          {"format", "gguf"},
          {"family", model.info.architecture},
          {"families", Json::array({model.info.architecture})},
          {"parameter_size", fmt::format("{:.2f}M", static_cast<double>(model.info.num_params) / 1e6)},
          {"quantization_level", last == std::string::npos ? "" : text.substr(last + 1)}};
}

Json TagJson(const ModelState& state) {
  Json tag = {{"name", state.file.id},
              {"model", state.file.id},
              {"modified_at", TimestampOf(state.file.modified)},
              {"size", state.file.bytes},
              {"digest", ""},
              {"details", {{"parent_model", ""}, {"format", "gguf"}}}};
  if (state.loaded) tag["details"] = DetailsJson(state.loaded->context->model);
  return tag;
}

// "1h30m", "10s", "300ms", "-1s"; the number of seconds, and what is left behind the last unit is wrong.
std::optional<double> ParseDuration(const std::string& text) {
  constexpr std::pair<std::string_view, double> kUnits[] = {{"ns", 1e-9}, {"us", 1e-6}, {"ms", 1e-3},
                                                            {"s", 1},     {"m", 60},    {"h", 3600}};
  const char* at = text.c_str();
  const double sign = *at == '-' ? -1 : 1;
  at += *at == '-' || *at == '+' ? 1 : 0;
  if (std::string_view(at) == "0") return 0.0;
  double sum = 0;
  do {
    double number = 0;
    const auto [end, error] = std::from_chars(at, text.c_str() + text.size(), number, std::chars_format::fixed);
    if (error != std::errc()) return std::nullopt;
    size_t length = 0;
    while (end[length] >= 'a' && end[length] <= 'z') ++length;
    const auto unit = std::ranges::find(kUnits, std::string_view(end, length),
                                        &std::pair<std::string_view, double>::first);
    if (unit == std::end(kUnits)) return std::nullopt;
    sum += number * unit->second;
    at = end + length;
  } while (*at != '\0');
  return sign * sum;
}

}  // namespace

Status ReadKeepAlive(JsonReader& reader, std::optional<double>& seconds) {
  const Json* value = reader.Find("keep_alive");
  if (value == nullptr) return {};
  if (value->is_number())
    seconds = value->get<double>();
  else if (value->is_string())
    seconds = ParseDuration(value->get<std::string>());
  if (!seconds || !std::isfinite(*seconds))
    reader.Fail("keep_alive", "must be a duration such as \"5m\", or a number of seconds");
  return reader.status();
}

void OllamaGenerate(Call& call) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  ChatRequest request = NewRequest(call.context.model, call.tenant);
  OllamaExtras extras;
  bool is_empty = false;
  JsonReader reader(*body);
  Status status = ReadShared(reader, call.context.model, request, extras);
  if (status) status = ReadGenerate(reader, call.context.model, request, is_empty);
  if (!status) return call.Fail(status.error());
  if (extras.keep_seconds) call.catalog.KeepAlive(call.context.model.id, *extras.keep_seconds);
  if (is_empty) return ReplyLoaded(call, extras, false);
  Answer(call, std::move(request), false, extras);
}

void OllamaChat(Call& call) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  ChatRequest request = NewRequest(call.context.model, call.tenant);
  OllamaExtras extras;
  bool is_empty = false;
  JsonReader reader(*body);
  Status status = ReadShared(reader, call.context.model, request, extras);
  if (status) status = ReadOllamaMessages(reader, request, is_empty);
  if (status) status = ReadTools(reader, request);
  if (status) status = ReadToolChoice(reader, request);
  if (!status) return call.Fail(status.error());
  if (extras.keep_seconds) call.catalog.KeepAlive(call.context.model.id, *extras.keep_seconds);
  if (is_empty) return ReplyLoaded(call, extras, true);
  Answer(call, std::move(request), true, extras);
}

void OllamaTags(Call& call) {
  Json list = Json::array();
  for (const ModelState& state : call.catalog.List()) list.push_back(TagJson(state));
  call.Reply({{"models", std::move(list)}});
}

void OllamaPs(Call& call) {
  constexpr double kNever = 100.0 * 365 * 86400;
  Json list = Json::array();
  for (const ModelState& state : call.catalog.List()) {
    if (!state.loaded) continue;
    Json tag = TagJson(state);
    const double seconds = state.expires_seconds < 0 ? kNever : state.expires_seconds;
    tag["expires_at"] = TimestampOf(UnixTime() + static_cast<int64_t>(std::min(seconds, kNever)));
    tag["size_vram"] = 0;
    tag["context_length"] = state.loaded->context->model.num_ctx;
    list.push_back(std::move(tag));
  }
  call.Reply({{"models", std::move(list)}});
}

void OllamaVersion(Call& call) { call.Reply({{"version", PITH_VERSION}}); }

void OllamaShow(Call& call) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  JsonReader reader(*body);
  std::string name;
  reader.Text("name", name);  // its old name
  reader.Text("model", name);
  if (name.empty()) reader.Require("model");
  if (const Status status = reader.status(); !status) return call.Fail(status.error());
  const ServedModel& model = call.context.model;
  // A server of one model takes any name elsewhere, but has nothing to show of another one.
  if (name != model.id && name != model.id + ":latest") {
    return call.Fail(404, fmt::format("model '{}' not found; this server has '{}'", Escaped(name, 100), model.id));
  }
  const std::string& architecture = model.info.architecture;
  Json capabilities = model.generates ? Json::array({"completion", "tools", "embedding"}) : Json::array({"embedding"});
  if (model.generates && model.fim.complete()) capabilities.push_back("insert");
  call.Reply({{"modelfile", "FROM " + model.id + "\n"},
              {"parameters", ""},
              {"template", model.chat_template},
              {"details", DetailsJson(model)},
              {"model_info",
               {{"general.architecture", architecture},
                {"general.parameter_count", model.info.num_params},
                {architecture + ".context_length", model.info.trained_ctx},
                {architecture + ".block_count", model.info.num_layers},
                {architecture + ".vocab_size", model.info.num_vocab}}},
              {"capabilities", std::move(capabilities)},
              {"modified_at", TimestampOf(model.created)}});
}

}  // namespace pith::server
