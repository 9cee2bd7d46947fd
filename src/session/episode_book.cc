#include "session/episode_book.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

namespace pith {

Result<std::unique_ptr<EpisodeBook>> EpisodeBook::Create(const HostModel& model, const TurnOptions& options,
                                                         int num_threads) {
  std::unique_ptr<EpisodeBook> book(new EpisodeBook());
  PITH_ASSIGN_OR_RETURN(book->topics_, Topics::Create(model, options, num_threads));
  std::error_code error;
  std::filesystem::path folder = std::filesystem::temp_directory_path(error);
  std::string pattern = (folder / "pith-episodes-XXXXXX").string();
  if (error || ::mkdtemp(pattern.data()) == nullptr) {
    return IoError(fmt::format("no folder for the caches of a conversation's topics can be made in {}: {}",
                               folder.string(), error ? error.message() : std::strerror(errno)));
  }
  book->folder_ = std::move(pattern);
  return book;
}

EpisodeBook::~EpisodeBook() {
  std::error_code ignored;
  if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
}

Status EpisodeBook::Cluster(std::span<const ChatMessage> messages, int num_tokens) {
  PITH_RETURN_IF_ERROR(topics_->Cluster(messages.first(messages.size() - std::min<size_t>(messages.size(), 1))));
  caches_.clear();
  for (const std::vector<int32_t>& guide : topics_->guides()) {
    caches_.push_back({guide, fmt::format("{}/{}", folder_, caches_.size()), 0});
  }
  num_clustered_tokens_ = num_tokens;
  current = -1;
  return {};
}

void EpisodeBook::ForgetBeyond(int num_tokens) {
  for (Cache& cache : caches_) {
    if (cache.num_read > num_tokens) cache.num_read = 0;
  }
}

}  // namespace pith
