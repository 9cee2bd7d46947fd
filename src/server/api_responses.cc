// OpenAI's /v1/responses: those that are made. api_kept_responses.cc: those that were.
#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/escaped.h"
#include "base/json_text.h"
#include "server/answer.h"
#include "server/api.h"
#include "server/kept_responses.h"
#include "server/members.h"

namespace pith::server {
namespace {

struct ResponseEcho {  // members of a request that its response repeats
  Json instructions, max_output_tokens, metadata, temperature, top_p, text, tool_choice, tools, truncation, parallel;
  Json previous;  // its id
};

// What a response is to be kept with.
struct Keeping {
  std::shared_ptr<KeptResponses> place;  // null: it is not to be kept
  std::string tenant, items;             // as KeptResponse's
  std::vector<std::string> item_ids;
};

class ResponsesWriter final : public AnswerWriter {
 public:
  ResponsesWriter(Call& call, const ChatRequest& request, ResponseEcho echo, Keeping keeping)
      : model_(call.context.model),
        exchange_(call.exchange),
        stream_(request.stream),
        wants_logprobs_(request.base.generation.num_logprobs >= 0),
        id_(RandomId("resp_")),
        message_id_(RandomId("msg_")),
        created_(UnixTime()),
        echo_(std::move(echo)),
        keeping_(std::move(keeping)) {}

  void Begin(const RequestUsage&, int) override {
    if (!stream_) return;
    exchange_->BeginStream("text/event-stream; charset=utf-8");
    const Json response = Response("in_progress", Json::array());
    Write("response.created", {{"response", response}});
    Write("response.in_progress", {{"response", response}});
  }

  void Progress(const PromptProgress& progress) override {
    Write("response.in_progress",
          {{"response", Response("in_progress", Json::array())}, {"prompt_progress", ProgressJson(progress)}});
  }
  std::string Ping() override { return kSsePing; }

  void Text(Delta delta) override {
    // Those of what may be a call wait until it is known to be text.
    logprobs_.insert(logprobs_.end(), delta.logprobs.begin(), delta.logprobs.end());
    if (delta.text.empty()) return;
    OpenMessage();
    text_ += delta.text;
    const auto told = logprobs_.begin() + static_cast<std::ptrdiff_t>(std::exchange(num_told_, logprobs_.size()));
    Json event = {{"item_id", message_id_},
                  {"output_index", 0},
                  {"content_index", 0},
                  {"delta", delta.text},
                  {"logprobs", Logprobs({told, logprobs_.end()})}};
    if (delta.so_far) event["timings"] = TimingsJson(*delta.so_far);
    Write("response.output_text.delta", event);
  }

  void Ended(ChoiceEnd end) override {
    end_ = std::move(end);
    if (!stream_) {
      text_ = end_.text;
      logprobs_ = end_.logprobs;
      has_message_ = !text_.empty() || end_.calls.empty();
      return;
    }
    Text({.choice = 0, .text = end_.text, .tokens = {}, .logprobs = end_.logprobs});
    if (!has_message_ && end_.calls.empty()) OpenMessage();
    CloseMessage();
    int index = has_message_ ? 1 : 0;
    for (const ChatToolCall& call : end_.calls) WriteCall(call, index++);
  }

  void Finished(const AnswerTotals& totals) override {
    const bool complete = end_.stop == StopReason::kEnd || end_.stop == StopReason::kStopString;
    Json output = Json::array();
    if (has_message_) output.push_back(Message(complete ? "completed" : "incomplete", true));
    for (const ChatToolCall& call : end_.calls) output.push_back(CallItem(call, "completed"));
    Json response = Response(complete ? "completed" : "incomplete", std::move(output));
    if (!complete) response["incomplete_details"] = {{"reason", "max_output_tokens"}};
    response["usage"] = {{"input_tokens", totals.usage.prompt_tokens},
                         {"input_tokens_details", {{"cached_tokens", totals.usage.cached_tokens}}},
                         {"output_tokens", totals.usage.completion_tokens},
                         {"output_tokens_details", {{"reasoning_tokens", 0}}},
                         {"total_tokens", totals.usage.prompt_tokens + totals.usage.completion_tokens}};
    response["kv"] = KvJson(totals.cache);
    response["timings"] = TimingsJson(totals);
    Keep(response);
    if (!stream_) return exchange_->Send(JsonResponse(response));
    Write(complete ? "response.completed" : "response.incomplete", {{"response", response}});
    exchange_->EndStream();
  }

  void Failed(const Error& error, HttpResponse http, bool begun) override {
    if (!stream_ || !begun) return exchange_->Send(std::move(http));
    Json response = Response("failed", Json::array());
    response["error"] = {{"code", "server_error"}, {"message", error.message}};
    Write("response.failed", {{"response", response}});
    exchange_->EndStream();
  }

 private:
  // Before the client has it, who may go on from it at once.
  void Keep(Json& response) {
    if (keeping_.place == nullptr) return;
    for (const Json& item : response["output"]) keeping_.item_ids.push_back(item["id"].get<std::string>());
    response["store"] = keeping_.place->Keep({.id = id_,
                                              .tenant = std::move(keeping_.tenant),
                                              .body = JsonText(response),
                                              .items = std::move(keeping_.items),
                                              .item_ids = std::move(keeping_.item_ids)});
  }

  void Write(const char* type, const Json& members) {
    Json event = {{"type", type}, {"sequence_number", sequence_++}};
    event.update(members);
    exchange_->Write(Event(type, event));
  }

  Json Logprobs(const std::vector<TokenLogprobs>& logprobs) const {
    return wants_logprobs_ ? LogprobsJson(model_, logprobs) : Json::array();
  }

  Json Part() const {
    return {
        {"type", "output_text"}, {"text", text_}, {"annotations", Json::array()}, {"logprobs", Logprobs(logprobs_)}};
  }

  Json Message(const char* status, bool has_content) const {
    return {{"id", message_id_},
            {"type", "message"},
            {"status", status},
            {"role", "assistant"},
            {"content", has_content ? Json::array({Part()}) : Json::array()}};
  }

  static Json CallItem(const ChatToolCall& call, const char* status) {
    return {{"id", "fc_" + call.id}, {"type", "function_call"}, {"status", status},
            {"call_id", call.id},    {"name", call.name},       {"arguments", call.arguments}};
  }

  void OpenMessage() {
    if (std::exchange(has_message_, true)) return;
    Write("response.output_item.added", {{"output_index", 0}, {"item", Message("in_progress", false)}});
    Write("response.content_part.added",
          {{"item_id", message_id_}, {"output_index", 0}, {"content_index", 0}, {"part", Part()}});
  }

  void CloseMessage() {
    if (!has_message_) return;
    const bool complete = end_.stop == StopReason::kEnd || end_.stop == StopReason::kStopString;
    Write("response.output_text.done", {{"item_id", message_id_},
                                        {"output_index", 0},
                                        {"content_index", 0},
                                        {"text", text_},
                                        {"logprobs", Logprobs(logprobs_)}});
    Write("response.content_part.done",
          {{"item_id", message_id_}, {"output_index", 0}, {"content_index", 0}, {"part", Part()}});
    Write("response.output_item.done",
          {{"output_index", 0}, {"item", Message(complete ? "completed" : "incomplete", true)}});
  }

  void WriteCall(const ChatToolCall& call, int index) {
    ChatToolCall empty = call;
    empty.arguments.clear();
    const std::string id = "fc_" + call.id;
    Write("response.output_item.added", {{"output_index", index}, {"item", CallItem(empty, "in_progress")}});
    Write("response.function_call_arguments.delta",
          {{"item_id", id}, {"output_index", index}, {"delta", call.arguments}});
    Write("response.function_call_arguments.done",
          {{"item_id", id}, {"output_index", index}, {"name", call.name}, {"arguments", call.arguments}});
    Write("response.output_item.done", {{"output_index", index}, {"item", CallItem(call, "completed")}});
  }

  Json Response(const char* status, Json output) const {
    return {{"id", id_},
            {"object", "response"},
            {"created_at", created_},
            {"status", status},
            {"background", false},
            {"error", nullptr},
            {"incomplete_details", nullptr},
            {"instructions", echo_.instructions},
            {"max_output_tokens", echo_.max_output_tokens},
            {"metadata", echo_.metadata},
            {"model", model_.id},
            {"output", std::move(output)},
            {"parallel_tool_calls", echo_.parallel},
            {"previous_response_id", echo_.previous},
            {"store", keeping_.place != nullptr},
            {"temperature", echo_.temperature},
            {"text", echo_.text},
            {"tool_choice", echo_.tool_choice},
            {"tools", echo_.tools},
            {"top_p", echo_.top_p},
            {"truncation", echo_.truncation},
            {"usage", nullptr}};
  }

  const ServedModel& model_;
  std::shared_ptr<HttpExchange> exchange_;
  bool stream_, wants_logprobs_;
  std::string id_, message_id_;
  int64_t created_;
  ResponseEcho echo_;
  Keeping keeping_;
  std::string text_;
  std::vector<TokenLogprobs> logprobs_;
  size_t num_told_ = 0;  // of them
  ChoiceEnd end_;
  int sequence_ = 0;
  bool has_message_ = false;
};

// One item of "input": a message, a call that was made, or its result.
Status ReadItem(const Json& item, const std::string& path, std::vector<ChatMessage>& messages) {
  if (!item.is_object()) return InvalidArgument(fmt::format("'{}' must be an object", path));
  JsonReader reader(item, path + ".");
  std::string type = "message";
  reader.Text("type", type);
  PITH_RETURN_IF_ERROR(reader.status());
  if (type == "reasoning") return {};
  if (type == "function_call") {
    ChatToolCall call;
    reader.Require("name");
    reader.Require("call_id");
    reader.Text("name", call.name);
    reader.Text("call_id", call.id);
    reader.Text("arguments", call.arguments);
    if (!Json::accept(call.arguments)) call.arguments = "{}";
    PITH_RETURN_IF_ERROR(reader.status());
    if (messages.empty() || messages.back().role != "assistant") messages.push_back({"assistant", ""});
    messages.back().tool_calls.push_back(std::move(call));
    return {};
  }
  if (type == "function_call_output") {
    ChatMessage message{"tool", ""};
    reader.Require("call_id");
    reader.Text("call_id", message.tool_call_id);
    reader.Require("output");
    PITH_RETURN_IF_ERROR(reader.status());
    PITH_ASSIGN_OR_RETURN(message.content, ReadContent(*reader.Find("output"), path + ".output"));
    messages.push_back(std::move(message));
    return {};
  }
  if (type != "message")
    return InvalidArgument(fmt::format("'{}.type' is \"{}\", which this server does not know", path, Escaped(type)));
  std::vector<ChatMessage> one;
  PITH_RETURN_IF_ERROR(ReadMessages(Json::array({item}), path, one));
  messages.push_back(std::move(one.front()));
  return {};
}

// What is answered, as items: of an earlier response all that it answered and its output, then this request's.
struct Conversation {
  Json items = Json::array();
  size_t num_before = 0;  // of them, the earlier response's
  Json previous_id;       // null: there is none
  bool is_kept = true;    // where the server keeps any
};

// False: the request names a response that is not kept, and got its answer.
bool ReadPrevious(const Call& call, const Json& body, Conversation& conversation) {
  JsonReader reader(body);
  std::string id;
  reader.Text("previous_response_id", id);
  if (const Status read = reader.status(); !read) return call.Fail(read.error()), false;
  if (reader.Find("previous_response_id") == nullptr) return true;
  const auto kept = call.responses->Find(call.tenant, id);
  if (kept == nullptr) {
    // OpenAI's status and code for it.
    call.exchange->Send(ErrorResponse(call.dialect, 400, "invalid_request_error",
                                      fmt::format("Previous response with id '{}' not found.", Escaped(id)),
                                      {{"param", "previous_response_id"}, {"code", "previous_response_not_found"}}));
    return false;
  }
  conversation.previous_id = id;
  conversation.items = OrderedJsonOf(kept->items);
  const Json body_before = OrderedJsonOf(kept->body);
  for (const Json& item : body_before["output"]) conversation.items.push_back(item);
  conversation.num_before = conversation.items.size();
  return true;
}

// The item that {"type": "item_reference", "id"} means.
Status ResolveReference(const Call& call, const std::string& path, Json& item) {
  JsonReader reader(item, path + ".");
  std::string id;
  reader.Require("id");
  reader.Text("id", id);
  PITH_RETURN_IF_ERROR(reader.status());
  if (const auto kept = call.responses->FindByItem(call.tenant, id); kept != nullptr) {
    for (const Json& list : {OrderedJsonOf(kept->items), OrderedJsonOf(kept->body)["output"]}) {
      const auto found = std::ranges::find_if(list, [&id](const Json& one) { return one["id"] == id; });
      if (found == list.end()) continue;
      item = *found;
      return {};
    }
  }
  return InvalidArgument(fmt::format("'{}.id': there is no item \"{}\", or it is no longer kept", path, Escaped(id)));
}

// "input" as items: a text is a message of the user.
Result<Json> ReadItems(const Call& call, JsonReader& reader) {
  reader.Require("input");
  PITH_RETURN_IF_ERROR(reader.status());
  const Json& input = *reader.Find("input");
  if (input.is_string()) return Json::array({{{"role", "user"}, {"content", input}}});
  if (!input.is_array() || input.empty()) return InvalidArgument("'input' must be a string or an array of items");
  Json items = input;
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i].is_object() && items[i].value("type", Json()) == "item_reference")
      PITH_RETURN_IF_ERROR(ResolveReference(call, fmt::format("input[{}]", i), items[i]));
  }
  return items;
}

Status ReadInput(const Call& call, JsonReader& reader, Conversation& conversation, ChatRequest& request) {
  std::string instructions;
  reader.Text("instructions", instructions);
  PITH_ASSIGN_OR_RETURN(Json items, ReadItems(call, reader));
  // Those of earlier responses are not carried over.
  if (!instructions.empty()) request.messages.push_back({"system", instructions});
  for (const Json& before : conversation.items) {
    PITH_RETURN_IF_ERROR(ReadItem(before, "previous_response_id", request.messages));
  }
  for (size_t i = 0; i < items.size(); ++i) {
    PITH_RETURN_IF_ERROR(ReadItem(items[i], fmt::format("input[{}]", i), request.messages));
  }
  for (Json& item : items) conversation.items.push_back(std::move(item));
  return {};
}

Status ReadText(JsonReader& reader, ChatRequest& request) {
  PITH_RETURN_IF_ERROR(CheckMembersOf(reader, "text", kTextMembers));
  const Json* text = reader.Object("text");
  if (text == nullptr || !text->contains("format") || text->at("format").is_null()) return {};
  return ReadFormat(text->at("format"), "text.format", request.schema);
}

constexpr std::string_view kIncludable =
    "file_search_call.results|web_search_call.results|web_search_call.action.sources|message.input_image.image_url|"
    "computer_call_output.output.image_url|code_interpreter_call.outputs|reasoning.encrypted_content|"
    "message.output_text.logprobs";

Status ReadResponses(const Call& call, const Json& body, Conversation& conversation, ChatRequest& request) {
  const ServedModel& model = call.context.model;
  JsonReader reader(body);
  PITH_RETURN_IF_ERROR(ReadInput(call, reader, conversation, request));
  PITH_RETURN_IF_ERROR(CheckToolResults(request.messages));
  std::string ignored, truncation;
  reader.Text("model", ignored);
  CheckMembers(reader, kOpenAiMembers);
  CheckMembers(reader, kResponsesMembers);
  PITH_RETURN_IF_ERROR(CheckMembersOf(reader, "reasoning", kReasoningMembers));
  reader.Bool("stream", request.stream);
  PITH_RETURN_IF_ERROR(ReadStreamOptions(reader, request));
  ReadStreaming(reader, request);
  reader.Integer("max_output_tokens", 1, INT32_MAX, request.base.generation.max_tokens);
  reader.Bool("store", conversation.is_kept);
  reader.Text("truncation", truncation);
  ReadSampling(reader, model, SamplingRules::kOpenAi, request.base.sampling);
  std::vector<std::string> include;
  (void)reader.Array("include");  // no text, as elsewhere
  reader.Texts("include", include);
  for (const std::string& one : include) {
    if (!IsChoice(one, kIncludable))
      reader.Fail("include", fmt::format("has \"{}\", which is nothing to include", Escaped(one)));
  }
  int top = 0;
  reader.Integer("top_logprobs", 0, 20, top);
  if (std::ranges::find(include, "message.output_text.logprobs") != include.end())
    request.base.generation.num_logprobs = top;
  PITH_RETURN_IF_ERROR(ReadText(reader, request));
  PITH_RETURN_IF_ERROR(ReadTools(reader, request));
  PITH_RETURN_IF_ERROR(ReadToolChoice(reader, request));
  reader.Bool("parallel_tool_calls", request.parallel_calls);
  PITH_RETURN_IF_ERROR(ReadOwnFields(reader, model, request));
  if (truncation == "disabled") request.is_evict_off = request.base.refuse_eviction = true;
  return {};
}

// An item as it is told again: with all that OpenAI's clients read of it.
Json KeptItem(const Json& given) {
  const std::string type = given.value("type", Json()).is_string() ? given["type"].get<std::string>() : "message";
  const char* prefix = type == "message" ? "msg_" : type == "reasoning" ? "rs_" : "fc_";
  const bool has_id = given.value("id", Json()).is_string();
  Json item = {{"id", has_id ? given["id"] : Json(RandomId(prefix))}, {"type", type}};
  if (!given.contains("status") || given["status"].is_null()) item["status"] = "completed";
  for (const auto& [name, value] : given.items()) {
    if (!item.contains(name)) item[name] = value;
  }
  if (type != "message" || !item["content"].is_string()) return item;
  const bool is_answer = item["role"] == "assistant";
  Json part = {{"type", is_answer ? "output_text" : "input_text"}, {"text", item["content"]}};
  if (is_answer) part["annotations"] = Json::array();
  item["content"] = Json::array({part});
  return item;
}

Keeping KeepingOf(const Call& call, Conversation conversation) {
  if (!conversation.is_kept || !call.responses->keeps_any()) return {};
  Keeping keeping{.place = call.responses, .tenant = call.tenant, .items = {}, .item_ids = {}};
  for (size_t i = conversation.num_before; i < conversation.items.size(); ++i) {
    Json& item = conversation.items[i];
    item = KeptItem(item);
    keeping.item_ids.push_back(item["id"].get<std::string>());
  }
  keeping.items = JsonText(conversation.items);
  return keeping;
}

ResponseEcho EchoOf(const Json& body, const ChatRequest& request, const Conversation& conversation) {
  const auto member = [&body](const char* name, Json otherwise) {
    const auto at = body.find(name);
    return at == body.end() || at->is_null() ? otherwise : *at;
  };
  return {.instructions = member("instructions", nullptr),
          .max_output_tokens = member("max_output_tokens", nullptr),
          .metadata = member("metadata", Json::object()),
          .temperature = request.base.sampling.temperature,
          .top_p = request.base.sampling.top_p,
          .text = member("text", {{"format", {{"type", "text"}}}}),
          .tool_choice = member("tool_choice", "auto"),
          .tools = member("tools", Json::array()),
          .truncation = member("truncation", "auto"),
          .parallel = request.parallel_calls,
          .previous = conversation.previous_id};
}

}  // namespace

void OpenAiResponses(Call& call) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  ChatRequest request = NewRequest(call.context.model, call.tenant);
  Conversation conversation;
  if (!ReadPrevious(call, *body, conversation)) return;
  if (const Status read = ReadResponses(call, *body, conversation, request); !read) return call.Fail(read.error());
  if (const Status ready = Prepare(call.context, request); !ready) {
    return call.exchange->Send(LengthAwareError(call.context, call.dialect, request, ready.error()));
  }
  ResponseEcho echo = EchoOf(*body, request, conversation);
  auto writer =
      std::make_unique<ResponsesWriter>(call, request, std::move(echo), KeepingOf(call, std::move(conversation)));
  StartAnswer(call, std::move(request), std::move(writer));
}

void OpenAiResponsesTokens(Call& call) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  ChatRequest request = NewRequest(call.context.model, call.tenant);
  Conversation conversation;
  if (!ReadPrevious(call, *body, conversation)) return;
  if (const Status read = ReadResponses(call, *body, conversation, request); !read) return call.Fail(read.error());
  ReplyTokenCount(call, request, {{"object", "response.input_tokens"}});
}

}  // namespace pith::server
