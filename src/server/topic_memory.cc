#include "server/topic_memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <iterator>
#include <utility>

namespace pith::server {
namespace {

constexpr size_t kMostEntries = 16;

std::string TextOf(const TurnOptions& options, std::span<const ChatMessage> messages) {
  std::string text = fmt::format("{} {} {} {} {} {}\n", options.episodes, options.block, options.utterances,
                                 options.representatives, options.cosine, options.embedder);
  for (const ChatMessage& message : messages) {
    text += fmt::format("{} {} {}\n", message.role, message.content.size(), message.content);
  }
  return text;
}

}  // namespace

Result<std::vector<int32_t>> TopicMemory::GuideFor(const TurnOptions& options, std::span<const ChatMessage> messages) {
  const auto question = std::find_if(messages.rbegin(), messages.rend(),
                                     [](const ChatMessage& message) { return message.role == "user"; });
  if (question == messages.rend() || question->content.empty()) return std::vector<int32_t>();
  std::vector<ChatMessage> said;
  std::copy_if(messages.begin(), std::prev(question.base()), std::back_inserter(said),
               [](const ChatMessage& message) { return message.role != "system"; });
  // One segment is one topic.
  if (said.size() <= static_cast<size_t>(options.utterances)) return std::vector<int32_t>();
  const std::span<const ChatMessage> known = std::span(said).first(std::bit_floor(said.size()));
  std::string text = TextOf(options, known);
  const std::lock_guard lock(mutex_);
  auto found = std::ranges::find(entries_, text, &Entry::text);
  if (found == entries_.end()) {
    PITH_ASSIGN_OR_RETURN(std::shared_ptr<Topics> topics, Topics::Create(*model_, options, num_threads_));
    PITH_RETURN_IF_ERROR(topics->Cluster(known));
    entries_.push_front({std::move(text), std::move(topics)});
    if (entries_.size() > kMostEntries) entries_.pop_back();
  } else {
    entries_.splice(entries_.begin(), entries_, found);
  }
  Topics& topics = *entries_.front().topics;
  PITH_ASSIGN_OR_RETURN(const int topic, topics.Match(question->content));
  return topics.guides()[static_cast<size_t>(topic)];
}

}  // namespace pith::server
