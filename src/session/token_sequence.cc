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
  return engine_->Prefill(id_, tokens, pin, nullptr, progress);
}

Status EngineSequence::Decode(int32_t token) {
  return id_ == kNone ? Status(NoSequence()) : engine_->Decode(id_, token);
}

std::span<const float> EngineSequence::logits() const {
  return id_ == kNone ? std::span<const float>() : engine_->logits(id_);
}

int EngineSequence::num_tokens() const { return id_ == kNone ? 0 : engine_->num_tokens(id_); }

Status EngineSequence::Reset() {
  Free();
  PITH_ASSIGN_OR_RETURN(id_, NewSequence(*engine_, options_));
  return {};
}

Result<int> EngineSequence::GoBack(int num_tokens) {
  if (id_ == kNone) return NoSequence();
  const int target = engine_->RewindTarget(id_, num_tokens);
  PITH_RETURN_IF_ERROR(engine_->Rewind(id_, target));
  return target;
}

Result<std::unique_ptr<EngineSequence>> EngineSequence::Fork() const {
  if (id_ == kNone) return NoSequence();
  PITH_ASSIGN_OR_RETURN(const SequenceId id, engine_->Fork(id_));
  return std::unique_ptr<EngineSequence>(new EngineSequence(engine_, options_, id));
}

Status EngineSequence::Save(const std::string& path, const SessionNote& note) const {
  return id_ == kNone ? Status(NoSequence()) : engine_->Save(id_, path, note);
}

Result<std::optional<EngineSequence::Restored>> EngineSequence::Restore(const std::string& path) {
  struct stat info {};
  const bool empty = ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && info.st_size == 0;
  Free();  // its place may be the only one
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

Result<std::vector<std::byte>> EngineSequence::SaveToMemory(const SessionNote& note) const {
  return id_ == kNone ? Result<std::vector<std::byte>>(NoSequence()) : engine_->SaveToMemory(id_, note);
}

Result<EngineSequence::Restored> EngineSequence::RestoreFromMemory(std::span<const std::byte> saved) {
  Free();  // its place may be the only one
  const SequenceOptions& own = engine_->options();
  Result<RestoredSequence> restored = engine_->RestoreFromMemory(saved, options_ ? *options_ : own);
  if (!restored) return Renew(restored.error());
  id_ = restored->sequence;
  return Restored{std::move(restored->note), restored->has_logits};
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
