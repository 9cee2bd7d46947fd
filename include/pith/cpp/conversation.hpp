// Messages, the model's template, one sequence of its own.
#ifndef PITH_CPP_CONVERSATION_HPP_
#define PITH_CPP_CONVERSATION_HPP_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <pith/cpp/engine.hpp>
#include <pith/cpp/text.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace pith {
inline namespace api {

struct ConversationOptions {
  std::string system = {};            // never dropped; empty: the template's own, if it has one
  bool plain_control_tokens = false;  // control tokens in messages and texts are text
  SequenceOptions sequence = {};
};

class Conversation {
 public:
  static Result<Conversation> Create(const Engine& engine, const ConversationOptions& options = {}) {
    pith_conversation* made = nullptr;
    PITH_RETURN_IF_ERROR(internal::WithOptions(options.sequence, [&](const pith_sequence_options* sequence) {
      auto own = PITH_INIT(pith_conversation_options);
      own.system = internal::OrNull(options.system);
      own.plain_control_tokens = options.plain_control_tokens;
      own.sequence = sequence;
      return internal::ToStatus(pith_conversation_new(engine.get(), &own, &made));
    }));
    return Conversation(engine, made);
  }
  Result<Conversation> Fork() const {
    pith_conversation* fork = nullptr;
    PITH_RETURN_IF_ERROR(internal::ToStatus(pith_conversation_fork(get(), &fork)));
    return Conversation(engine_, fork);
  }

  // A message of the user, in the model's template, and the answer. A text is there with its reason also where the
  // context or the budget ends. kInvalidArgument: options, or a message that is empty or longer than what is left of
  // the context; the conversation is then as it was. After other errors it is as far as it came.
  Result<Generation> Say(const std::string& message, const GenerateOptions& options = {},
                         const TextCallback& on_text = {}) {
    return Generate(message.c_str(), nullptr, options, on_text);
  }
  // The same for a text without a template, which the model goes on with.
  Result<Generation> Complete(const std::string& text, const GenerateOptions& options = {},
                              const TextCallback& on_text = {}) {
    return Generate(nullptr, text.c_str(), options, on_text);
  }
  // Goes on after an answer that was cut.
  Result<Generation> GoOn(const GenerateOptions& options = {}, const TextCallback& on_text = {}) {
    return Generate(nullptr, nullptr, options, on_text);
  }
  // Reads a text that nothing is generated for yet.
  Status Read(const std::string& text, const ProgressCallback& progress = {}) {
    PITH_RETURN_IF_ERROR(internal::ToStatus(pith_conversation_append(get(), text.c_str())));
    return internal::ToStatus(
        pith_conversation_read(get(), internal::ProgressOf(progress), internal::UserOf(progress)));
  }

  // Forgets what was said; the system message stays.
  Status Reset() { return internal::ToStatus(pith_conversation_reset(get())); }
  // From any thread: what runs ends with kCancelled after the token, or block of a prompt, at hand.
  void Cancel() { pith_conversation_cancel(get()); }

  // With its messages. kIo: an older file stays.
  Status Save(const std::string& path) const { return internal::ToStatus(pith_conversation_save(get(), path.c_str())); }
  Result<std::vector<std::byte>> SaveToMemory() const {
    std::vector<std::byte> bytes;
    PITH_RETURN_IF_ERROR(internal::ToStatus(pith_conversation_save_to(get(), internal::Append, &bytes)));
    return bytes;
  }
  // In place of what was said. The model and the recipe must be those that it was saved with; after an error the
  // conversation is empty.
  Status Restore(const std::string& path) { return internal::ToStatus(pith_conversation_restore(get(), path.c_str())); }
  Status Restore(std::span<const std::byte> saved) {
    return internal::ToStatus(pith_conversation_restore_from(get(), internal::TakeFront, &saved));
  }

  const Engine& engine() const { return engine_; }
  int num_tokens() const { return pith_sequence_num_tokens(sequence()); }
  pith_sequence_stats stats() const {
    auto stats = PITH_INIT(pith_sequence_stats);
    (void)pith_sequence_get_stats(sequence(), &stats);
    return stats;
  }
  Result<double> Compress(double keep_fraction, const std::string& recipe = {}) {
    double kept = 0;
    PITH_RETURN_IF_ERROR(
        internal::ToStatus(pith_sequence_compress(sequence(), internal::OrNull(recipe), keep_fraction, &kept)));
    return kept;
  }
  // Why the system message is not pinned; empty where it is.
  std::string note() const { return pith_conversation_note(get()); }
  pith_conversation* get() const { return handle_.get(); }

 private:
  Conversation(Engine engine, pith_conversation* handle) : engine_(std::move(engine)), handle_(handle) {}
  pith_sequence* sequence() const { return pith_conversation_sequence(get()); }

  Result<Generation> Generate(const char* message, const char* text, const GenerateOptions& options,
                              const TextCallback& on_text) {
    const std::vector<const char*> stops = internal::Pointers(options.stops);
    auto generation = PITH_INIT(pith_generation);
    PITH_RETURN_IF_ERROR(
        internal::WithSampling(engine_.model(), options.sampling, [&](const pith_sampler_options* sampling) {
          auto own = PITH_INIT(pith_generate_options);
          own.message = message;
          own.text = text;
          own.max_tokens = options.max_tokens;
          own.num_logprobs = options.num_logprobs;
          own.stops = stops.data();
          own.num_stops = stops.size();
          own.sampling = sampling;
          own.on_text = on_text ? OnText : nullptr;
          own.user = const_cast<TextCallback*>(&on_text);
          return internal::ToStatus(pith_conversation_generate(get(), &own, &generation));
        }));
    return internal::ToGeneration(generation);
  }
  static bool OnText(void* user, const char* text, size_t length) noexcept {
    return (*static_cast<const TextCallback*>(user))({text, length});
  }

  Engine engine_;
  std::unique_ptr<pith_conversation, internal::Deleter<pith_conversation_free>> handle_;
};

}  // namespace api
}  // namespace pith

#endif  // PITH_CPP_CONVERSATION_HPP_
