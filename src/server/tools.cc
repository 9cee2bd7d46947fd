#include "server/tools.h"

#include <algorithm>
#include <random>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/escaped.h"
#include "base/json_text.h"
#include "host/grammar_bounds.h"
#include "host/json_schema.h"
#include "server/json_reader.h"

namespace pith::server {
namespace {

constexpr std::string_view kOpenTag = "<tool_call>", kCloseTag = "</tool_call>", kMistralMark = "[TOOL_CALLS]",
                           kPythonTag = "<|python_tag|>";
constexpr std::string_view kBlanks = " \t\r\n";

std::string_view Trim(std::string_view text) {
  const size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

Json Parsed(std::string_view text) { return Json::parse(text, nullptr, false); }

// A call's object: arguments under any of the names that models use; a text that is JSON counts as what it says.
bool TakeCall(const Json& object, std::span<const ToolSpec> tools, std::vector<ChatToolCall>& calls) {
  if (!object.is_object() || !object.contains("name") || !object.at("name").is_string()) return false;
  const auto name = object.at("name").get<std::string>();
  if (std::ranges::find(tools, name, &ToolSpec::name) == tools.end()) return false;
  Json arguments = Json::object();
  for (const char* key : {"arguments", "parameters"}) {
    if (const auto at = object.find(key); at != object.end()) {
      arguments = *at;
      break;
    }
  }
  if (arguments.is_string()) arguments = Parsed(arguments.get<std::string>());
  if (!arguments.is_object()) return false;
  calls.push_back({RandomId("call_"), name, JsonText(arguments)});
  return true;
}

// An object, or an array of them.
bool TakeCalls(std::string_view text, std::span<const ToolSpec> tools, std::vector<ChatToolCall>& calls) {
  const Json json = Parsed(Trim(text));
  if (!json.is_array()) return TakeCall(json, tools, calls);
  std::vector<ChatToolCall> all;
  for (const Json& one : json) {
    if (!TakeCall(one, tools, all)) return false;
  }
  calls.insert(calls.end(), all.begin(), all.end());
  return !all.empty();
}

// "#/..." inside a tool's parameters means their own root, which now stands at `base`.
void MoveReferences(Json& node, const std::string& base) {
  if (node.is_object()) {
    for (auto& [key, value] : node.items()) {
      if (key == "$ref" && value.is_string()) {
        const auto ref = value.get<std::string>();
        if (ref == "#" || ref.starts_with("#/")) value = "#" + base + ref.substr(1);
      } else {
        MoveReferences(value, base);
      }
    }
  } else if (node.is_array()) {
    for (Json& one : node) MoveReferences(one, base);
  }
}

Json CallSchema(std::span<const ToolSpec> tools, const char* arguments) {
  Json alternatives = Json::array();
  for (const ToolSpec& tool : tools) {
    Json parameters = Parsed(tool.parameters);
    // Without properties any member would do: such a tool takes none.
    if (!parameters.contains("properties") && !parameters.contains("$ref") && !parameters.contains("anyOf")) {
      parameters["properties"] = Json::object();
    }
    if (!parameters.contains("type") && parameters.contains("properties")) parameters["type"] = "object";
    const std::string base = tools.size() == 1 ? fmt::format("/properties/{}", arguments)
                                               : fmt::format("/anyOf/{}/properties/{}", alternatives.size(), arguments);
    MoveReferences(parameters, base);
    alternatives.push_back({{"type", "object"},
                            {"properties", {{"name", {{"const", tool.name}}}, {arguments, parameters}}},
                            {"required", Json::array({"name", arguments})},
                            {"additionalProperties", false}});
  }
  if (tools.size() == 1) return alternatives.front();
  return {{"anyOf", alternatives}};
}

std::string Instructions(std::span<const ToolSpec> tools) {
  std::string text =
      "You may call one or more functions to assist with the user query.\n\nYou are provided with function signatures "
      "within "
      "<tools></tools> XML tags:\n<tools>";
  for (const Json& tool : Parsed(ToolsJson(tools))) text += "\n" + JsonText(tool);
  text +=
      "\n</tools>\n\nFor each function call, return a JSON object with the function's name and arguments within "
      "<tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n"
      "</tool_call>";
  return text;
}

}  // namespace

std::string RandomId(std::string_view prefix) {
  static constexpr std::string_view kLetters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  // Whoever knows a response's name may read it where the server asks for no key: none follows from others.
  thread_local std::random_device random;
  std::string id(prefix);
  for (int i = 0; i < 24; ++i) id += kLetters[random() % kLetters.size()];
  return id;
}

Status CheckTools(std::span<const ToolSpec> tools) {
  std::set<std::string_view> names;
  for (size_t i = 0; i < tools.size(); ++i) {
    const ToolSpec& tool = tools[i];
    const bool is_name = !tool.name.empty() && tool.name.size() <= 64 && std::ranges::all_of(tool.name, [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
             c == '.';
    });
    if (!is_name) {
      return InvalidArgument(fmt::format(
          "'tools[{}].name' must have 1 to 64 letters, digits, '_' or '-', and is \"{}\"", i, Escaped(tool.name)));
    }
    if (!names.insert(tool.name).second)
      return InvalidArgument(fmt::format("'tools' has two of the name \"{}\"", tool.name));
    if (const Status bounds = CheckSchemaBounds(tool.parameters); !bounds) {
      return InvalidArgument(fmt::format("'tools[{}]' ({}): {}", i, tool.name, bounds.error().message));
    }
  }
  return {};
}

std::string ToolsJson(std::span<const ToolSpec> tools) {
  if (tools.empty()) return {};
  Json list = Json::array();
  for (const ToolSpec& tool : tools) {
    list.push_back(
        {{"type", "function"},
         {"function",
          {{"name", tool.name}, {"description", tool.description}, {"parameters", Parsed(tool.parameters)}}}});
  }
  return JsonText(list);
}

ToolSyntax SyntaxOfTemplate(std::string_view chat_template) {
  const auto has = [chat_template](std::string_view part) {
    return chat_template.find(part) != std::string_view::npos;
  };
  if (has(kOpenTag)) return ToolSyntax::kTags;
  if (has(kMistralMark)) return ToolSyntax::kMistral;
  if (has("python_tag") || has("\"parameters\":") || has("'parameters'")) return ToolSyntax::kObject;
  return ToolSyntax::kTags;
}

std::vector<ChatMessage> WithoutToolRoles(std::span<const ChatMessage> messages, std::span<const ToolSpec> tools) {
  std::vector<ChatMessage> out;
  for (const ChatMessage& message : messages) {
    ChatMessage one{message.role, message.content};
    for (const ChatToolCall& call : message.tool_calls) {
      const Json arguments = Parsed(call.arguments);
      const Json object = {{"name", call.name}, {"arguments", arguments.is_discarded() ? Json::object() : arguments}};
      one.content +=
          fmt::format("{}{}\n{}\n{}", one.content.empty() ? "" : "\n", kOpenTag, JsonText(object), kCloseTag);
    }
    if (message.role == "tool") {
      one.role = "user";
      one.content = fmt::format("<tool_response>\n{}\n</tool_response>", message.content);
      if (!out.empty() && out.back().role == "user") {  // results of parallel calls; roles take turns in many templates
        out.back().content += "\n" + one.content;
        continue;
      }
    }
    out.push_back(std::move(one));
  }
  if (tools.empty()) return out;
  if (out.empty() || out.front().role != "system") out.insert(out.begin(), ChatMessage{"system", ""});
  std::string& system = out.front().content;
  system += (system.empty() ? "" : "\n\n") + Instructions(tools);
  return out;
}

Result<std::string> ToolGrammar(std::span<const ToolSpec> tools, ToolChoice choice, ToolSyntax syntax, bool parallel) {
  const char* arguments = syntax == ToolSyntax::kObject ? "parameters" : "arguments";
  PITH_ASSIGN_OR_RETURN(std::string grammar, GrammarOfJsonSchema(JsonText(CallSchema(tools, arguments))));
  constexpr std::string_view kRoot = "root ::=";
  const size_t at = grammar.starts_with(kRoot) ? 0 : grammar.find("\nroot ::=");
  if (at == std::string::npos) return Unsupported("the converter's grammar has no root");
  grammar.replace(at == 0 ? 0 : at + 1, kRoot.size(), "one-call ::=");
  std::string calls;
  std::string other;  // texts that begin like no call
  switch (syntax) {
    case ToolSyntax::kTags:
      calls = fmt::format(R"("<tool_call>\n" one-call "\n</tool_call>"{})",
                          parallel ? R"( ("\n<tool_call>\n" one-call "\n</tool_call>"){0,7})" : "");
      other = R"(([^<] | "<" [^t]) any-char*)";
      break;
    case ToolSyntax::kObject:
      calls = "one-call";
      other = R"([^{] any-char*)";
      break;
    case ToolSyntax::kMistral:
      calls = fmt::format(R"("[TOOL_CALLS][" one-call{} "]")", parallel ? R"( (", " one-call){0,7})" : "");
      other = R"(([^\[] | "[" [^T]) any-char*)";
      break;
  }
  if (choice == ToolChoice::kRequired) return grammar + "root ::= " + calls + "\n";
  return grammar + fmt::format("root ::= {} | ({})?\nany-char ::= [^\\x00]\n", calls, other);
}

ToolAnswer ParseToolCalls(std::string_view text, std::span<const ToolSpec> tools) {
  ToolAnswer answer;
  std::string_view rest = text;
  while (true) {
    const size_t open = rest.find(kOpenTag);
    if (open == std::string_view::npos) break;
    const size_t from = open + kOpenTag.size();
    const size_t close = rest.find(kCloseTag, from);
    const bool is_call =
        TakeCalls(rest.substr(from, close == std::string_view::npos ? close : close - from), tools, answer.calls);
    const size_t next = close == std::string_view::npos ? rest.size() : close + kCloseTag.size();
    answer.content += rest.substr(0, is_call ? open : next);
    rest.remove_prefix(next);
  }
  answer.content += rest;
  if (answer.calls.empty()) {
    std::string_view alone = Trim(text);
    for (const std::string_view mark : {kMistralMark, kPythonTag}) {
      if (alone.starts_with(mark)) alone.remove_prefix(mark.size());
    }
    if (TakeCalls(alone, tools, answer.calls)) answer.content.clear();
  }
  if (!answer.calls.empty()) answer.content = std::string(Trim(answer.content));
  return answer;
}

std::string ToolFilter::Push(std::string_view text) {
  held_ += text;
  if (holds_) return {};
  // An answer that begins so may be a call as a whole.
  if (!began_) {
    const std::string_view start = Trim(held_);
    if (start.empty()) return {};
    if (start.starts_with('{') || start.starts_with('[') || start.starts_with("<|")) {
      holds_ = true;
      return {};
    }
  }
  size_t keep = held_.find(kOpenTag);
  if (keep != std::string::npos) {
    holds_ = true;
  } else {
    size_t length = std::min(kOpenTag.size() - 1, held_.size());
    while (length > 0 && !held_.ends_with(kOpenTag.substr(0, length))) --length;
    keep = held_.size() - length;
  }
  std::string out = held_.substr(0, keep);
  held_.erase(0, keep);
  began_ = began_ || !out.empty();
  return out;
}

ToolAnswer ToolFilter::Finish(std::span<const ToolSpec> tools) {
  return ParseToolCalls(std::exchange(held_, std::string()), tools);
}

}  // namespace pith::server
