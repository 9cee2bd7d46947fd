#include "host/chat_template.h"

#include <algorithm>
#include <exception>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/escaped.h"
#include "base/json_text.h"
#include "host/model.h"
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"

namespace pith {
namespace {

// The longest that models ship have some 20 KiB.
constexpr size_t kLongestTemplate = size_t{1} << 20;

// What happened, without the excerpt of the template around it.
std::string Reason(const std::exception& error) {
  constexpr std::string_view kError = "\nError: ", kRaised = "Jinja Exception: ";
  std::string_view text = error.what();
  if (const size_t at = text.rfind(kError); at != std::string_view::npos) text.remove_prefix(at + kError.size());
  if (text.starts_with(kRaised)) text.remove_prefix(kRaised.size());
  text = text.substr(0, text.find('\n'));
  return Escaped(text, 300);
}

jinja::value ValueOf(const nlohmann::ordered_json& json) {
  using Json = nlohmann::ordered_json;
  switch (json.type()) {
    case Json::value_t::boolean: return jinja::mk_val<jinja::value_bool>(json.get<bool>());
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned: return jinja::mk_val<jinja::value_int>(json.get<int64_t>());
    case Json::value_t::number_float: return jinja::mk_val<jinja::value_float>(json.get<double>());
    case Json::value_t::string: return jinja::mk_val<jinja::value_string>(json.get<std::string>());
    case Json::value_t::array: {
      auto list = jinja::mk_val<jinja::value_array>();
      for (const Json& one : json) list->push_back(ValueOf(one));
      return list;
    }
    case Json::value_t::object: {
      auto object = jinja::mk_val<jinja::value_object>();
      for (const auto& [key, value] : json.items()) object->insert(key, ValueOf(value));
      return object;
    }
    default: return jinja::mk_val<jinja::value_none>();
  }
}

// Transformers' form of messages. as_object: arguments of calls are objects, else texts.
jinja::value ListOf(std::span<const ChatMessage> messages, bool as_object) {
  const auto text = [](const std::string& bytes) { return jinja::mk_val<jinja::value_string>(bytes); };
  auto list = jinja::mk_val<jinja::value_array>();
  for (const ChatMessage& message : messages) {
    auto one = jinja::mk_val<jinja::value_object>();
    one->insert("role", text(message.role));
    one->insert("content", text(message.content));
    if (!message.tool_calls.empty()) {
      auto calls = jinja::mk_val<jinja::value_array>();
      for (const ChatToolCall& call : message.tool_calls) {
        const auto arguments = OrderedJsonOf(call.arguments);
        auto function = jinja::mk_val<jinja::value_object>();
        function->insert("name", text(call.name));
        function->insert("arguments", as_object && arguments.is_object() ? ValueOf(arguments) : text(call.arguments));
        auto entry = jinja::mk_val<jinja::value_object>();
        entry->insert("id", text(call.id));
        entry->insert("type", text("function"));
        entry->insert("function", function);
        calls->push_back(entry);
      }
      one->insert("tool_calls", calls);
    }
    if (!message.tool_call_id.empty()) one->insert("tool_call_id", text(message.tool_call_id));
    if (!message.name.empty()) one->insert("name", text(message.name));
    list->push_back(one);
  }
  return list;
}

// Most templates write a call's arguments as JSON or walk over them; others put them between texts of their own and
// need them as one.
bool TakesObjects(std::string_view source) {
  std::string squeezed;
  for (const char c : source) {
    if (c != ' ' && c != '\n' && c != '\t' && c != '(' && c != ')') squeezed += c;
  }
  constexpr std::string_view kUses[] = {"arguments|tojson", "arguments|items", "arguments.items", "arguments|dictsort",
                                        "arguments'|tojson", "arguments']|tojson", "argumentsismapping"};
  return std::ranges::any_of(kUses,
                             [&squeezed](std::string_view use) { return squeezed.find(use) != std::string::npos; });
}

}  // namespace

struct ChatTemplate::Program {
  std::string source, bos, eos;
  jinja::program parsed;
};

ChatTemplate::ChatTemplate(std::unique_ptr<Program> program) : program_(std::move(program)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

Result<ChatTemplate> ChatTemplate::Parse(const std::string& text, const std::string& bos, const std::string& eos) {
  if (text.size() > kLongestTemplate) {
    return InvalidArgument(fmt::format("the chat template has {} bytes, more than {}", text.size(), kLongestTemplate));
  }
  try {
    auto program = std::make_unique<Program>();
    jinja::lexer lexer;
    const jinja::lexer_result tokens = lexer.tokenize(text);
    program->parsed = jinja::parse_from_tokens(tokens);
    program->source = tokens.source;
    program->bos = bos;
    program->eos = eos;
    return ChatTemplate(std::move(program));
  } catch (const std::exception& error) {
    return InvalidArgument(fmt::format("the chat template is not valid Jinja: {}", Reason(error)));
  }
}

Result<std::string> ChatTemplate::Apply(std::span<const ChatMessage> messages, bool add_assistant,
                                        const std::string& tools) const {
  using Json = nlohmann::ordered_json;
  const Json parsed_tools = OrderedJsonOf(tools.empty() ? "null" : tools);
  if (parsed_tools.is_discarded()) return InvalidArgument("the tools are no valid JSON");
  Result<std::string> text = Unsupported("");
  const bool takes_objects = TakesObjects(program_->source);
  for (const bool as_object : {takes_objects, !takes_objects}) {
    try {
      jinja::context context(program_->source);
      context.set_val("messages", ListOf(messages, as_object));
      context.set_val("bos_token", jinja::mk_val<jinja::value_string>(program_->bos));
      context.set_val("eos_token", jinja::mk_val<jinja::value_string>(program_->eos));
      context.set_val("add_generation_prompt", jinja::mk_val<jinja::value_bool>(add_assistant));
      if (!parsed_tools.empty()) context.set_val("tools", ValueOf(parsed_tools));
      jinja::runtime runtime(context);
      return jinja::runtime::gather_string_parts(runtime.execute(program_->parsed))->as_string().str();
    } catch (const std::exception& error) {
      text = Unsupported(fmt::format("the chat template cannot write these messages: {}", Reason(error)));
    }
    if (std::ranges::all_of(messages, [](const ChatMessage& one) { return one.tool_calls.empty(); })) break;
  }
  return text;
}

}  // namespace pith
