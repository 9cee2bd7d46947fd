// A conversation in the terminal: its engine, its sequence and its messages, and ways back.
#ifndef PITH_CLI_CHAT_STATE_H_
#define PITH_CLI_CHAT_STATE_H_

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/cache_map.h"
#include "engine/engine.h"
#include "session/conversation.h"
#include "session/text_model.h"
#include "session/token_sequence.h"

namespace pith::cli {

class ChatState {
 public:
  static Result<std::unique_ptr<ChatState>> Create(std::shared_ptr<HostModel> model, const EngineOptions& options,
                                                   ConversationOptions conversation);

  const EngineOptions& options() const { return options_; }
  EngineSequence& sequence() { return *sequence_; }
  Engine& engine() { return sequence_->engine(); }
  Conversation& conversation() { return conversation_; }
  const HostText& text() const { return text_; }
  int num_ctx() const { return options_.num_ctx; }

  enum class Queued { kYes, kTooLong, kStartedAnew };
  // Queues a message. What does not fit into the context begins a new conversation, and what does not fit even so is
  // not queued. Errors of Conversation::Say(), which leave all as it was.
  Result<Queued> Say(const std::string& message);
  // Takes the last message and its answer back; the message is returned, nothing where there is none. Where the cache
  // cannot go back, what is left is read again.
  Result<std::optional<std::string>> Undo(const Progress& progress);
  Status Reset();
  // Other bytes, or another recipe: in a new engine, into which the cache is taken where it can be, else the
  // conversation is read again. After an error all is as it was, or an empty conversation where even that is
  // impossible.
  Status Change(const EngineOptions& options, const Progress& progress);

  // The whole conversation with its cache. kIo.
  Status Save(const std::string& path) const;
  // In place of what was said; false: there is no such file, or it is empty. Then, and after an error, all is as it
  // was.
  Result<bool> Load(const std::string& path);

  // The text by its messages, for DrawCacheMap().
  std::vector<MapRow> Rows() const;

 private:
  ChatState(std::shared_ptr<HostModel> model, const EngineOptions& options, ConversationOptions conversation)
      : model_(std::move(model)), text_(model_), options_(options), conversation_(text_, std::move(conversation)) {}

  Status Open();
  Status ReadAgain(const Progress& progress);
  Result<bool> TakeFile(const std::string& path);
  // Of messages that have no mark, within the first num_tokens.
  std::vector<MapRow> EarlierRows(int num_tokens) const;

  // Where the conversation stood before a message.
  struct Mark {
    size_t num_messages = 0;
    std::vector<int32_t> pending;
    int num_tokens = 0;
  };

  std::shared_ptr<HostModel> model_;
  HostText text_;
  EngineOptions options_;
  std::unique_ptr<EngineSequence> sequence_;
  Conversation conversation_;
  std::vector<Mark> marks_;  // of the last messages; none of what was loaded or read again
};

}  // namespace pith::cli

#endif  // PITH_CLI_CHAT_STATE_H_
