#include "session/topics.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/repeat.h"

namespace pith {
namespace {

// What the paper's instruction asks for, in one sentence.
constexpr std::string_view kInstruction =
    "\n\nGather from the conversation above who speaks and what they are like, events with their dates, personal "
    "details, promises, rules, opinions, relations and moving moments.";

}  // namespace

std::vector<std::string> SegmentsOf(std::span<const ChatMessage> messages, int utterances) {
  std::vector<std::string> segments;
  int count = 0;
  for (const ChatMessage& message : messages) {
    if (message.role == "system") continue;
    if (count++ % utterances == 0) segments.emplace_back();
    segments.back() += fmt::format("{} said, \"{}\"\n", message.role, message.content);
  }
  return segments;
}

Result<std::unique_ptr<Topics>> Topics::Create(const HostModel& model, const TurnOptions& options, int num_threads) {
  std::unique_ptr<Topics> topics(new Topics(model, options));
  if (options.embedder.empty()) {
    PITH_ASSIGN_OR_RETURN(topics->embedder_, MakeInputEmbedder(model));
  } else {
    PITH_ASSIGN_OR_RETURN(topics->embedder_, LoadEmbedder(options.embedder, num_threads));
  }
  return topics;
}

// The nearest segments come first into what there is room for; then they stand in time order.
Result<std::vector<int32_t>> Topics::GuideOf(std::span<const std::string> segments, std::span<const int> chosen) const {
  PITH_ASSIGN_OR_RETURN(std::vector<int32_t> guide, model_.Tokenize(kInstruction, false, false));
  PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> answer, AnswerTokens(model_));
  guide.insert(guide.end(), answer.begin(), answer.end());
  std::string text;
  for (const int segment : chosen) text += segments[static_cast<size_t>(segment)] + "\n";
  PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, model_.Tokenize(text, false, false));
  const size_t count = std::min(tokens.size(), static_cast<size_t>(options_.block));
  guide.insert(guide.end(), tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count));
  return guide;
}

Status Topics::Cluster(std::span<const ChatMessage> messages) {
  const std::vector<std::string> segments = SegmentsOf(messages, options_.utterances);
  std::vector<float> rows;
  for (const std::string& segment : segments) {
    PITH_ASSIGN_OR_RETURN(const std::vector<float> row, embedder_->Embed(segment));
    rows.insert(rows.end(), row.begin(), row.end());
  }
  if (segments.empty()) return InvalidArgument("a conversation without messages has no topics");
  const Embeddings embeddings{rows.data(), segments.size(), rows.size() / segments.size()};
  episodes_ = ClusterFromSeed(embeddings, options_.episodes);
  guides_.clear();
  for (const std::vector<int>& chosen : Representatives(embeddings, episodes_, options_.representatives)) {
    PITH_ASSIGN_OR_RETURN(std::vector<int32_t> guide, GuideOf(segments, chosen));
    guides_.push_back(std::move(guide));
  }
  return {};
}

Result<int> Topics::Match(std::string_view question) {
  PITH_ASSIGN_OR_RETURN(const std::vector<float> row, embedder_->Embed(question));
  return BestMatch(MatchScores(row, episodes_, options_.cosine));
}

}  // namespace pith
