// Messages and the tokens that a sequence must read for them.
//
// The sequence holds the conversation; each turn reads only what is new: the end of the answer before it (that the
// model never saw as input), the new message, and the opening of the next answer.
//
//   first turn     [ BOS, system message, user opening | message | user end, assistant opening ]
//                    pinned, if a system message was given
//   later turns    [ assistant end, user opening       | message | user end, assistant opening ]
//
// What the template puts there is found by rendering the whole conversation with a mark in place of the last answer,
// and taking what follows the mark. So it does not matter what the template does to earlier messages, and nothing that
// stands at the beginning is ever read a second time.
#ifndef PITH_SESSION_CONVERSATION_H_
#define PITH_SESSION_CONVERSATION_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pith/types.h"
#include "session/text_model.h"
#include "session/token_sequence.h"

namespace pith {

struct ConversationOptions {
  std::string system;           // system message; empty: the template's own, if it has one
  bool control_tokens = true;   // control tokens in messages and texts of the user are tokens, as llama.cpp takes them
};

class Conversation {
 public:
  // `model` must outlive it.
  Conversation(const TextModel& model, ConversationOptions options);

  // Queues the user's message with what the template puts around it. Whatever the template or the tokenizer refuse
  // leaves the conversation as it was.
  Status Say(const std::string& message);
  // Queues a text as it is, without a template.
  Status Append(std::string_view text);

  // The sequence has read the first `count` of pending() already (a session that was taken up).
  void AlreadyRead(size_t count);
  // Reads what is queued. What an error or an interrupt keeps from being read stays in the queue.
  Status Feed(TokenSequence& sequence, const Progress& progress = {}) {
    return Feed(sequence, pending_.size(), progress);
  }
  // The first `count` of it.
  Status Feed(TokenSequence& sequence, size_t count, const Progress& progress);

  // What is queued is never dropped; nor is the last message, where the conversation is read anew.
  void PinPending();
  // The answer to what was said. `unfed`: its last token, which the sequence has not read (Generation::unfed).
  void Answered(std::string answer, std::optional<int32_t> unfed);
  // The same for what was generated after Append(), which is no message.
  void Continued(std::optional<int32_t> unfed);

  // Back to the first num_messages messages, with what was queued then, for a sequence that went back as well.
  void Truncate(size_t num_messages, std::vector<int32_t> pending);
  // Of a conversation that nothing was said in yet: these were, and are to be read by Replay(). kInvalidArgument: roles
  // other than system (the first, and the options' own), user and assistant.
  Status Take(std::vector<ChatMessage> messages);
  // Reads all messages into an empty sequence, turn by turn. After an error or an interrupt the conversation has all of
  // its messages, but the sequence only a part of them.
  Status Replay(TokenSequence& sequence, const Progress& progress = {});

  // Forgets everything, for an empty sequence; the system message stays.
  void Reset();
  // The same, but queues the last message as the first of the new conversation. Only between Say() and Answered().
  Status Restart();

  // Not read yet, in order.
  std::span<const int32_t> pending() const { return pending_; }
  // So many of them are pinned.
  size_t num_pinned() const { return num_pinned_; }
  // Some template keeps the system message from being pinned: the sentence that says so, for once. Else empty.
  std::string TakePinNote();
  size_t num_messages() const { return messages_.size(); }
  std::span<const ChatMessage> messages() const { return messages_; }

  // Messages as JSON: [{"role": "user", "content": "..."}, ...]; what is queued is saved apart (pending()).
  std::string Save() const;
  // For a sequence that has read all but `pending`, num_read tokens. kCorrupt: the text is none of Save()'s;
  // kInvalidArgument: it has another system message than the options. The conversation is as before after an error.
  Status Restore(const std::string& text, std::vector<int32_t> pending, int num_read);

 private:
  struct Rendered;
  Result<Rendered> RenderFirst(const std::string& message) const;
  Result<Rendered> RenderLater(const std::string& message) const;
  Status Queue(const Rendered& rendered, bool first);
  void DropBegin(std::vector<int32_t>& tokens) const;

  const TextModel* model_;
  ConversationOptions options_;
  std::vector<ChatMessage> messages_;
  std::set<size_t> pinned_;  // of messages_, by index; the system message apart
  std::vector<int32_t> pending_;
  size_t num_pinned_ = 0;  // of pending_, at its front
  bool begun_ = false;     // something was read or queued
  bool turn_begins_ = false;  // the sequence does not know yet that a turn is over
  std::string pin_note_;
};

// A list of messages as JSON, [{"role": "...", "content": "..."}, ...], at least one. kCorrupt: the sentence begins
// with `name`.
Result<std::vector<ChatMessage>> ParseMessages(std::string_view text, std::string_view name);

}  // namespace pith

#endif  // PITH_SESSION_CONVERSATION_H_
