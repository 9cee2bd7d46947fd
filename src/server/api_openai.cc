// OpenAI's /v1/chat/completions, /v1/completions and /v1/models.
#include <algorithm>
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

constexpr int kMostChoices = 16;
constexpr const char* kSse = "text/event-stream; charset=utf-8";

Json UsageJson(const RequestUsage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

Json CallJson(const ChatToolCall& call) {
  return {{"id", call.id}, {"type", "function"}, {"function", {{"name", call.name}, {"arguments", call.arguments}}}};
}

// What chat completions and text completions have in common: ids, streams and their ends.
class CompletionWriter : public AnswerWriter {
 public:
  CompletionWriter(Call& call, const ChatRequest& request, const char* id_prefix, const char* object)
      : model_(call.context.model),
        exchange_(call.exchange),
        stream_(request.stream),
        include_usage_(request.include_usage),
        wants_logprobs_(request.base.generation.num_logprobs >= 0),
        id_(RandomId(id_prefix)),
        object_(object),
        created_(UnixTime()) {}

  void Begin(const RequestUsage&, int) override {
    if (stream_) exchange_->BeginStream(kSse);
  }

  std::string Ping() override { return kSsePing; }

  void Finished(const AnswerTotals& totals) override {
    Json all = Frame();
    if (!stream_) {
      std::ranges::sort(choices_, {}, [](const Json& one) { return one.at("index").get<int>(); });
      all["choices"] = std::move(choices_);
      all["usage"] = UsageJson(totals.usage);
      AddTotals(all, totals);
      return exchange_->Send(JsonResponse(all));
    }
    // The last choice's end waits for this, so that the cache is in a stream's last chunks with or without usage.
    if (include_usage_) last_["usage"] = nullptr;
    AddTotals(last_, totals);
    exchange_->Write(Event(last_));
    if (include_usage_) {
      all["choices"] = Json::array();
      all["usage"] = UsageJson(totals.usage);
      AddTotals(all, totals);
      exchange_->Write(Event(all));
    }
    exchange_->Write("data: [DONE]\n\n");
    exchange_->EndStream();
  }

  void Failed(const Error& error, HttpResponse response, bool begun) override {
    if (!stream_ || !begun) return exchange_->Send(std::move(response));
    (void)error;
    exchange_->Write("data: " + response.body + "\n\n");
    exchange_->EndStream();
  }

 protected:
  Json Frame() const {
    return {{"id", id_},
            {"object", object_},
            {"created", created_},
            {"model", model_.id},
            {"system_fingerprint", "pith-" PITH_VERSION}};
  }

  // more: members beside the choice.
  void WriteChunk(Json choice, const Json& more = Json::object()) {
    Json chunk = Frame();
    chunk["choices"] = Json::array({std::move(choice)});
    if (include_usage_) chunk["usage"] = nullptr;
    chunk.update(more);
    exchange_->Write(Event(chunk));
  }
  void WriteText(Json choice, const Delta& delta) {
    WriteChunk(std::move(choice), delta.so_far ? Json{{"timings", TimingsJson(*delta.so_far)}} : Json::object());
  }
  // A choice's end: at once, but the last.
  void WriteEnd(Json choice, bool is_last) {
    if (!is_last) return WriteChunk(std::move(choice));
    last_ = Frame();
    last_["choices"] = Json::array({std::move(choice)});
  }

  static void AddTotals(Json& body, const AnswerTotals& totals) {
    body["kv"] = KvJson(totals.cache);
    body["timings"] = TimingsJson(totals);
  }

  const ServedModel& model_;
  std::shared_ptr<HttpExchange> exchange_;
  bool stream_, include_usage_, wants_logprobs_;
  std::string id_, object_;
  int64_t created_;
  std::vector<Json> choices_;
  Json last_;
};

class ChatWriter final : public CompletionWriter {
 public:
  ChatWriter(Call& call, const ChatRequest& request)
      : CompletionWriter(call, request, "chatcmpl-", request.stream ? "chat.completion.chunk" : "chat.completion"),
        num_choices_(request.base.num_choices) {}

  void Begin(const RequestUsage& usage, int slot) override {
    CompletionWriter::Begin(usage, slot);
    for (int i = 0; stream_ && i < num_choices_; ++i)
      WriteChunk(Choice(i, {{"role", "assistant"}, {"content", ""}}, nullptr, nullptr));
  }

  void Progress(const PromptProgress& progress) override {
    WriteChunk(Choice(0, Json::object(), nullptr, nullptr), {{"prompt_progress", ProgressJson(progress)}});
  }

  void Text(Delta delta) override {
    if (delta.text.empty() && !wants_logprobs_) return;
    WriteText(Choice(delta.choice, {{"content", delta.text}}, Logprobs(delta.logprobs), nullptr), delta);
  }

  void Ended(ChoiceEnd end) override {
    if (!stream_) {
      Json message = {{"role", "assistant"}, {"content", end.text}, {"refusal", nullptr}};
      if (!end.calls.empty()) {
        if (end.text.empty()) message["content"] = nullptr;
        for (const ChatToolCall& call : end.calls) message["tool_calls"].push_back(CallJson(call));
      }
      choices_.push_back({{"index", end.choice},
                          {"message", std::move(message)},
                          {"logprobs", Logprobs(end.logprobs)},
                          {"finish_reason", FinishReason(end)}});
      return;
    }
    if (!end.text.empty() || !end.logprobs.empty()) {
      WriteChunk(Choice(end.choice, {{"content", end.text}}, Logprobs(end.logprobs), nullptr));
    }
    for (size_t i = 0; i < end.calls.size(); ++i) {
      Json call = CallJson(end.calls[i]);
      call["index"] = i;
      WriteChunk(Choice(end.choice, {{"tool_calls", Json::array({std::move(call)})}}, nullptr, nullptr));
    }
    WriteEnd(Choice(end.choice, Json::object(), nullptr, FinishReason(end)), end.is_last);
  }

 private:
  static Json Choice(int index, Json delta, Json logprobs, Json reason) {
    return {{"index", index},
            {"delta", std::move(delta)},
            {"logprobs", std::move(logprobs)},
            {"finish_reason", std::move(reason)}};
  }
  Json Logprobs(const std::vector<TokenLogprobs>& logprobs) const {
    if (!wants_logprobs_) return nullptr;
    return {{"content", LogprobsJson(model_, logprobs)}, {"refusal", nullptr}};
  }

  int num_choices_;
};

// The legacy shape, with its own form of logprobs.
class TextWriter final : public CompletionWriter {
 public:
  TextWriter(Call& call, const ChatRequest& request, std::vector<std::string> echoes)
      : CompletionWriter(call, request, "cmpl-", "text_completion"),
        num_choices_(request.base.num_choices),
        echoes_(std::move(echoes)),
        offsets_(request.prompts.size() * static_cast<size_t>(request.base.num_choices)),
        echoed_(offsets_.size()) {
    if (!echoes_.empty()) prompts_ = request.prompts;
    of_prompts_.resize(request.prompts.size());
  }

  void PromptLogprobs(int prompt, std::vector<TokenLogprobs> logprobs) override {
    of_prompts_[static_cast<size_t>(prompt)] = std::move(logprobs);
  }

  void Progress(const PromptProgress& progress) override {
    WriteChunk(Choice(0, "", nullptr, nullptr), {{"prompt_progress", ProgressJson(progress)}});
  }

  void Text(Delta delta) override {
    const std::string echo = Echo(delta.choice);
    WriteText(Choice(delta.choice, echo + delta.text, Logprobs(delta.choice, delta.logprobs, !echo.empty()), nullptr),
              delta);
  }

  void Ended(ChoiceEnd end) override {
    const std::string echo = Echo(end.choice);
    Json logprobs = Logprobs(end.choice, end.logprobs, !echo.empty());
    if (!stream_) {
      choices_.push_back(Choice(end.choice, echo + end.text, std::move(logprobs), FinishReason(end)));
    } else {
      WriteEnd(Choice(end.choice, echo + end.text, std::move(logprobs), FinishReason(end)), end.is_last);
    }
  }

 private:
  static Json Choice(int index, std::string text, Json logprobs, Json reason) {
    return {{"index", index},
            {"text", std::move(text)},
            {"logprobs", std::move(logprobs)},
            {"finish_reason", std::move(reason)}};
  }

  // The prompt, in front of a choice's first text.
  std::string Echo(int choice) {
    if (echoes_.empty() || std::exchange(echoed_[static_cast<size_t>(choice)], char{1}) != 0) return {};
    return echoes_[static_cast<size_t>(choice / num_choices_)];
  }

  Json Logprobs(int choice, const std::vector<TokenLogprobs>& logprobs, bool with_prompt) {
    if (!wants_logprobs_) return nullptr;
    Json tokens = Json::array(), values = Json::array(), tops = Json::array(), offsets = Json::array();
    size_t& offset = offsets_[static_cast<size_t>(choice)];
    const auto add = [&](int32_t token) {
      const std::string piece = model_.text->Piece(token);
      tokens.push_back(piece);
      offsets.push_back(offset);
      offset += piece.size();
    };
    const auto add_scored = [&](const TokenLogprobs& one) {
      add(one.chosen.token);
      values.push_back(FiniteLogprob(one.chosen.logprob));
      Json top = Json::object();
      for (const TokenLogprob& other : one.top) top[model_.text->Piece(other.token)] = FiniteLogprob(other.logprob);
      tops.push_back(std::move(top));
    };
    if (with_prompt) {  // nothing stands before its first token
      const auto prompt = static_cast<size_t>(choice / num_choices_);
      add(prompts_[prompt].front());
      if (!echoes_[prompt].starts_with(tokens.front().get<std::string>())) offset = 0;  // BOS
      values.push_back(nullptr);
      tops.push_back(nullptr);
      for (const TokenLogprobs& one : of_prompts_[prompt]) add_scored(one);
    }
    for (const TokenLogprobs& one : logprobs) add_scored(one);
    return {{"tokens", std::move(tokens)},
            {"token_logprobs", std::move(values)},
            {"top_logprobs", std::move(tops)},
            {"text_offset", std::move(offsets)}};
  }

  int num_choices_;
  std::vector<std::string> echoes_;
  std::vector<std::vector<int32_t>> prompts_;
  std::vector<std::vector<TokenLogprobs>> of_prompts_;  // of each prompt's tokens but the first
  std::vector<size_t> offsets_;
  std::vector<char> echoed_;
};

// Members of both: model, n, stream, sampling, the server's own.
Status ReadCommon(JsonReader& reader, const ServedModel& model, ChatRequest& request) {
  std::string ignored;
  reader.Text("model", ignored);
  CheckMembers(reader, kOpenAiMembers);
  reader.Bool("stream", request.stream);
  PITH_RETURN_IF_ERROR(ReadStreamOptions(reader, request));
  ReadLlamaLimits(reader, kMostChoices, request);
  reader.Integer("n_predict", -1, INT32_MAX, request.base.generation.max_tokens);
  reader.Integer("max_tokens", -1, INT32_MAX, request.base.generation.max_tokens);
  ReadStops(reader, "stop", request.base.generation.stops);
  ReadSampling(reader, model, SamplingRules::kOpenAi, request.base.sampling);
  PITH_RETURN_IF_ERROR(reader.status());
  return ReadOwnFields(reader, model, request);
}

// llama-server's and vLLM's: what the template writes behind the last message.
Status ReadContinuation(JsonReader& reader, ChatRequest& request) {
  bool opens = false, continues = false;
  reader.Bool("add_generation_prompt", opens);
  reader.Bool("continue_final_message", continues);
  PITH_RETURN_IF_ERROR(reader.status());
  const bool is_assistants = request.messages.back().role == "assistant";
  if (continues && opens)
    reader.Fail("continue_final_message", "and 'add_generation_prompt' cannot both be true");
  else if (continues && (!is_assistants || !request.messages.back().tool_calls.empty()))
    reader.Fail("continue_final_message", "needs a last message of the assistant's without calls");
  if (reader.Find("continue_final_message") != nullptr) request.continues_last = continues;
  if (reader.Find("add_generation_prompt") != nullptr) request.opens_answer = opens || continues;
  return reader.status();
}

Status ReadChatLogprobs(JsonReader& reader, ChatRequest& request) {
  bool wanted = false;
  int top = 0;
  reader.Bool("logprobs", wanted);
  const bool has_top = reader.Find("top_logprobs") != nullptr;
  reader.Integer("top_logprobs", 0, 20, top);
  if (has_top && !wanted) reader.Fail("top_logprobs", "needs 'logprobs' to be true");
  if (wanted) request.base.generation.num_logprobs = top;
  return reader.status();
}

Status ReadChat(const Json& body, const ServedModel& model, ChatRequest& request) {
  JsonReader reader(body);
  reader.Require("messages");
  PITH_RETURN_IF_ERROR(reader.status());
  PITH_RETURN_IF_ERROR(ReadMessages(*reader.Find("messages"), "messages", request.messages));
  PITH_RETURN_IF_ERROR(CheckToolResults(request.messages));
  PITH_RETURN_IF_ERROR(ReadCommon(reader, model, request));
  PITH_RETURN_IF_ERROR(ReadContinuation(reader, request));
  CheckMembers(reader, kChatMembers);
  reader.Integer("max_completion_tokens", 1, INT32_MAX, request.base.generation.max_tokens);
  PITH_RETURN_IF_ERROR(ReadChatLogprobs(reader, request));
  PITH_RETURN_IF_ERROR(ReadTools(reader, request));
  PITH_RETURN_IF_ERROR(ReadToolChoice(reader, request));
  reader.Bool("parallel_tool_calls", request.parallel_calls);
  std::vector<std::string> modalities;
  reader.Texts("modalities", modalities);
  for (const std::string& one : modalities) {
    if (one != "text") reader.Fail("modalities", "must be text alone: this model writes no other");
  }
  if (const Json* format = reader.Find("response_format"); format != nullptr) {
    PITH_RETURN_IF_ERROR(ReadFormat(*format, "response_format", request.schema));
  }
  if (const Json* schema = reader.Object("json_schema"); schema != nullptr) request.schema = JsonText(*schema);
  return reader.status();
}

// Prompts that end where the answer begins, and `suffix` where it ends.
Status ReadInfillPrompts(const Json& prompt, const std::string& suffix, const ServedModel& model,
                         ChatRequest& request) {
  constexpr size_t kMostPrompts = 64;
  const Json list = prompt.is_array() ? prompt : Json::array({prompt});
  if (list.empty() || list.size() > kMostPrompts || !std::ranges::all_of(list, &Json::is_string)) {
    return InvalidArgument(
        fmt::format("'prompt' must be a string or up to {} of them beside a 'suffix'", kMostPrompts));
  }
  for (const Json& one : list) {
    PITH_ASSIGN_OR_RETURN(
        std::vector<int32_t> tokens,
        InfillPrompt(model, {.prefix = one.get<std::string>(), .suffix = suffix}, request.base.generation.max_tokens));
    request.prompts.push_back(std::move(tokens));
  }
  return {};
}

Status ReadCompletion(const Json& body, const ServedModel& model, ChatRequest& request,
                      std::vector<std::string>& echoes) {
  JsonReader reader(body);
  reader.Require("prompt");
  PITH_RETURN_IF_ERROR(reader.status());
  request.base.generation.max_tokens = 16;  // OpenAI's
  PITH_RETURN_IF_ERROR(ReadCommon(reader, model, request));
  bool echo = false;
  reader.Bool("echo", echo);
  if (const Json* count = reader.Find("logprobs"); count != nullptr && count->is_boolean()) {
    if (count->get<bool>()) request.base.generation.num_logprobs = 0;
  } else {
    reader.Integer("logprobs", 0, 20, request.base.generation.num_logprobs);
  }
  int best_of = request.base.num_choices;
  reader.Integer("best_of", 1, kMostChoices, best_of);
  if (best_of != request.base.num_choices) reader.Fail("best_of", "must be equal to 'n': all choices are given");
  std::string suffix;
  ReadSuffix(reader, model, suffix);
  if (!suffix.empty() && echo) reader.Fail("suffix", "and 'echo' cannot be asked for together");
  if (const Json* schema = reader.Object("json_schema"); schema != nullptr) request.schema = JsonText(*schema);
  if (const Json* format = reader.Find("response_format"); format != nullptr) {
    PITH_RETURN_IF_ERROR(ReadFormat(*format, "response_format", request.schema));
  }
  PITH_RETURN_IF_ERROR(reader.status());
  if (!suffix.empty()) return ReadInfillPrompts(*reader.Find("prompt"), suffix, model, request);
  PITH_RETURN_IF_ERROR(ReadPrompts(*reader.Find("prompt"), model, request, echoes));
  if (!echo) echoes.clear();
  if (echo) request.base.prompt_logprobs = request.base.generation.num_logprobs;
  return {};
}

Json ModelJson(const ModelState& state) {
  Json json = {{"id", state.file.id},
               {"object", "model"},
               {"created", state.file.modified},
               {"owned_by", "pith"},
               {"type", "model"},
               {"display_name", state.file.id},
               {"created_at", TimestampOf(state.file.modified)},
               {"status", {{"value", state.loaded ? "loaded" : "unloaded"}}}};
  if (!state.loaded) {
    json["meta"] = {{"size", state.file.bytes}};
    return json;
  }
  const ServedModel& model = state.loaded->context->model;
  json["meta"] = {{"n_vocab", model.info.num_vocab},         {"n_ctx", model.num_ctx},
                  {"n_ctx_train", model.info.trained_ctx},   {"n_embd", model.info.hidden_dim},
                  {"n_params", model.info.num_params},       {"size", model.info.file_bytes}};
  return json;
}

}  // namespace

void OpenAiChat(Call& call) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  ChatRequest request = NewRequest(call.context.model, call.tenant);
  if (const Status read = ReadChat(*body, call.context.model, request); !read) return call.Fail(read.error());
  if (const Status ready = Prepare(call.context, request); !ready) {
    return call.exchange->Send(LengthAwareError(call.context, call.dialect, request, ready.error()));
  }
  auto writer = std::make_unique<ChatWriter>(call, request);
  StartAnswer(call, std::move(request), std::move(writer));
}

void OpenAiChatTokens(Call& call) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  ChatRequest request = NewRequest(call.context.model, call.tenant);
  if (const Status read = ReadChat(*body, call.context.model, request); !read) return call.Fail(read.error());
  ReplyTokenCount(call, request, Json::object());
}

void OpenAiCompletions(Call& call) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  ChatRequest request = NewRequest(call.context.model, call.tenant);
  std::vector<std::string> echoes;
  Status status = ReadCompletion(*body, call.context.model, request, echoes);
  if (status) status = Prepare(call.context, request);
  if (!status) return call.exchange->Send(LengthAwareError(call.context, call.dialect, request, status.error()));
  auto writer = std::make_unique<TextWriter>(call, request, std::move(echoes));
  StartAnswer(call, std::move(request), std::move(writer));
}

void OpenAiModels(Call& call) {
  Json data = Json::array();
  for (const ModelState& state : call.catalog.List()) data.push_back(ModelJson(state));
  const Json first = data.empty() ? Json() : data.front()["id"], last = data.empty() ? Json() : data.back()["id"];
  call.Reply({{"object", "list"}, {"data", data}, {"first_id", first}, {"last_id", last}, {"has_more", false}});
}

void OpenAiModel(Call& call) {
  const std::string id = call.request.path.substr(std::string_view("/v1/models/").size());
  std::string known;
  for (const ModelState& state : call.catalog.List()) {
    if (state.file.id == id) return call.Reply(ModelJson(state));
    known += fmt::format("{}\"{}\"", known.empty() ? "" : ", ", state.file.id);
  }
  const bool is_anthropic = !call.request.Header("anthropic-version").empty();
  const std::string message =
      fmt::format("there is no model \"{}\"; this server has {}", Escaped(id, 100), known.empty() ? "none" : known);
  if (is_anthropic) return call.exchange->Send(ErrorResponse(Dialect::kAnthropic, 404, message));
  call.exchange->Send(ErrorResponse(call.dialect, 404, "invalid_request_error", message,
                                    {{"code", "model_not_found"}, {"param", "model"}}));
}

}  // namespace pith::server
