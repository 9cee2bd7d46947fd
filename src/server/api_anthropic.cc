// Anthropic's /v1/messages and /v1/messages/count_tokens.
#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/escaped.h"
#include "base/json_text.h"
#include "server/answer.h"
#include "server/api.h"
#include "server/members.h"

namespace pith::server {
namespace {

std::string_view StopReasonOf(const ChoiceEnd& end) {
  if (!end.calls.empty()) return "tool_use";
  switch (end.stop) {
    case StopReason::kEnd:
      return "end_turn";
    case StopReason::kStopString:
      return "stop_sequence";
    default:
      return "max_tokens";
  }
}

// What was read anew, and what was there: together the prompt.
Json UsageJson(const RequestUsage& usage, int output) {
  return {{"input_tokens", usage.prompt_tokens - usage.cached_tokens},
          {"cache_creation_input_tokens", 0},
          {"cache_read_input_tokens", usage.cached_tokens},
          {"output_tokens", output}};
}

Json ToolUse(const ChatToolCall& call, bool with_input) {
  Json input = with_input ? Json::parse(call.arguments, nullptr, false) : Json::object();
  return {{"type", "tool_use"},
          {"id", "toolu_" + call.id.substr(call.id.find('_') + 1)},
          {"name", call.name},
          {"input", std::move(input)}};
}

class AnthropicWriter final : public AnswerWriter {
 public:
  AnthropicWriter(Call& call, const ChatRequest& request)
      : model_(call.context.model), exchange_(call.exchange), stream_(request.stream), id_(RandomId("msg_")) {}

  void Begin(const RequestUsage& usage, int) override {
    if (!stream_) return;
    exchange_->BeginStream("text/event-stream; charset=utf-8");
    Json message = Message(Json::array(), nullptr, nullptr);
    message["usage"] = UsageJson(usage, 0);
    Write("message_start", {{"message", std::move(message)}});
    Write("ping", Json::object());
  }
  std::string Ping() override { return Event("ping", {{"type", "ping"}}); }

  void Text(Delta delta) override {
    if (delta.text.empty()) return;
    if (!std::exchange(has_text_, true)) {
      Write("content_block_start", {{"index", 0}, {"content_block", {{"type", "text"}, {"text", ""}}}});
    }
    Write("content_block_delta", {{"index", 0}, {"delta", {{"type", "text_delta"}, {"text", delta.text}}}});
  }

  void Ended(ChoiceEnd end) override {
    end_ = std::move(end);
    if (!stream_) return;
    if (!end_.text.empty()) Text({.choice = 0, .text = end_.text, .tokens = {}, .logprobs = {}});
    int index = 0;
    if (has_text_) Write("content_block_stop", {{"index", index++}});
    for (const ChatToolCall& call : end_.calls) {
      Write("content_block_start", {{"index", index}, {"content_block", ToolUse(call, false)}});
      Write("content_block_delta",
            {{"index", index}, {"delta", {{"type", "input_json_delta"}, {"partial_json", call.arguments}}}});
      Write("content_block_stop", {{"index", index++}});
    }
  }

  void Finished(const AnswerTotals& totals) override {
    const Json stop = end_.stop == StopReason::kStopString && end_.calls.empty() ? Json(end_.stop_string) : Json();
    if (!stream_) {
      Json content = Json::array();
      if (!end_.text.empty()) content.push_back({{"type", "text"}, {"text", end_.text}});
      for (const ChatToolCall& call : end_.calls) content.push_back(ToolUse(call, true));
      Json message = Message(std::move(content), StopReasonOf(end_), stop);
      message["usage"] = UsageJson(totals.usage, totals.usage.completion_tokens);
      message["kv"] = KvJson(totals.cache);
      return exchange_->Send(JsonResponse(message));
    }
    Write("message_delta", {{"delta", {{"stop_reason", StopReasonOf(end_)}, {"stop_sequence", stop}}},
                            {"usage", UsageJson(totals.usage, totals.usage.completion_tokens)},
                            {"kv", KvJson(totals.cache)}});
    Write("message_stop", Json::object());
    exchange_->EndStream();
  }

  void Failed(const Error&, HttpResponse response, bool begun) override {
    if (!stream_ || !begun) return exchange_->Send(std::move(response));
    exchange_->Write("event: error\ndata: " + response.body + "\n\n");
    exchange_->EndStream();
  }

 private:
  void Write(const char* type, const Json& members) {
    Json event = {{"type", type}};
    event.update(members);
    exchange_->Write(Event(type, event));
  }

  Json Message(Json content, Json stop_reason, Json stop_sequence) const {
    return {{"id", id_},
            {"type", "message"},
            {"role", "assistant"},
            {"model", model_.id},
            {"content", std::move(content)},
            {"stop_reason", std::move(stop_reason)},
            {"stop_sequence", std::move(stop_sequence)}};
  }

  const ServedModel& model_;
  std::shared_ptr<HttpExchange> exchange_;
  bool stream_;
  std::string id_;
  ChoiceEnd end_;
  bool has_text_ = false;
};

// One block of a message's content: text, a call, or a call's result, which is a message of its own.
Status ReadBlock(const Json& block, const std::string& path, ChatMessage& message, std::vector<ChatMessage>& results) {
  if (!block.is_object()) return InvalidArgument(fmt::format("'{}' must be an object with a type", path));
  JsonReader reader(block, path + ".");
  std::string type, text;
  reader.Require("type");
  reader.Text("type", type);
  PITH_RETURN_IF_ERROR(reader.status());
  if (type == "text") {
    reader.Require("text");
    reader.Text("text", text);
    if (reader.Find("text") != nullptr && text.empty()) reader.Fail("text", "must not be empty");
    message.content += text;
  } else if (type == "tool_use") {
    if (message.role != "assistant") reader.Fail("type", "is tool_use, which is only the assistant's");
    ChatToolCall call;
    reader.Require("id");
    reader.Require("name");
    reader.Text("id", call.id);
    reader.Text("name", call.name);
    const Json* input = reader.Object("input");
    call.arguments = input == nullptr ? "{}" : JsonText(*input);
    message.tool_calls.push_back(std::move(call));
  } else if (type == "tool_result") {
    if (message.role != "user") reader.Fail("type", "is tool_result, which is only the user's");
    ChatMessage result{"tool", ""};
    reader.Require("tool_use_id");
    reader.Text("tool_use_id", result.tool_call_id);
    PITH_RETURN_IF_ERROR(reader.status());
    if (const Json* content = reader.Find("content"); content != nullptr) {
      PITH_ASSIGN_OR_RETURN(result.content, ReadContent(*content, path + ".content"));
    }
    results.push_back(std::move(result));
  } else if (type != "thinking" && type != "redacted_thinking") {
    reader.Fail("type", fmt::format("is \"{}\", but this model reads text alone", Escaped(type)));
  }
  return reader.status();
}

Status ReadAnthropicMessage(const Json& json, const std::string& path, bool is_last,
                            std::vector<ChatMessage>& messages) {
  if (!json.is_object()) return InvalidArgument(fmt::format("'{}' must be an object with a role and a content", path));
  JsonReader reader(json, path + ".");
  ChatMessage message;
  reader.Require("role");
  reader.Require("content");
  reader.Text("role", message.role);
  PITH_RETURN_IF_ERROR(reader.status());
  if (message.role != "user" && message.role != "assistant" && message.role != "system")
    reader.Fail("role", "must be user, assistant or system");
  const Json& content = *reader.Find("content");
  std::vector<ChatMessage> results;
  if (content.is_string()) {
    message.content = content.get<std::string>();
    // The assistant's last may be: the answer begins with nothing.
    if (message.content.empty() && !(is_last && message.role == "assistant"))
      reader.Fail("content", "must not be empty");
  } else if (content.is_array()) {
    if (content.empty()) reader.Fail("content", "has no blocks");
    for (size_t i = 0; i < content.size(); ++i) {
      PITH_RETURN_IF_ERROR(ReadBlock(content[i], fmt::format("{}.content[{}]", path, i), message, results));
    }
  } else {
    reader.Fail("content", "must be a string or an array of blocks");
  }
  PITH_RETURN_IF_ERROR(reader.status());
  const bool only_results = !results.empty() && message.content.empty();
  for (ChatMessage& result : results) messages.push_back(std::move(result));
  if (!only_results) messages.push_back(std::move(message));
  return {};
}

Status ReadAnthropicTools(JsonReader& reader, ChatRequest& request) {
  const Json* list = reader.Array("tools");
  PITH_RETURN_IF_ERROR(reader.status());
  for (size_t i = 0; list != nullptr && i < list->size(); ++i) {
    const std::string at = fmt::format("tools[{}]", i);
    if (!(*list)[i].is_object()) return InvalidArgument(fmt::format("'{}' must be an object", at));
    JsonReader inner((*list)[i], at + ".");
    std::string type = "custom";
    inner.Text("type", type);
    if (type != "custom")
      inner.Fail("type", fmt::format("is \"{}\", but only tools of the client are known here", Escaped(type)));
    ToolSpec tool;
    inner.Require("name");
    inner.Text("name", tool.name);
    inner.Text("description", tool.description);
    inner.Require("input_schema");
    if (const Json* schema = inner.Object("input_schema"); schema != nullptr) tool.parameters = JsonText(*schema);
    PITH_RETURN_IF_ERROR(inner.status());
    request.tools.push_back(std::move(tool));
  }
  const Json* choice = reader.Object("tool_choice");
  PITH_RETURN_IF_ERROR(reader.status());
  if (choice == nullptr) return {};
  JsonReader inner(*choice, "tool_choice.");
  std::string type;
  bool one_alone = false;
  inner.Require("type");
  inner.Text("type", type);
  inner.Bool("disable_parallel_tool_use", one_alone);
  request.parallel_calls = !one_alone;
  if (type == "tool") {
    inner.Require("name");
    inner.Text("name", request.named_tool);
    request.tool_choice = ToolChoice::kRequired;
    const bool known = std::ranges::find(request.tools, request.named_tool, &ToolSpec::name) != request.tools.end();
    if (!known) inner.Fail("name", fmt::format("is \"{}\", which is not among the tools", Escaped(request.named_tool)));
  } else if (type == "any") {
    request.tool_choice = ToolChoice::kRequired;
  } else if (type == "none") {
    request.tool_choice = ToolChoice::kNone;
  } else if (type != "auto") {
    inner.Fail("type", "must be auto, any, tool or none");
  }
  if (request.tool_choice == ToolChoice::kRequired && request.tools.empty())
    inner.Fail("type", "asks for a call, but there are no tools");
  return inner.status();
}

// What both endpoints read: system, messages, tools.
Status ReadPromptPart(JsonReader& reader, ChatRequest& request) {
  std::string ignored;
  reader.Text("model", ignored);
  reader.Require("messages");
  const Json* list = reader.Array("messages");
  PITH_RETURN_IF_ERROR(reader.status());
  if (const Json* system = reader.Find("system"); system != nullptr) {
    PITH_ASSIGN_OR_RETURN(const std::string text, ReadContent(*system, "system"));
    if (!text.empty()) request.messages.push_back({"system", text});
  }
  if (list->empty()) return InvalidArgument("'messages' must have at least one message");
  for (size_t i = 0; i < list->size(); ++i) {
    const bool is_last = i + 1 == list->size();
    PITH_RETURN_IF_ERROR(ReadAnthropicMessage((*list)[i], fmt::format("messages[{}]", i), is_last, request.messages));
  }
  PITH_RETURN_IF_ERROR(CheckToolResults(request.messages));
  return ReadAnthropicTools(reader, request);
}

// There is no thinking here that could be parted from answers: what asks for it must only be right.
Status CheckThinking(JsonReader& reader, int max_tokens) {
  const Json* thinking = reader.Object("thinking");
  PITH_RETURN_IF_ERROR(reader.status());
  if (thinking == nullptr) return {};
  JsonReader inner(*thinking, "thinking.");
  inner.Require("type");
  CheckMembers(inner, kThinkingMembers);
  PITH_RETURN_IF_ERROR(inner.status());
  if (*inner.Find("type") != "enabled") return {};
  int budget = 0;
  inner.Require("budget_tokens");
  inner.Integer("budget_tokens", 0, INT32_MAX, budget);
  if (budget >= max_tokens) inner.Fail("budget_tokens", "must be less than 'max_tokens'");
  return inner.status();
}

Status ReadAnthropic(const Json& body, const ServedModel& model, ChatRequest& request) {
  JsonReader reader(body);
  reader.Require("max_tokens");
  reader.Integer("max_tokens", 1, INT32_MAX, request.base.generation.max_tokens);
  PITH_RETURN_IF_ERROR(ReadPromptPart(reader, request));
  reader.Bool("stream", request.stream);
  CheckMembers(reader, kAnthropicMembers);
  PITH_RETURN_IF_ERROR(CheckThinking(reader, request.base.generation.max_tokens));
  reader.Integer("sse_ping_interval", -1, INT32_MAX, request.ping_seconds);
  (void)reader.Array("stop_sequences");  // no string, as elsewhere
  ReadStops(reader, "stop_sequences", request.base.generation.stops);
  for (const std::string& stop : request.base.generation.stops) {
    if (stop.find_first_not_of(" \t\r\n") == std::string::npos)
      reader.Fail("stop_sequences", "must each have more than blanks");
  }
  ReadSampling(reader, model, SamplingRules::kAnthropic, request.base.sampling);
  PITH_RETURN_IF_ERROR(CheckMembersOf(reader, "output_config", kOutputMembers));
  if (const Json* config = reader.Object("output_config"); config != nullptr) {
    if (const auto format = config->find("format"); format != config->end() && !format->is_null()) {
      PITH_RETURN_IF_ERROR(ReadFormat(*format, "output_config.format", request.schema));
    }
  }
  return ReadOwnFields(reader, model, request);
}

}  // namespace

void AnthropicMessages(Call& call) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  ChatRequest request = NewRequest(call.context.model, call.tenant);
  if (const Status read = ReadAnthropic(*body, call.context.model, request); !read) return call.Fail(read.error());
  if (const Status ready = Prepare(call.context, request); !ready) return call.Fail(ready.error());
  auto writer = std::make_unique<AnthropicWriter>(call, request);
  StartAnswer(call, std::move(request), std::move(writer));
}

void AnthropicCountTokens(Call& call) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  ChatRequest request = NewRequest(call.context.model, call.tenant);
  JsonReader reader(*body);
  Status status = ReadPromptPart(reader, request);
  if (!status) return call.Fail(status.error());
  ReplyTokenCount(call, request, Json::object());
}

}  // namespace pith::server
