// Chat templates in Jinja, as GGUF files carry them. libllama's own engine for them runs it (common/jinja of
// llama.cpp).
#ifndef PITH_HOST_CHAT_TEMPLATE_H_
#define PITH_HOST_CHAT_TEMPLATE_H_

#include <memory>
#include <span>
#include <string>

#include "pith/types.h"

namespace pith {

struct ChatMessage;

// A template from a stranger's file may run for ever, or so deep that the stack ends: try it in a child first
// (host/trial.h).
class ChatTemplate {
 public:
  // bos, eos: texts of these tokens, which templates name; empty if there is none. kInvalidArgument: its grammar.
  static Result<ChatTemplate> Parse(const std::string& text, const std::string& bos, const std::string& eos);
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  // tools: a JSON array as OpenAI's API has it; empty: none. kUnsupported: the template refuses these messages, or
  // cannot work on them. kInvalidArgument: the tools or a call's arguments are no JSON.
  Result<std::string> Apply(std::span<const ChatMessage> messages, bool add_assistant,
                            const std::string& tools = {}) const;

 private:
  struct Program;
  explicit ChatTemplate(std::unique_ptr<Program> program);

  std::unique_ptr<Program> program_;
};

}  // namespace pith

#endif  // PITH_HOST_CHAT_TEMPLATE_H_
