#include "session/token_sequence.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include <fmt/format.h>

namespace pith {
namespace {

constexpr SequenceId kNone = -1;

tl::unexpected<Error> NoSequence() { return MakeError(ErrorCode::kOutOfBudget, "the conversation has lost its place"); }

Result<SequenceId> NewSequence(Engine& engine, const std::optional<SequenceOptions>& options) {
  return options ? engine.NewSequence(*options) : engine.NewSequence();
}

}  // namespace

Result<std::unique_ptr<EngineSequence>> EngineSequence::Create(std::shared_ptr<Engine> engine,
                                                               std::optional<SequenceOptions> options) {
  PITH_ASSIGN_OR_RETURN(const SequenceId id, NewSequence(*engine, options));
  return std::unique_ptr<EngineSequence>(new EngineSequence(std::move(engine), std::move(options), id));
}

EngineSequence::~EngineSequence() { Free(); }

void EngineSequence::Free() {
  if (id_ != kNone) engine_->Free(id_);
  id_ = kNone;
}

Status EngineSequence::Feed(std::span<const int32_t> tokens, bool pin, const Progress& progress) {
  if (id_ == kNone) return NoSequence();
  PITH_RETURN_IF_ERROR(CatchUp(progress));
  return engine_->Prefill(id_, tokens, pin, nullptr, progress);
}

Status EngineSequence::CatchUp(const Progress& progress) {
  while (!missing_.empty()) {
    const bool pins = num_missing_pins_ > 0;
    const size_t count = pins ? num_missing_pins_ : missing_.size();
    const int before = engine_->num_tokens(id_);
    const Status status = engine_->Prefill(id_, std::span(missing_).first(count), pins, nullptr, progress);
    const auto done = static_cast<size_t>(engine_->num_tokens(id_) - before);
    missing_.erase(missing_.begin(), missing_.begin() + static_cast<std::ptrdiff_t>(done));
    num_missing_pins_ -= std::min(num_missing_pins_, done);
    PITH_RETURN_IF_ERROR(status);
  }
  return {};
}

Status EngineSequence::BeginTurn(std::span<const ChatMessage> messages, const Progress& progress) {
  if (id_ == kNone) return NoSequence();
  const std::optional<TurnOptions>& turns = recipe().turns;
  if (!turns || messages.empty()) return {};
  if (turns->method == TurnMethod::kFlowKv) return engine_->EndTurn(id_);
  PITH_RETURN_IF_ERROR(CatchUp(progress));
  const SequenceStats stats = engine_->stats(id_);
  if (stats.entries == stats.entries_seen) return {};  // nothing was dropped: every topic is there
  if (episodes_ == nullptr) {
    PITH_ASSIGN_OR_RETURN(episodes_,
                          EpisodeBook::Create(engine_->model(), *turns, engine_->options().num_threads));
  }
  if (episodes_->IsStale(stats.num_tokens)) PITH_RETURN_IF_ERROR(episodes_->Cluster(messages, stats.num_tokens));
  PITH_ASSIGN_OR_RETURN(const int episode, episodes_->Match(messages.back().content));
  if (episode != episodes_->current) PITH_RETURN_IF_ERROR(Change(episode));
  PITH_RETURN_IF_ERROR(CatchUp(progress));
  return engine_->EndTurn(id_);
}

Status EngineSequence::Change(int episode) {
  std::vector<int32_t> tokens = engine_->Tokens(id_);
  const auto num_pinned = static_cast<size_t>(engine_->stats(id_).num_pinned);
  if (episodes_->current >= 0) {
    EpisodeBook::Cache& left = episodes_->caches()[static_cast<size_t>(episodes_->current)];
    PITH_RETURN_IF_ERROR(engine_->Save(id_, left.path, {}, SavedForm::kExact));
    left.num_read = static_cast<int>(tokens.size());
  }
  EpisodeBook::Cache& cache = episodes_->caches()[static_cast<size_t>(episode)];
  Free();
  if (cache.num_read > 0) {
    const Result<RestoredSequence> restored =
        options_ ? engine_->Restore(cache.path, *options_) : engine_->Restore(cache.path);
    if (restored) id_ = restored->sequence;
  }
  if (id_ == kNone) {
    PITH_ASSIGN_OR_RETURN(id_, NewSequence(*engine_, options_));
  }
  episodes_->current = episode;
  const int read = engine_->num_tokens(id_);
  missing_.assign(tokens.begin() + read, tokens.end());
  num_missing_pins_ = read == 0 ? num_pinned : 0;
  return engine_->SetGuide(id_, cache.guide);
}

Status EngineSequence::Decode(int32_t token) {
  if (id_ == kNone) return NoSequence();
  PITH_RETURN_IF_ERROR(CatchUp({}));
  return engine_->Decode(id_, token);
}

std::span<const float> EngineSequence::logits() const {
  return id_ == kNone ? std::span<const float>() : engine_->logits(id_);
}

int EngineSequence::num_tokens() const {
  return id_ == kNone ? 0 : engine_->num_tokens(id_) + static_cast<int>(missing_.size());
}

Status EngineSequence::Reset() {
  Free();
  ForgetEpisodes();
  PITH_ASSIGN_OR_RETURN(id_, NewSequence(*engine_, options_));
  return {};
}

void EngineSequence::ForgetEpisodes() {
  episodes_.reset();
  missing_.clear();
  num_missing_pins_ = 0;
}

Result<int> EngineSequence::GoBack(int num_tokens) {
  if (id_ == kNone) return NoSequence();
  if (!missing_.empty()) PITH_RETURN_IF_ERROR(CatchUp({}));
  const int target = engine_->RewindTarget(id_, num_tokens);
  if (episodes_ != nullptr) episodes_->ForgetBeyond(target);
  PITH_RETURN_IF_ERROR(engine_->Rewind(id_, target));
  return target;
}

Result<std::unique_ptr<EngineSequence>> EngineSequence::Fork() const {
  if (id_ == kNone) return NoSequence();
  PITH_RETURN_IF_ERROR(CheckWhole());
  PITH_ASSIGN_OR_RETURN(const SequenceId id, engine_->Fork(id_));
  return std::unique_ptr<EngineSequence>(new EngineSequence(engine_, options_, id));
}

Status EngineSequence::Save(const std::string& path, const SessionNote& note) const {
  if (id_ == kNone) return NoSequence();
  PITH_RETURN_IF_ERROR(CheckWhole());
  return engine_->Save(id_, path, note);
}

Result<std::optional<EngineSequence::Restored>> EngineSequence::Restore(const std::string& path) {
  struct stat info {};
  const bool empty = ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && info.st_size == 0;
  Free();  // its place may be the only one
  ForgetEpisodes();
  if (!empty) {
    Result<RestoredSequence> restored = options_ ? engine_->Restore(path, *options_) : engine_->Restore(path);
    if (restored) {
      id_ = restored->sequence;
      return Restored{std::move(restored->note), restored->has_logits};
    }
    if (restored.error().code != ErrorCode::kNotFound) return Renew(restored.error());
  }
  PITH_RETURN_IF_ERROR(Reset());
  return std::optional<Restored>();
}

tl::unexpected<Error> EngineSequence::Renew(const Error& error) {
  if (const Status status = Reset(); !status) return tl::unexpected<Error>(status.error());
  return tl::unexpected<Error>(error);
}

Result<std::vector<std::byte>> EngineSequence::SaveToMemory(const SessionNote& note, SavedForm form) const {
  if (id_ == kNone) return NoSequence();
  PITH_RETURN_IF_ERROR(CheckWhole());
  return engine_->SaveToMemory(id_, note, form);
}

Result<EngineSequence::Restored> EngineSequence::RestoreFromMemory(std::span<const std::byte> saved) {
  Free();  // its place may be the only one
  ForgetEpisodes();
  const SequenceOptions& own = engine_->options();
  Result<RestoredSequence> restored = engine_->RestoreFromMemory(saved, options_ ? *options_ : own);
  if (!restored) return Renew(restored.error());
  id_ = restored->sequence;
  return Restored{std::move(restored->note), restored->has_logits};
}

Status EngineSequence::CheckWhole() const {
  if (missing_.empty()) return {};
  return Cancelled("reading the conversation into another topic's cache was stopped; the next message goes on with it");
}

Status CheckSessionPath(const std::string& path) {
  const auto refused = [&path](const char* reason) {
    return IoError(fmt::format("the session file {} could not be written: {}", path, reason));
  };
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0) {
    if (S_ISDIR(info.st_mode)) return refused("it is a folder");
    return ::access(path.c_str(), W_OK) == 0 ? Status() : refused(std::strerror(errno));
  }
  if (errno != ENOENT) return refused(std::strerror(errno));
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  return ::access(folder.c_str(), W_OK | X_OK) == 0 ? Status() : refused(std::strerror(errno));
}

}  // namespace pith
