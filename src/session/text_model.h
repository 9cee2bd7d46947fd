// What this layer asks of a model beside its logits: text to tokens and back, and the chat template.
#ifndef PITH_SESSION_TEXT_MODEL_H_
#define PITH_SESSION_TEXT_MODEL_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "host/model.h"
#include "pith/types.h"

namespace pith {

class TextModel {
 public:
  virtual ~TextModel() = default;

  // begins: the text is the first of its sequence, and gets what the tokenizer puts there (BOS), once even where the
  // template wrote it too; otherwise it gets none of that. parse_special: control tokens in it are tokens.
  virtual Result<std::vector<int32_t>> Tokenize(std::string_view text, bool begins, bool parse_special) const = 0;
  // A text that ends here, with what the tokenizer puts around one, for embeddings.
  virtual Result<std::vector<int32_t>> TokenizeWhole(std::string_view text) const {
    return Tokenize(text, true, false);
  }
  virtual std::string Piece(int32_t token) const = 0;  // bytes; may end inside a UTF-8 character
  virtual bool IsEnd(int32_t token) const = 0;         // of generation
  virtual bool has_template() const = 0;
  // opens_answer: with the beginning of the assistant's next message.
  virtual Result<std::string> Render(std::span<const ChatMessage> messages, bool opens_answer) const = 0;
  // tools: a JSON array as OpenAI's API has it. Templates that know no tools leave them out.
  virtual Result<std::string> RenderWithTools(std::span<const ChatMessage> messages, bool opens_answer,
                                              [[maybe_unused]] const std::string& tools) const {
    return Render(messages, opens_answer);
  }
};

// That of a loaded model.
class HostText final : public TextModel {
 public:
  explicit HostText(std::shared_ptr<const HostModel> model) : model_(std::move(model)) {}

  Result<std::vector<int32_t>> Tokenize(std::string_view text, bool begins, bool parse_special) const override;
  Result<std::vector<int32_t>> TokenizeWhole(std::string_view text) const override {
    return model_->TokenizeWhole(text);
  }
  std::string Piece(int32_t token) const override { return model_->Piece(token); }
  bool IsEnd(int32_t token) const override { return model_->IsEndOfGeneration(token); }
  bool has_template() const override { return model_->has_chat_template(); }
  Result<std::string> Render(std::span<const ChatMessage> messages, bool opens_answer) const override {
    return model_->ApplyChatTemplate(messages, opens_answer);
  }
  Result<std::string> RenderWithTools(std::span<const ChatMessage> messages, bool opens_answer,
                                      const std::string& tools) const override {
    return model_->ApplyChatTemplate(messages, opens_answer, tools);
  }

 private:
  std::shared_ptr<const HostModel> model_;
};

}  // namespace pith

#endif  // PITH_SESSION_TEXT_MODEL_H_
