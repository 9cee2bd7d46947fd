// One sequence as this layer sees it: tokens in, logits out.
#ifndef PITH_SESSION_TOKEN_SEQUENCE_H_
#define PITH_SESSION_TOKEN_SEQUENCE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "pith/types.h"
#include "session/episode_book.h"

namespace pith {

class TokenSequence {
 public:
  virtual ~TokenSequence() = default;

  // Appends tokens in blocks; pin: no recipe drops them. After an error num_tokens() says how far it came.
  virtual Status Feed(std::span<const int32_t> tokens, bool pin, const Progress& progress) = 0;
  // A message of a conversation is about to be read, the last of these, after an answer: what recipes with turns= do
  // then.
  virtual Status BeginTurn([[maybe_unused]] std::span<const ChatMessage> messages, const Progress& progress) {
    (void)progress;
    return {};
  }
  // Appends one sampled token.
  virtual Status Decode(int32_t token) = 0;
  // [vocab], of the last token. Valid until the next call.
  virtual std::span<const float> logits() const = 0;
  virtual int num_tokens() const = 0;
};

// A sequence of an engine, freed with this object.
class EngineSequence final : public TokenSequence {
 public:
  // options: none: the engine's own. kOutOfBudget: the engine has no place for another one.
  static Result<std::unique_ptr<EngineSequence>> Create(std::shared_ptr<Engine> engine,
                                                        std::optional<SequenceOptions> options = {});
  ~EngineSequence() override;
  EngineSequence(const EngineSequence&) = delete;
  EngineSequence& operator=(const EngineSequence&) = delete;

  Status Feed(std::span<const int32_t> tokens, bool pin, const Progress& progress) override;
  Status BeginTurn(std::span<const ChatMessage> messages, const Progress& progress) override;
  Status Decode(int32_t token) override;
  std::span<const float> logits() const override;
  int num_tokens() const override;

  // Forgets all that was read. After an error there is no sequence left, and every call fails until the next Reset().
  Status Reset();
  // Goes back to where a text can be read on whose first num_tokens tokens this sequence has read already. Returns how
  // many of them need not be read again (Engine::RewindTarget()); 0: the sequence is empty.
  Result<int> GoBack(int num_tokens);
  // A copy that shares its entries until one of the two changes.
  Result<std::unique_ptr<EngineSequence>> Fork() const;

  Status Save(const std::string& path, const SessionNote& note) const;
  struct Restored {
    SessionNote note;
    bool has_logits = false;  // logits() works at once
  };
  // Takes what the file holds in place of what was read so far. Nothing, and an empty sequence, where the file is
  // missing or empty. Otherwise Engine::Restore()'s errors, after which the sequence is empty, too.
  Result<std::optional<Restored>> Restore(const std::string& path);
  // The same through memory.
  Result<std::vector<std::byte>> SaveToMemory(const SessionNote& note, SavedForm form = SavedForm::kOptions) const;
  Result<Restored> RestoreFromMemory(std::span<const std::byte> saved);

  SequenceId id() const { return id_; }
  bool is_there() const { return id_ >= 0; }  // Reset() has not failed
  Engine& engine() const { return *engine_; }

 private:
  EngineSequence(std::shared_ptr<Engine> engine, std::optional<SequenceOptions> options, SequenceId id)
      : engine_(std::move(engine)), options_(std::move(options)), id_(id) {}
  void Free();
  const Recipe& recipe() const { return options_ ? options_->recipe : engine_->options().recipe; }
  // Another episode's cache takes this one's place.
  Status Change(int episode);
  void ForgetEpisodes();
  // kCancelled: the live cache lacks something.
  Status CheckWhole() const;
  // Reads what the live cache lacks.
  Status CatchUp(const Progress& progress);
  // After an error, which is returned: an empty sequence.
  tl::unexpected<Error> Renew(const Error& error);

  std::shared_ptr<Engine> engine_;
  std::optional<SequenceOptions> options_;
  SequenceId id_;
  std::unique_ptr<EpisodeBook> episodes_;  // turns=epicache, once something was dropped
  // Tokens of the conversation that its cache, another one than before, has not read yet, and how many are pinned.
  std::vector<int32_t> missing_;
  size_t num_missing_pins_ = 0;
};

// kIo: a session could not be written to this path. Writes nothing: made to be known before a long prompt is read.
Status CheckSessionPath(const std::string& path);

}  // namespace pith

#endif  // PITH_SESSION_TOKEN_SEQUENCE_H_
