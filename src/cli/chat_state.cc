#include "cli/chat_state.h"

#include <algorithm>
#include <span>
#include <utility>

#include <fmt/format.h>

namespace pith::cli {

Result<std::unique_ptr<ChatState>> ChatState::Create(std::shared_ptr<HostModel> model, const EngineOptions& options,
                                                     ConversationOptions conversation) {
  std::unique_ptr<ChatState> state(new ChatState(std::move(model), options, std::move(conversation)));
  PITH_RETURN_IF_ERROR(state->Open());
  return state;
}

// The bytes of one engine go before another one takes its own.
Status ChatState::Open() {
  sequence_.reset();
  PITH_ASSIGN_OR_RETURN(std::shared_ptr<Engine> engine, Engine::Create(model_, options_));
  PITH_ASSIGN_OR_RETURN(sequence_, EngineSequence::Create(std::move(engine), SequenceOptions(options_)));
  return {};
}

Result<ChatState::Queued> ChatState::Say(const std::string& message) {
  const auto fits = [this](const Conversation& conversation, int read) {
    return static_cast<size_t>(read) + conversation.pending().size() < static_cast<size_t>(num_ctx());
  };
  Conversation before = conversation_;
  const std::span<const int32_t> pending = before.pending();
  Mark mark{before.num_messages(), {pending.begin(), pending.end()}, sequence_->num_tokens()};
  PITH_RETURN_IF_ERROR(conversation_.Say(message));
  if (fits(conversation_, sequence_->num_tokens())) {
    marks_.push_back(std::move(mark));
    return Queued::kYes;
  }
  Conversation alone = conversation_;
  Status status = alone.Restart();
  if (!status || !fits(alone, 0)) {
    conversation_ = std::move(before);
    PITH_RETURN_IF_ERROR(status);
    return Queued::kTooLong;
  }
  PITH_RETURN_IF_ERROR(sequence_->Reset());
  conversation_ = std::move(alone);
  marks_ = {Mark()};
  return Queued::kStartedAnew;
}

Result<std::optional<std::string>> ChatState::Undo(const Progress& progress) {
  const std::span<const ChatMessage> messages = conversation_.messages();
  size_t last = messages.size();
  while (last > 0 && messages[last - 1].role != "user") --last;
  if (last == 0) return std::optional<std::string>();
  std::string message = messages[last - 1].content;
  const bool known = !marks_.empty() && marks_.back().num_messages < last;
  Mark mark = known ? std::move(marks_.back()) : Mark{last - 1, {}, -1};
  if (known) marks_.pop_back();
  if (mark.num_messages == 0) mark.num_messages = last - 1;
  const bool is_first = last == 1 || (last == 2 && messages[0].role == "system");
  if (is_first) {
    PITH_RETURN_IF_ERROR(Reset());
    return std::optional(std::move(message));
  }
  const Result<int> left = mark.num_tokens > 0 ? sequence_->GoBack(mark.num_tokens) : Result<int>(0);
  conversation_.Truncate(mark.num_messages, std::move(mark.pending));
  if (!left || *left != mark.num_tokens) PITH_RETURN_IF_ERROR(ReadAgain(progress));
  return std::optional(std::move(message));
}

Status ChatState::ReadAgain(const Progress& progress) {
  marks_.clear();
  PITH_RETURN_IF_ERROR(sequence_->Reset());
  return conversation_.Replay(*sequence_, progress);
}

Status ChatState::Reset() {
  marks_.clear();
  PITH_RETURN_IF_ERROR(sequence_->Reset());
  conversation_.Reset();
  return {};
}

Status ChatState::Change(const EngineOptions& options, const Progress& progress) {
  const std::span<const int32_t> pending = conversation_.pending();
  const SessionNote note{.tokens = {pending.begin(), pending.end()}, .text = {}};
  const bool same_recipe = options.recipe.text == options_.recipe.text;
  const bool has_read = sequence_->num_tokens() > 0;
  PITH_ASSIGN_OR_RETURN(const std::vector<std::byte> saved, sequence_->SaveToMemory(note, SavedForm::kExact));
  const EngineOptions before = std::exchange(options_, options);
  Status status = Open();
  const bool taken = status && same_recipe && has_read && sequence_->RestoreFromMemory(saved).has_value();
  if (status && has_read && !taken) status = ReadAgain(progress);
  if (status) return {};
  options_ = before;
  Status back = Open();
  if (back && has_read) {
    const auto restored = sequence_->RestoreFromMemory(saved);
    if (!restored) back = tl::unexpected<Error>(restored.error());
    std::vector<int32_t> queued = note.tokens;
    if (restored) conversation_.Truncate(conversation_.num_messages(), std::move(queued));
  }
  if (!back) PITH_RETURN_IF_ERROR(Reset());
  return status;
}

// The tokens that the cache does not have yet go along.
Status ChatState::Save(const std::string& path) const {
  const std::span<const int32_t> pending = conversation_.pending();
  return sequence_->Save(path, {.tokens = {pending.begin(), pending.end()}, .text = conversation_.Save()});
}

Result<bool> ChatState::Load(const std::string& path) {
  const bool has_read = sequence_->num_tokens() > 0;
  std::vector<std::byte> saved;  // its bytes may be all that there are
  if (has_read) {
    PITH_ASSIGN_OR_RETURN(saved, sequence_->SaveToMemory({}, SavedForm::kExact));
  }
  Conversation before = conversation_;
  const Result<bool> loaded = TakeFile(path);
  if (loaded && *loaded) {
    marks_.clear();
    return true;
  }
  conversation_ = std::move(before);
  if (has_read && !sequence_->RestoreFromMemory(saved)) PITH_RETURN_IF_ERROR(Reset());
  return loaded;
}

Result<bool> ChatState::TakeFile(const std::string& path) {
  conversation_.Reset();
  PITH_ASSIGN_OR_RETURN(auto restored, sequence_->Restore(path));
  if (!restored) return false;
  const Status status =
      conversation_.Restore(restored->note.text, std::move(restored->note.tokens), sequence_->num_tokens());
  if (status) return true;
  PITH_RETURN_IF_ERROR(sequence_->Reset());
  return MakeError(status.error().code,
                   fmt::format("the session {} cannot be used: {}", path, status.error().message));
}

std::vector<MapRow> ChatState::Rows() const {
  const std::span<const ChatMessage> messages = conversation_.messages();
  std::vector<MapRow> rows;
  for (const Mark& mark : marks_) {
    size_t at = mark.num_messages;
    while (at < messages.size() && messages[at].role != "user") ++at;
    rows.push_back({mark.num_tokens, at < messages.size() ? messages[at].content : std::string()});
  }
  if (!rows.empty() && rows.front().from == 0) return rows;
  std::vector<MapRow> all = EarlierRows(rows.empty() ? sequence_->num_tokens() : rows.front().from);
  if (all.empty()) all.push_back({0, rows.empty() ? "all of it" : "before"});
  all.insert(all.end(), rows.begin(), rows.end());
  return all;
}

// As they are read anew: of answers that were written then, tokens may be others by a few.
std::vector<MapRow> ChatState::EarlierRows(int num_tokens) const {
  const std::span<const ChatMessage> messages = conversation_.messages();
  const size_t count = marks_.empty() ? messages.size() : std::min(marks_.front().num_messages, messages.size());
  Conversation again = conversation_;
  again.Reset();
  std::vector<MapRow> rows;
  int at = 0;
  for (size_t i = 0; i < count && at < num_tokens; ++i) {
    if (messages[i].role == "user") {
      rows.push_back({at, messages[i].content});
      if (!again.Say(messages[i].content)) return {};
      at += static_cast<int>(again.pending().size());
      again.AlreadyRead(again.pending().size());
    } else if (messages[i].role == "assistant") {
      const Result<std::vector<int32_t>> tokens = text_.Tokenize(messages[i].content, false, false);
      if (!tokens) return {};
      at += static_cast<int>(tokens->size());
      again.Answered(messages[i].content, std::nullopt);
    }
  }
  return rows;
}

}  // namespace pith::cli
