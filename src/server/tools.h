// Tools: how a model is told of them, the grammar of a call, and calls out of what it wrote.
#ifndef PITH_SERVER_TOOLS_H_
#define PITH_SERVER_TOOLS_H_

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "host/model.h"
#include "pith/types.h"
#include "session/text_model.h"

namespace pith::server {

struct ToolSpec {
  std::string name;
  std::string description;
  std::string parameters = R"({"type":"object","properties":{}})";  // JSON schema of an object
};

enum class ToolChoice { kNone, kAuto, kRequired };

// Letters, digits, '_' and '-', at most 64; each name once; parameters that are a schema. kInvalidArgument.
Status CheckTools(std::span<const ToolSpec> tools);
// As OpenAI's API and templates have them; empty for none.
std::string ToolsJson(std::span<const ToolSpec> tools);

// How a model writes calls.
enum class ToolSyntax {
  kTags,     // <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>, also where the template knows no tools
  kObject,   // {"name": ..., "parameters": ...} alone (Llama 3)
  kMistral,  // [TOOL_CALLS][{"name": ..., "arguments": ...}]
};
// By the texts that a template writes around calls.
ToolSyntax SyntaxOfTemplate(std::string_view chat_template);

// A conversation for a template that knows no tools: they stand in the system message, calls in the assistant's text,
// their results in the user's.
std::vector<ChatMessage> WithoutToolRoles(std::span<const ChatMessage> messages, std::span<const ToolSpec> tools);

// GBNF: kRequired: one call, or several if `parallel`; kAuto: these, or a text that does not look like the beginning of
// one. kInvalidArgument: a tool's parameters.
Result<std::string> ToolGrammar(std::span<const ToolSpec> tools, ToolChoice choice, ToolSyntax syntax, bool parallel);

struct ToolAnswer {
  std::string content;  // what is no call
  std::vector<ChatToolCall> calls;
};
// Calls of known tools in a whole answer; what only looks like one stays content. Ids are "call_" and 24 letters.
ToolAnswer ParseToolCalls(std::string_view text, std::span<const ToolSpec> tools);

// Holds back of a streamed text what may be a call.
class ToolFilter {
 public:
  // Text that is none.
  std::string Push(std::string_view text);
  // The end: calls, and the rest as content.
  ToolAnswer Finish(std::span<const ToolSpec> tools);

 private:
  std::string held_;
  bool began_ = false;  // some text was let through
  bool holds_ = false;  // all from here on
};

std::string RandomId(std::string_view prefix);

}  // namespace pith::server

#endif  // PITH_SERVER_TOOLS_H_
