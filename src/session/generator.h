// From logits to text: one generation, step by step, and the loop that drives it over a sequence.
//
// A server that interleaves many sequences calls Generator::Next() with each one's logits and decodes the tokens that
// it returns in a batch; a program with one conversation calls Generate().
#ifndef PITH_SESSION_GENERATOR_H_
#define PITH_SESSION_GENERATOR_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/stopwatch.h"
#include "base/utf8.h"
#include "host/sampler.h"
#include "pith/stop_reason.h"
#include "pith/types.h"
#include "session/indent_filter.h"
#include "session/logprobs.h"
#include "session/stop_filter.h"
#include "session/text_model.h"
#include "session/token_sequence.h"

namespace pith {

// Chooses the next token by the logits. HostSampler in programs, a script in tests.
using Sampler = std::function<Result<int32_t>(std::span<const float> logits)>;
// `sampler` must outlive it.
Sampler SampleBy(HostSampler& sampler);
// Of a token that was just sampled by them, as LogprobsOf().
using LogprobSource = std::function<TokenLogprobs(std::span<const float> logits, int32_t chosen, int num_top)>;

struct GeneratorOptions {
  int max_tokens = -1;                  // -1: no limit
  std::vector<std::string> stops = {};  // the text ends before the first of them
  int num_logprobs = -1;                // per token so many of the likeliest; 0: the token's own; -1: none at all
  LogprobSource logprobs = LogprobsOf;  // where num_logprobs wants some
  double max_seconds = 0;               // since the first token: after so many the text ends with its line; 0: no limit
  int least_indent = 0;                 // blanks that each line but the first begins with, else the text ends before it
};

struct GenerationResult {
  std::string text;  // valid UTF-8
  std::vector<int32_t> tokens;  // sampled; without the one that ends the generation
  std::vector<TokenLogprobs> logprobs;  // of `tokens`, where they were wanted
  StopReason stop = StopReason::kEnd;
  std::string stop_message;          // kBudget: the sentence
  std::optional<int32_t> unfed;      // the last of `tokens`, if the sequence has not read it
  double first_token_seconds = 0;    // of sampling the first token
  double seconds = 0;                // from the first token on
  double decode_tps() const;
};

struct GeneratorStep {
  int32_t token = -1;  // to decode before the next step, unless `done`; -1: none was sampled
  std::string text;    // whole characters to show now; may be empty
  bool done = false;
};

// SampleBy(), and options.logprobs as of what a token was drawn from: those that the samplers left, after all that they
// did to them.
Sampler SampleAndTellBy(HostSampler& sampler, GeneratorOptions& options);

class Generator {
 public:
  // `model` must outlive it.
  Generator(const TextModel& model, Sampler sampler, GeneratorOptions options);

  // Samples after the last token decoded. Once a step is done, later ones repeat that. kCorrupt: the logits are not
  // numbers; or the sampler's error.
  Result<GeneratorStep> Next(std::span<const float> logits);

  // Ends it from outside; returns the text that was held back for a stop string or an unfinished character.
  std::string Finish(StopReason reason);

  bool done() const { return done_; }
  // What there is so far; complete once done(), but for `unfed` and seconds, which the driver knows.
  const GenerationResult& result() const { return result_; }
  GenerationResult Take() { return std::move(result_); }

 private:
  // A line has ended after max_seconds. Called once for each token.
  bool IsLate(std::string_view text);

  const TextModel& model_;
  Sampler sampler_;
  GeneratorOptions options_;
  Utf8Stream utf8_;
  StopFilter stops_;
  IndentFilter indent_;
  GenerationResult result_;
  std::optional<Stopwatch> since_first_;  // token, where its time matters
  bool done_ = false;
};

struct GenerateHooks {
  int num_ctx = 0;  // positions that the sequence may reach
  std::function<bool(std::string_view)> on_text = {};  // false ends the generation
  std::function<bool()> interrupted = {};              // asked before each token
};

// Drives a generator over a sequence that has read its prompt, until it is done. A budget that is full ends it like the
// context does, with the text so far; other errors of the sequence or the sampler are errors.
Result<GenerationResult> Generate(TokenSequence& sequence, Generator generator, const GenerateHooks& hooks);

}  // namespace pith

#endif  // PITH_SESSION_GENERATOR_H_
