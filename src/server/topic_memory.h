// What the question of a conversation is about, for recipes with turns=epicache.
//
// Requests come with all messages each time, and nothing is known of them but these. So topics follow from the messages
// alone: they are found among the first 1, 2, 4, 8, ... messages, as many as there are before the question, and stay
// the same until the conversation is twice as long. Each topic's cache is then a prefix as others are (prefixes.h).
#ifndef PITH_SERVER_TOPIC_MEMORY_H_
#define PITH_SERVER_TOPIC_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "host/model.h"
#include "pith/types.h"
#include "policy/turns/turns.h"
#include "session/topics.h"

namespace pith::server {

// Threads: any.
class TopicMemory {
 public:
  TopicMemory(std::shared_ptr<const HostModel> model, int num_threads)
      : model_(std::move(model)), num_threads_(num_threads) {}

  // The text by which the cache of the last message's topic is judged; nothing where there is but one topic. Errors of
  // the embedder.
  Result<std::vector<int32_t>> GuideFor(const TurnOptions& options, std::span<const ChatMessage> messages);

 private:
  struct Entry {
    std::string text;  // of what the topics were found in, options included
    std::shared_ptr<Topics> topics;
  };

  const std::shared_ptr<const HostModel> model_;
  const int num_threads_;
  std::mutex mutex_;          // of all: finding topics takes milliseconds
  std::list<Entry> entries_;  // the one that was used last first
};

}  // namespace pith::server

#endif  // PITH_SERVER_TOPIC_MEMORY_H_
