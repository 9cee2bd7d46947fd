#include "host/chat_template.h"

#include <exception>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "base/escaped.h"
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

Result<std::string> ChatTemplate::Apply(std::span<const ChatMessage> messages, bool add_assistant) const {
  try {
    const auto text = [](const std::string& bytes) { return jinja::mk_val<jinja::value_string>(bytes); };
    auto list = jinja::mk_val<jinja::value_array>();
    for (const ChatMessage& message : messages) {
      auto one = jinja::mk_val<jinja::value_object>();
      one->insert("role", text(message.role));
      one->insert("content", text(message.content));
      list->push_back(one);
    }
    jinja::context context(program_->source);
    context.set_val("messages", list);
    context.set_val("bos_token", text(program_->bos));
    context.set_val("eos_token", text(program_->eos));
    context.set_val("add_generation_prompt", jinja::mk_val<jinja::value_bool>(add_assistant));
    jinja::runtime runtime(context);
    return jinja::runtime::gather_string_parts(runtime.execute(program_->parsed))->as_string().str();
  } catch (const std::exception& error) {
    return Unsupported(fmt::format("the chat template cannot write these messages: {}", Reason(error)));
  }
}

}  // namespace pith
