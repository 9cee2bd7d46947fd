// A model of bytes and a sequence that only counts, for tests of this layer.
#ifndef PITH_SESSION_SESSION_TEST_UTIL_H_
#define PITH_SESSION_SESSION_TEST_UTIL_H_

#include <algorithm>
#include <functional>
#include <optional>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "session/text_model.h"
#include "session/token_sequence.h"

namespace pith::testing {

// A token for each byte, and control tokens.
inline constexpr std::string_view kControl[] = {"<s>", "<|im_start|>", "<|im_end|>"};
inline constexpr int32_t kBegin = 256;
inline constexpr int32_t kEnd = 258;
inline constexpr int kNumVocab = 259;

using Template = std::function<Result<std::string>(std::span<const ChatMessage>, bool opens_answer)>;

inline Result<std::string> ChatMl(std::span<const ChatMessage> messages, bool opens_answer) {
  std::string text;
  for (const ChatMessage& message : messages) {
    text += "<|im_start|>" + message.role + "\n" + message.content + "<|im_end|>\n";
  }
  return text + (opens_answer ? "<|im_start|>assistant\n" : "");
}

class ByteModel final : public TextModel {
 public:
  explicit ByteModel(Template chat_template = ChatMl, bool adds_begin = true)
      : template_(std::move(chat_template)), adds_begin_(adds_begin) {}

  Result<std::vector<int32_t>> Tokenize(std::string_view text, bool begins, bool parse_special) const override {
    std::vector<int32_t> tokens;
    if (begins && adds_begin_ && !text.starts_with(kControl[0])) tokens.push_back(kBegin);
    for (size_t at = 0; at < text.size();) {
      const auto control = std::ranges::find_if(kControl, [&](auto name) { return text.substr(at).starts_with(name); });
      if (parse_special && control != std::end(kControl)) {
        tokens.push_back(kBegin + static_cast<int32_t>(control - std::begin(kControl)));
        at += control->size();
      } else {
        tokens.push_back(static_cast<unsigned char>(text[at++]));
      }
    }
    return tokens;
  }
  std::string Piece(int32_t token) const override {
    return token < kBegin ? std::string(1, static_cast<char>(token)) : std::string(kControl[token - kBegin]);
  }
  bool IsEnd(int32_t token) const override { return token == kEnd; }
  bool has_template() const override { return true; }
  Result<std::string> Render(std::span<const ChatMessage> messages, bool opens_answer) const override {
    return template_(messages, opens_answer);
  }

  std::string TextOf(std::span<const int32_t> tokens) const {
    std::string text;
    for (const int32_t token : tokens) text += Piece(token);
    return text;
  }

 private:
  Template template_;
  bool adds_begin_;
};

// Remembers what it was fed; the logits are whatever was put there.
class FakeSequence final : public TokenSequence {
 public:
  Status Feed(std::span<const int32_t> more, bool pin, const Progress& progress) override {
    for (const int32_t token : more) {
      if (progress && !progress(tokens.size(), SIZE_MAX)) return Cancelled("stopped");
      tokens.push_back(token);
      pinned += pin ? 1 : 0;
    }
    return {};
  }
  Status Decode(int32_t token) override {
    if (decode_error) return tl::unexpected<Error>(*decode_error);
    tokens.push_back(token);
    return {};
  }
  std::span<const float> logits() const override { return numbers; }
  int num_tokens() const override { return static_cast<int>(tokens.size()); }

  std::vector<int32_t> tokens;
  size_t pinned = 0;
  std::vector<float> numbers = std::vector<float>(kNumVocab, 0.0f);
  std::optional<Error> decode_error;
};

}  // namespace pith::testing

#endif  // PITH_SESSION_SESSION_TEST_UTIL_H_
