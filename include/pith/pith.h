// pith as a library: one model, one conversation, one KV budget.
//
//   auto session = pith::Session::Open("model.gguf", {.kv_budget_bytes = 64 << 20, .recipe = "snapkv"});
//   if (!session) return Fail(session.error().message);
//   auto reply = session->Generate("Once upon a time", {.max_tokens = 100},
//                                  [](std::string_view text) { std::cout << text; return true; });
//
// No function throws. Nothing here depends on libllama's or pith's inner headers.
#ifndef PITH_PITH_H_
#define PITH_PITH_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <pith/stop_reason.h>
#include <pith/types.h>

#if defined(__GNUC__)
#define PITH_EXPORT __attribute__((visibility("default")))
#else
#define PITH_EXPORT
#endif

namespace pith {

// "0.1.0"
PITH_EXPORT const char* Version();

struct SessionOptions {
  // Hard limit on KV bytes, tables and libllama's block buffer included; held
  // during prefill too. 0: what the f16 cache of num_ctx takes.
  size_t kv_budget_bytes = 0;
  // Which entries stay when the budget is full: a name or stages, as `pith recipes` lists them.
  std::string recipe = "full";
  int num_ctx = 0;      // positions the conversation may reach; 0: the model's trained context
  int num_threads = 0;  // 0: physical cores
  uint64_t seed = 0;    // of sampling and of recipes that draw
  // System message of conversations in chat form, never dropped by the recipe. Empty: the template's own, if it has one.
  std::string system = {};
  // Conversations at once, forks included, which share the budget.
  int max_conversations = 1;
};

struct GenerateOptions {
  int max_tokens = 128;
  // Where these are not given: what the model's file or its makers recommend, else 0.8, 40, 0.95, 0.05 and 1.
  std::optional<float> temperature = {};  // 0: always the most probable token
  std::optional<int> top_k = {};
  std::optional<float> top_p = {};
  std::optional<float> min_p = {};
  std::optional<float> repeat_penalty = {};
  std::vector<std::string> stops = {};  // the text ends before the first of these
  std::string grammar = {};             // GBNF that the text keeps to
  bool ignore_eos = false;              // the model may not end the text
  // The prompt is one message of a user; the model's chat template is put around it.
  bool chat = false;
};

struct Generation {
  std::string text;  // valid UTF-8
  int prompt_tokens = 0;
  int tokens = 0;
  bool ended = false;  // the model ended it: stop is StopReason::kEnd
  StopReason stop = StopReason::kEnd;
  std::string stop_message = {};  // kBudget: what there is no room for
};

struct SessionStats {
  size_t kv_budget_bytes = 0;
  size_t kv_used_bytes = 0;
  size_t kv_peak_bytes = 0;   // never above the budget
  size_t kv_block_bytes = 0;  // libllama's own buffer, part of the above
  int64_t kv_entries = 0;
  double kept_fraction = 1;   // of the entries seen so far
  int num_tokens = 0;         // of the conversation
};

// Gets each piece of text (whole UTF-8 characters) as it is made; false stops.
using TextCallback = std::function<bool(std::string_view)>;

// A model with one conversation. Threads: one at a time over a session and its forks, Cancel() from any.
class PITH_EXPORT Session {
 public:
  // kNotFound, kCorrupt or kUnsupported for the file, kInvalidArgument for the
  // options, kOutOfBudget if the budget holds less than one block.
  static Result<Session> Open(const std::string& gguf_path, const SessionOptions& options = {});

  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  // Appends the prompt to the conversation and continues it; a text is there with its reason also where the context or
  // the budget ends. Each call draws its own random numbers, which seed and the order of calls fix over a session and
  // its forks. kInvalidArgument: options, or a prompt that is empty or longer than what is left of the context; the
  // conversation is then as it was. After other errors it is as far as it came; Reset() begins anew.
  Result<Generation> Generate(std::string_view prompt, const GenerateOptions& options = {},
                              const TextCallback& on_text = {});

  // Forgets the conversation, keeps the model.
  Status Reset();

  // A second conversation that goes on from here; it shares the model and, until one of the two changes them, the
  // entries. kOutOfBudget: there are max_conversations already.
  Result<Session> Fork() const;

  // Writes the conversation to a file, recurrent state and the state of recipes included. kIo: an older file stays.
  Status Save(const std::string& path) const;
  // Takes a saved conversation in place of this one; the next Generate() goes on with the same logits. The model and the
  // recipe must be those that it was saved with. kNotFound, kIo, kCorrupt, kInvalidArgument, kOutOfBudget; the
  // conversation is empty after an error.
  Status Restore(const std::string& path);

  // Makes a running Generate() return kCancelled, on this session or a fork of it; later ones are not concerned.
  void Cancel();

  SessionStats stats() const;

 private:
  struct State;
  explicit Session(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace pith

#endif  // PITH_PITH_H_
