// What OpenAI's requests have in common with those that follow them.
#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/escaped.h"
#include "base/json_text.h"
#include "base/utf8.h"
#include "server/api.h"

namespace pith::server {
namespace {

// The calls of an assistant's message.
Status ReadCalls(const Json& list, const std::string& path, std::vector<ChatToolCall>& calls) {
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string at = fmt::format("{}[{}]", path, i);
    if (!list[i].is_object()) return InvalidArgument(fmt::format("'{}' must be an object", at));
    JsonReader reader(list[i], at + ".");
    ChatToolCall call;
    reader.Text("id", call.id);
    reader.Require("function");
    const Json* function = reader.Object("function");
    PITH_RETURN_IF_ERROR(reader.status());
    JsonReader inner(*function, at + ".function.");
    inner.Require("name");
    inner.Text("name", call.name);
    const Json* arguments = inner.Find("arguments");
    if (arguments != nullptr && arguments->is_object())
      call.arguments = JsonText(*arguments);
    else
      inner.Text("arguments", call.arguments);
    PITH_RETURN_IF_ERROR(inner.status());
    // A template writes them as JSON; what a model once wrote wrongly must not end the conversation.
    if (!Json::accept(call.arguments)) call.arguments = "{}";
    calls.push_back(std::move(call));
  }
  return {};
}

Status ReadMessage(const Json& json, const std::string& path, ChatMessage& message) {
  if (!json.is_object()) return InvalidArgument(fmt::format("'{}' must be an object with a role and a content", path));
  JsonReader reader(json, path + ".");
  reader.Require("role");
  reader.Text("role", message.role);
  PITH_RETURN_IF_ERROR(reader.status());
  if (message.role == "developer") message.role = "system";
  if (message.role == "tool") reader.Require("tool_call_id");
  if (message.role == "function") message.role = "tool";  // OpenAI's old one, which names the function alone
  constexpr std::string_view kRoles[] = {"system", "user", "assistant", "tool"};
  if (std::ranges::find(kRoles, message.role) == std::end(kRoles)) {
    reader.Fail("role",
                fmt::format("must be system, developer, user, assistant or tool, not \"{}\"", Escaped(message.role)));
  }
  if (const Json* calls = reader.Array("tool_calls"); calls != nullptr) {
    if (message.role != "assistant")
      reader.Fail("tool_calls", "are only the assistant's");
    else
      PITH_RETURN_IF_ERROR(ReadCalls(*calls, path + ".tool_calls", message.tool_calls));
  }
  if (const Json* content = reader.Find("content"); content != nullptr) {
    if (content->is_array() && content->empty() && message.role != "tool") reader.Fail("content", "has no parts");
    PITH_ASSIGN_OR_RETURN(message.content, ReadContent(*content, path + ".content"));
  } else if (message.role != "assistant" || message.tool_calls.empty()) {
    reader.Fail("content", "is missing");
  }
  reader.Text("tool_call_id", message.tool_call_id);
  reader.Text("name", message.name);
  return reader.status();
}

}  // namespace

Result<std::string> ReadContent(const Json& content, const std::string& path) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) return InvalidArgument(fmt::format("'{}' must be a string or an array of parts", path));
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const std::string at = fmt::format("{}[{}]", path, i);
    if (content[i].is_string()) {
      text += content[i].get<std::string>();
      continue;
    }
    if (!content[i].is_object()) return InvalidArgument(fmt::format("'{}' must be an object with a type", at));
    JsonReader reader(content[i], at + ".");
    std::string type, part;
    reader.Require("type");
    reader.Text("type", type);
    PITH_RETURN_IF_ERROR(reader.status());
    if (type == "text" || type == "input_text" || type == "output_text") {
      reader.Require("text");
      reader.Text("text", part);
    } else if (type == "refusal") {
      reader.Text("refusal", part);
    } else {
      reader.Fail("type", fmt::format("is \"{}\", but this model reads text alone", Escaped(type)));
    }
    PITH_RETURN_IF_ERROR(reader.status());
    text += part;
  }
  return text;
}

Status ReadMessages(const Json& list, const std::string& path, std::vector<ChatMessage>& messages) {
  if (!list.is_array()) return InvalidArgument(fmt::format("'{}' must be an array", path));
  if (list.empty()) return InvalidArgument(fmt::format("'{}' must have at least one message", path));
  for (size_t i = 0; i < list.size(); ++i) {
    ChatMessage message;
    PITH_RETURN_IF_ERROR(ReadMessage(list[i], fmt::format("{}[{}]", path, i), message));
    messages.push_back(std::move(message));
  }
  return {};
}

Status CheckToolResults(std::span<const ChatMessage> messages) {
  std::set<std::string_view> calls;
  for (const ChatMessage& message : messages) {
    for (const ChatToolCall& call : message.tool_calls) calls.insert(call.id);
    if (calls.contains("")) return {};
    if (message.role != "tool" || message.tool_call_id.empty() || calls.contains(message.tool_call_id)) continue;
    return InvalidArgument(fmt::format("'messages' has the result of a call \"{}\" that nobody made before it",
                                       Escaped(message.tool_call_id)));
  }
  return {};
}

Status ReadStreamOptions(JsonReader& reader, ChatRequest& request) {
  const Json* options = reader.Object("stream_options");
  PITH_RETURN_IF_ERROR(reader.status());
  if (options == nullptr) return {};
  if (!request.stream) reader.Fail("stream_options", "are of streams: 'stream' must be true");
  JsonReader inner(*options, "stream_options.");
  bool pads = false;  // OpenAI's padding of parts, of which there is none here
  inner.Bool("include_usage", request.include_usage);
  inner.Bool("include_obfuscation", pads);
  PITH_RETURN_IF_ERROR(inner.status());
  return reader.status();
}

Status ReadTools(JsonReader& reader, ChatRequest& request) {
  const Json* list = reader.Array("tools");
  PITH_RETURN_IF_ERROR(reader.status());
  for (size_t i = 0; list != nullptr && i < list->size(); ++i) {
    const std::string at = reader.Path(fmt::format("tools[{}]", i).c_str());
    if (!(*list)[i].is_object()) return InvalidArgument(fmt::format("'{}' must be an object", at));
    JsonReader outer((*list)[i], at + ".");
    std::string type = "function";
    outer.Text("type", type);
    if (type != "function")
      outer.Fail("type", fmt::format("is \"{}\", but only functions are known here", Escaped(type)));
    // Responses' tools have their members one level higher.
    const Json* function = outer.Find("name") != nullptr ? &(*list)[i] : outer.Object("function");
    if (function == nullptr) outer.Require("function");
    PITH_RETURN_IF_ERROR(outer.status());
    JsonReader inner(*function, at + (function == &(*list)[i] ? "." : ".function."));
    ToolSpec tool;
    inner.Require("name");
    inner.Text("name", tool.name);
    inner.Text("description", tool.description);
    bool is_strict = false;
    inner.Bool("strict", is_strict);
    if (const Json* parameters = inner.Object("parameters"); parameters != nullptr)
      tool.parameters = JsonText(*parameters);
    PITH_RETURN_IF_ERROR(inner.status());
    request.tools.push_back(std::move(tool));
  }
  return {};
}

namespace {

// {"type": "allowed_tools", "allowed_tools": {mode, tools}}; Responses' has these members one level higher. The model
// is told of no others.
Status ReadAllowedTools(const Json& choice, const std::string& path, ChatRequest& request) {
  JsonReader outer(choice, path);
  const Json* config = outer.Object("allowed_tools");
  PITH_RETURN_IF_ERROR(outer.status());
  JsonReader reader(config != nullptr ? *config : choice, config != nullptr ? path + "allowed_tools." : path);
  std::string mode;
  reader.Require("mode");
  reader.Text("mode", mode);
  if (mode != "auto" && mode != "required") reader.Fail("mode", "must be auto or required");
  reader.Require("tools");
  const Json* list = reader.Array("tools");
  PITH_RETURN_IF_ERROR(reader.status());
  std::vector<ToolSpec> allowed;
  for (size_t i = 0; i < list->size(); ++i) {
    const std::string at = reader.Path(fmt::format("tools[{}]", i).c_str());
    if (!(*list)[i].is_object()) return InvalidArgument(fmt::format("'{}' must be an object", at));
    JsonReader tool((*list)[i], at + ".");
    const Json* function = tool.Object("function");
    PITH_RETURN_IF_ERROR(tool.status());
    JsonReader named(function != nullptr ? *function : (*list)[i], at + (function != nullptr ? ".function." : "."));
    std::string name;
    named.Require("name");
    named.Text("name", name);
    PITH_RETURN_IF_ERROR(named.status());
    const auto found = std::ranges::find(request.tools, name, &ToolSpec::name);
    if (found == request.tools.end())
      return InvalidArgument(fmt::format("'{}' is \"{}\", which is not among the tools", at, Escaped(name)));
    allowed.push_back(*found);
  }
  request.tools = std::move(allowed);
  request.tool_choice = mode == "auto" ? ToolChoice::kAuto : ToolChoice::kRequired;
  return {};
}

}  // namespace

Status ReadToolChoice(JsonReader& reader, ChatRequest& request) {
  const Json* choice = reader.Find("tool_choice");
  if (choice == nullptr) return {};
  if (choice->is_string()) {
    const auto word = choice->get<std::string>();
    if (word == "none")
      request.tool_choice = ToolChoice::kNone;
    else if (word == "auto")
      request.tool_choice = ToolChoice::kAuto;
    else if (word == "required" || word == "any")
      request.tool_choice = ToolChoice::kRequired;
    else
      reader.Fail("tool_choice", fmt::format("must be none, auto, required or a function, not \"{}\"", Escaped(word)));
  } else if (choice->is_object() && choice->value("type", Json()) == "allowed_tools") {
    PITH_RETURN_IF_ERROR(ReadAllowedTools(*choice, reader.Path("tool_choice."), request));
  } else if (choice->is_object()) {
    JsonReader inner(*choice, reader.Path("tool_choice."));
    std::string type = "function";
    inner.Text("type", type);
    if (type != "function") inner.Fail("type", "must be function or allowed_tools");
    const Json* function = inner.Object("function");
    PITH_RETURN_IF_ERROR(inner.status());
    JsonReader named(function != nullptr ? *function : *choice,
                     reader.Path(function != nullptr ? "tool_choice.function." : "tool_choice."));
    named.Require("name");
    named.Text("name", request.named_tool);
    PITH_RETURN_IF_ERROR(named.status());
    request.tool_choice = ToolChoice::kRequired;
    if (std::ranges::find(request.tools, request.named_tool, &ToolSpec::name) == request.tools.end()) {
      reader.Fail("tool_choice",
                  fmt::format("names the function \"{}\", which is not among the tools", Escaped(request.named_tool)));
    }
  } else {
    reader.Fail("tool_choice", "must be a string or an object");
  }
  if (request.tool_choice == ToolChoice::kRequired && request.tools.empty())
    reader.Fail("tool_choice", "asks for a call, but there are no tools");
  return reader.status();
}

double FiniteLogprob(float logprob) { return std::isfinite(logprob) ? static_cast<double>(logprob) : -9999.0; }

Json LogprobsJson(const ServedModel& model, const std::vector<TokenLogprobs>& logprobs) {
  const auto entry = [&model](const TokenLogprob& one) -> Json {
    const std::string piece = model.text->Piece(one.token);
    Json bytes = Json::array();
    for (const char c : piece) bytes.push_back(static_cast<unsigned char>(c));
    return {{"token", piece}, {"logprob", FiniteLogprob(one.logprob)}, {"bytes", std::move(bytes)}};
  };
  Json list = Json::array();
  for (const TokenLogprobs& token : logprobs) {
    Json one = entry(token.chosen);
    Json top = Json::array();
    for (const TokenLogprob& other : token.top) top.push_back(entry(other));
    one["top_logprobs"] = std::move(top);
    list.push_back(std::move(one));
  }
  return list;
}

std::string TextOf(const ServedModel& model, const std::vector<int32_t>& tokens) {
  Utf8Stream utf8;
  std::string text;
  for (const int32_t token : tokens) text += utf8.Push(model.text->Piece(token));
  return text + utf8.Flush();
}

Status ReadPrompts(const Json& prompt, const ServedModel& model, ChatRequest& request,
                   std::vector<std::string>& texts) {
  constexpr size_t kMostPrompts = 64;
  if (prompt.is_string()) {
    texts.push_back(prompt.get<std::string>());
    PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, TokenizePrompt(model, request, texts.back(), true));
    if (tokens.empty()) return InvalidArgument("'prompt' is empty");
    request.prompts.push_back(std::move(tokens));
    return {};
  }
  if (!prompt.is_array() || prompt.empty())
    return InvalidArgument("'prompt' must be a string, an array of tokens, or several of these");
  if (prompt.front().is_number()) {
    PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, ReadTokens(prompt, "prompt", model.info.num_vocab));
    texts.push_back(TextOf(model, tokens));
    request.prompts.push_back(std::move(tokens));
    return {};
  }
  if (prompt.size() > kMostPrompts)
    return InvalidArgument(fmt::format("'prompt' has more than {} prompts", kMostPrompts));
  for (const Json& one : prompt) {
    const bool nests = one.is_string() || (one.is_array() && !one.empty() && one.front().is_number());
    if (!nests) return InvalidArgument("'prompt' must be a string, an array of tokens, or several of these");
    PITH_RETURN_IF_ERROR(ReadPrompts(one, model, request, texts));
  }
  return {};
}

void ReplyTokenCount(Call& call, const ChatRequest& request, Json reply) {
  const ServedModel& model = call.context.model;
  if (const Status tools = CheckTools(request.tools); !tools) return call.Fail(tools.error());
  const Result<std::string> text = RenderPrompt(model, request, request.opens_answer);
  if (!text) return call.Fail(text.error());
  if (const Status length = CheckTextLength(text->size()); !length) return call.Fail(413, length.error().message);
  const auto tokens = model.text->Tokenize(*text, true, true);
  if (!tokens) return call.Fail(tokens.error());
  reply["input_tokens"] = tokens->size();
  call.Reply(reply);
}

std::string Event(const Json& data) { return "data: " + JsonText(data) + "\n\n"; }
std::string Event(const char* name, const Json& data) {
  return fmt::format("event: {}\ndata: {}\n\n", name, JsonText(data));
}

Result<Json> BodyOf(const Call& call) {
  return call.parsed != nullptr ? Result<Json>(std::move(*call.parsed)) : ParseJsonObject(call.request.body);
}

}  // namespace pith::server
