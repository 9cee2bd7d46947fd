#include "session/conversation.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/json_text.h"

namespace pith {
namespace {

// Digits that occur nowhere in what is said: templates trim texts and change their case, but leave these alone.
std::string UnusedMark(std::span<const ChatMessage> messages, std::string_view message, std::string_view other) {
  for (uint64_t number = 731604958213;; number += 7919) {
    std::string mark = fmt::format("{}", number);
    const auto holds = [&mark](std::string_view text) { return text.find(mark) != std::string_view::npos; };
    const bool used = holds(message) || holds(other) ||
                      std::ranges::any_of(messages, [&](const ChatMessage& one) { return holds(one.content); });
    if (!used) return mark;
  }
}

std::string_view Trim(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r\n";
  const size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

bool ReadMessages(const nlohmann::json& json, std::vector<ChatMessage>& messages) {
  if (!json.is_array()) return false;
  for (const nlohmann::json& entry : json) {
    const bool whole = entry.is_object() && entry.contains("role") && entry["role"].is_string() &&
                       entry.contains("content") && entry["content"].is_string();
    if (!whole) return false;
    messages.push_back({entry["role"].get<std::string>(), entry["content"].get<std::string>()});
  }
  return true;
}

}  // namespace

Result<std::vector<ChatMessage>> ParseMessages(std::string_view text, std::string_view name) {
  std::vector<ChatMessage> messages;
  if (!ReadMessages(JsonOf(text), messages) || messages.empty()) {
    return Corrupt(fmt::format("{} holds no list of messages with role and content", name));
  }
  return messages;
}

// New text in three parts, of which the middle is the user's.
struct Conversation::Rendered {
  std::string before;
  std::string message;  // as the template wrote it
  std::string after;
  bool is_split = false;  // else all is in `message`

  // text: the new text; marked: the same with `mark` in place of the message.
  static Rendered Split(const std::string& text, const std::string& marked, const std::string& mark) {
    const size_t first = marked.find(mark);
    if (first != std::string::npos) {
      const std::string_view before = std::string_view(marked).substr(0, first);
      const std::string_view after = std::string_view(marked).substr(marked.rfind(mark) + mark.size());
      if (text.size() >= before.size() + after.size() && text.starts_with(before) && text.ends_with(after)) {
        return {std::string(before), text.substr(before.size(), text.size() - before.size() - after.size()),
                std::string(after), true};
      }
    }
    return {{}, text, {}, false};
  }
};

Conversation::Conversation(const TextModel& model, ConversationOptions options)
    : model_(&model), options_(std::move(options)) {}

Result<Conversation::Rendered> Conversation::RenderFirst(const std::string& message) const {
  std::vector<ChatMessage> messages;
  if (!options_.system.empty()) messages.push_back({"system", options_.system});
  messages.push_back({"user", message});
  PITH_ASSIGN_OR_RETURN(const std::string text, model_->Render(messages, true));
  const std::string mark = UnusedMark(messages, {}, {});
  messages.back().content = mark;
  PITH_ASSIGN_OR_RETURN(const std::string marked, model_->Render(messages, true));
  return Rendered::Split(text, marked, mark);
}

Result<Conversation::Rendered> Conversation::RenderLater(const std::string& message) const {
  const std::string answer_mark = UnusedMark(messages_, message, {});
  const std::string mark = UnusedMark(messages_, message, answer_mark);
  // What follows the last answer, with `content` as the new message; nothing if the template leaves that answer out.
  const auto after_answer = [&](std::vector<ChatMessage> history, const std::string& content) -> Result<std::string> {
    history.back().content = answer_mark;
    history.push_back({"user", content});
    PITH_ASSIGN_OR_RETURN(const std::string text, model_->Render(history, true));
    const size_t at = text.rfind(answer_mark);
    return at == std::string::npos ? std::string() : text.substr(at + answer_mark.size());
  };
  const auto render = [&](const std::vector<ChatMessage>& history) -> Result<Rendered> {
    PITH_ASSIGN_OR_RETURN(const std::string text, after_answer(history, message));
    PITH_ASSIGN_OR_RETURN(const std::string marked, after_answer(history, mark));
    return Rendered::Split(text, marked, mark);
  };
  const auto is_empty = [](const Result<Rendered>& rendered) {
    return rendered->before.empty() && rendered->message.empty();
  };

  Result<Rendered> rendered = render(messages_);
  if (!rendered) return rendered;
  // Templates that put the system message before the last user's: the sequence has it already.
  const std::string_view system = Trim(options_.system);
  if (!system.empty() && rendered->before.find(system) != std::string::npos) {
    const std::vector<ChatMessage> without(messages_.begin() + 1, messages_.end());
    if (Result<Rendered> shorter = render(without); shorter && !is_empty(shorter)) return shorter;
  }
  if (!is_empty(rendered)) return rendered;
  // A template that leaves out old messages, or changes them beyond recognition: the same turn in a short conversation.
  rendered = render({{"user", "a"}, {"assistant", ""}});
  if (rendered && is_empty(rendered)) {
    return Unsupported("the chat template leaves out what was answered before, so that the conversation cannot go on");
  }
  return rendered;
}

Status Conversation::Say(const std::string& message) {
  const bool first = messages_.empty();
  const bool after_answer = !first && messages_.back().role == "assistant";
  if (!first && messages_.back().role == "user") messages_.push_back({"assistant", ""});  // never answered
  PITH_ASSIGN_OR_RETURN(const Rendered rendered, first ? RenderFirst(message) : RenderLater(message));
  PITH_RETURN_IF_ERROR(Queue(rendered, first));
  if (first && !options_.system.empty()) messages_.push_back({"system", options_.system});
  messages_.push_back({"user", message});
  turn_begins_ = turn_begins_ || after_answer;
  return {};
}

Status Conversation::Queue(const Rendered& rendered, bool first) {
  const bool begins = !begun_;
  const auto tokenize = [&](std::string_view text, bool at_front, bool special) {
    return text.empty() && !at_front ? Result<std::vector<int32_t>>() : model_->Tokenize(text, at_front, special);
  };
  std::vector<int32_t> tokens;
  std::vector<int32_t> head;  // of the pinned ones
  const bool pins = first && !options_.system.empty();
  if (options_.control_tokens || !rendered.is_split) {
    const std::string text = rendered.before + rendered.message + rendered.after;
    PITH_ASSIGN_OR_RETURN(tokens, tokenize(text, begins, options_.control_tokens));
    if (pins && rendered.is_split) {
      PITH_ASSIGN_OR_RETURN(head, tokenize(rendered.before, begins, true));
    }
  } else {
    PITH_ASSIGN_OR_RETURN(head, tokenize(rendered.before, begins, true));
    PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> middle, tokenize(rendered.message, false, false));
    PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> tail, tokenize(rendered.after, false, true));
    tokens = head;
    tokens.insert(tokens.end(), middle.begin(), middle.end());
    tokens.insert(tokens.end(), tail.begin(), tail.end());
  }
  size_t num_pinned = 0;
  if (pins) {
    // A message may change how the end of the head falls into tokens.
    while (num_pinned < head.size() && num_pinned + 1 < tokens.size() && head[num_pinned] == tokens[num_pinned])
      ++num_pinned;
    if (num_pinned == 0 || rendered.before.find(Trim(options_.system)) == std::string::npos) {
      pin_note_ =
          "the chat template does not write the system message before the first message as it is, so that it may "
          "be dropped like all else";
    }
  }
  if (pending_.empty()) num_pinned_ = num_pinned;
  if (first && !begins) DropBegin(tokens);
  pending_.insert(pending_.end(), tokens.begin(), tokens.end());
  begun_ = true;
  return {};
}

// A first message after a raw text: what the template writes for the beginning of a sequence is not one here.
void Conversation::DropBegin(std::vector<int32_t>& tokens) const {
  const auto added = model_->Tokenize("", true, true);
  if (added && !added->empty() && !tokens.empty() && tokens.front() == added->front()) tokens.erase(tokens.begin());
}

Status Conversation::Append(std::string_view text) {
  PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, model_->Tokenize(text, !begun_, options_.control_tokens));
  pending_.insert(pending_.end(), tokens.begin(), tokens.end());
  begun_ = true;
  return {};
}

void Conversation::AlreadyRead(size_t count) {
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(count));
  num_pinned_ -= std::min(num_pinned_, count);
}

Status Conversation::Feed(TokenSequence& sequence, size_t count, const Progress& progress) {
  const auto feed = [&](size_t piece, bool pin) -> Status {
    if (piece == 0) return {};
    const int before = sequence.num_tokens();
    const Status status = sequence.Feed(std::span(pending_).first(piece), pin, progress);
    const auto fed = status ? piece : static_cast<size_t>(std::max(0, sequence.num_tokens() - before));
    pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(fed));
    if (pin) num_pinned_ -= fed;
    return status;
  };
  if (turn_begins_ && count > 0) {
    PITH_RETURN_IF_ERROR(sequence.BeginTurn(messages_, progress));
    turn_begins_ = false;
  }
  const size_t pinned = std::min(num_pinned_, count);
  PITH_RETURN_IF_ERROR(feed(pinned, true));
  return feed(count - pinned, false);
}

void Conversation::Continued(std::optional<int32_t> unfed) {
  if (unfed) pending_.push_back(*unfed);
}

void Conversation::Answered(std::string answer, std::optional<int32_t> unfed) {
  Continued(unfed);
  messages_.push_back({"assistant", std::move(answer)});
}

void Conversation::PinPending() {
  num_pinned_ = pending_.size();
  if (!messages_.empty()) pinned_.insert(messages_.size() - 1);
}

void Conversation::Truncate(size_t num_messages, std::vector<int32_t> pending) {
  messages_.resize(std::min(num_messages, messages_.size()));
  pinned_.erase(pinned_.lower_bound(messages_.size()), pinned_.end());
  pending_ = std::move(pending);
  num_pinned_ = 0;
  turn_begins_ = false;
  begun_ = !messages_.empty() || !pending_.empty();
}

Status Conversation::Take(std::vector<ChatMessage> messages) {
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    const bool system = role == "system" && i == 0 && messages[i].content == options_.system;
    if (system || role == "user" || role == "assistant") continue;
    return InvalidArgument(
        fmt::format("a conversation has messages of user and assistant, and a system message before them; message {} "
                    "is none of these",
                    i + 1));
  }
  messages_ = std::move(messages);
  return {};
}

Status Conversation::Replay(TokenSequence& sequence, const Progress& progress) {
  const std::vector<ChatMessage> messages = std::move(messages_);
  const std::set<size_t> pinned = std::move(pinned_);
  Reset();
  Status status;
  for (size_t i = 0; i < messages.size() && status; ++i) {
    if (messages[i].role == "user") {
      status = Say(messages[i].content);
      if (status && pinned.contains(i)) PinPending();
    } else if (messages[i].role == "assistant") {
      const Result<std::vector<int32_t>> tokens = model_->Tokenize(messages[i].content, false, false);
      if (tokens) pending_.insert(pending_.end(), tokens->begin(), tokens->end());
      if (!tokens) status = tl::unexpected<Error>(tokens.error());
      Answered(messages[i].content, std::nullopt);
    }
    if (status) status = Feed(sequence, progress);
  }
  messages_ = messages;
  pinned_ = pinned;
  return status;
}

void Conversation::Reset() {
  messages_.clear();
  pinned_.clear();
  pending_.clear();
  num_pinned_ = 0;
  begun_ = turn_begins_ = false;
}

Status Conversation::Restart() {
  const std::string message = messages_.empty() ? std::string() : messages_.back().content;
  Reset();
  return Say(message);
}

std::string Conversation::TakePinNote() { return std::exchange(pin_note_, std::string()); }

std::string Conversation::Save() const {
  auto json = nlohmann::json::array();
  for (size_t i = 0; i < messages_.size(); ++i) {
    json.push_back({{"role", messages_[i].role}, {"content", messages_[i].content}});
    if (pinned_.contains(i)) json.back()["pinned"] = true;
  }
  return JsonText(json);
}

Status Conversation::Restore(const std::string& text, std::vector<int32_t> pending, int num_read) {
  const nlohmann::json json = JsonOf(text);
  std::vector<ChatMessage> messages;
  if (!ReadMessages(json, messages)) return Corrupt("it holds no conversation of \"pith chat\"");
  std::set<size_t> pinned;
  for (size_t i = 0; i < json.size(); ++i) {
    if (json[i].contains("pinned") && json[i]["pinned"] == true) pinned.insert(i);
  }
  if (!messages.empty()) {  // else of a conversation that was reset, or that was never one of messages
    const std::string system = messages.front().role == "system" ? messages.front().content : std::string();
    if (!options_.system.empty() && system != options_.system) {
      return InvalidArgument("its conversation has another system message");
    }
    options_.system = system;
  }
  begun_ = num_read > 0 || !pending.empty();
  messages_ = std::move(messages);
  pinned_ = std::move(pinned);
  turn_begins_ = false;
  pending_ = std::move(pending);
  num_pinned_ = 0;
  return {};
}

}  // namespace pith
