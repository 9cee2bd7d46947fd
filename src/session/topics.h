// The topics of a conversation (turns=epicache; arXiv:2509.17396), and which of them a question is about.
//
//   messages -> segments of a few -> unit vectors -> k-means -> topics
//                                                     each: the segments nearest to its centre, which guide its cache
#ifndef PITH_SESSION_TOPICS_H_
#define PITH_SESSION_TOPICS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "host/embedder.h"
#include "host/model.h"
#include "pith/types.h"
#include "policy/learn/episodes.h"
#include "policy/turns/turns.h"

namespace pith {

class Topics {
 public:
  // The model must outlive it. Errors of the embedder.
  static Result<std::unique_ptr<Topics>> Create(const HostModel& model, const TurnOptions& options, int num_threads);

  // Topics anew, by these messages. kInvalidArgument: there are none but the system's.
  Status Cluster(std::span<const ChatMessage> messages);
  // The topic of a question, once there are some.
  Result<int> Match(std::string_view question);
  // Of each topic: the text by which its cache is judged.
  std::span<const std::vector<int32_t>> guides() const { return guides_; }

 private:
  Topics(const HostModel& model, const TurnOptions& options) : model_(model), options_(options) {}
  Result<std::vector<int32_t>> GuideOf(std::span<const std::string> segments, std::span<const int> chosen) const;

  const HostModel& model_;
  TurnOptions options_;
  std::unique_ptr<TextEmbedder> embedder_;
  Episodes episodes_;
  std::vector<std::vector<int32_t>> guides_;
};

// The segments of a conversation: so many messages each, `role said, "text"` a line.
std::vector<std::string> SegmentsOf(std::span<const ChatMessage> messages, int utterances);

}  // namespace pith

#endif  // PITH_SESSION_TOPICS_H_
