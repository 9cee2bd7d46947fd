// The topics of a conversation (session/topics.h), each with a cache that rests in a file.
//
// A question goes to the topic of the nearest centre. Its cache is read when it is first asked, and again what was said
// since it was last asked, so that none lacks the newest turns; the paper's lack what other topics answered.
#ifndef PITH_SESSION_EPISODE_BOOK_H_
#define PITH_SESSION_EPISODE_BOOK_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "host/model.h"
#include "pith/types.h"
#include "policy/turns/turns.h"
#include "session/topics.h"

namespace pith {

class EpisodeBook {
 public:
  // The model must outlive it. Errors of the embedder, or of the folder for temporary files.
  static Result<std::unique_ptr<EpisodeBook>> Create(const HostModel& model, const TurnOptions& options,
                                                     int num_threads);
  ~EpisodeBook();
  EpisodeBook(const EpisodeBook&) = delete;
  EpisodeBook& operator=(const EpisodeBook&) = delete;

  // Topics anew, by all messages but the last; their caches are forgotten. num_tokens: that these messages have.
  Status Cluster(std::span<const ChatMessage> messages, int num_tokens);
  // True: there are none, or the conversation is twice as long as when they were found.
  bool IsStale(int num_tokens) const { return caches_.empty() || num_tokens >= 2 * num_clustered_tokens_; }
  // The topic of a question.
  Result<int> Match(std::string_view question) { return topics_->Match(question); }

  struct Cache {
    std::vector<int32_t> guide;
    std::string path;
    int num_read = 0;  // tokens of the conversation; 0: it has no file
  };
  std::vector<Cache>& caches() { return caches_; }
  int current = -1;  // whose cache is live; -1: none's
  // Caches that have read more are no use any more.
  void ForgetBeyond(int num_tokens);

 private:
  EpisodeBook() = default;

  std::unique_ptr<Topics> topics_;
  std::string folder_;
  std::vector<Cache> caches_;
  int num_clustered_tokens_ = 0;
};

}  // namespace pith

#endif  // PITH_SESSION_EPISODE_BOOK_H_
