#include "session/generator.h"

#include <cmath>
#include <utility>

#include "base/logits.h"
#include "base/stopwatch.h"

namespace pith {
Sampler SampleBy(HostSampler& sampler) {
  return [&sampler](std::span<const float> logits) { return sampler.Sample(logits); };
}

Sampler SampleAndTellBy(HostSampler& sampler, GeneratorOptions& options) {
  const auto drawn_from = std::make_shared<std::vector<TokenProbability>>();
  options.logprobs = [drawn_from](std::span<const float>, int32_t, int) {
    TokenLogprobs logprobs;
    for (size_t i = 0; i < drawn_from->size(); ++i) {
      const TokenProbability& one = (*drawn_from)[i];
      const TokenLogprob entry{one.token, std::log(one.probability)};
      if (i == 0)
        logprobs.chosen = entry;
      else
        logprobs.top.push_back(entry);
    }
    return logprobs;
  };
  return [&sampler, drawn_from, num_top = options.num_logprobs](std::span<const float> logits) {
    return sampler.Sample(logits, num_top, *drawn_from);
  };
}

double GenerationResult::decode_tps() const {
  // The first token needs no decoding.
  return tokens.size() < 2 || seconds <= 0 ? 0 : static_cast<double>(tokens.size() - 1) / seconds;
}

Generator::Generator(const TextModel& model, Sampler sampler, GeneratorOptions options)
    : model_(model),
      sampler_(std::move(sampler)),
      options_(std::move(options)),
      stops_(options_.stops),
      indent_(options_.least_indent) {}

Result<GeneratorStep> Generator::Next(std::span<const float> logits) {
  GeneratorStep step;
  const auto finish = [&](StopReason reason) {
    step.text += Finish(reason);
    step.done = true;
    return step;
  };
  if (done_) return finish(result_.stop);
  const auto is_full = [this] {
    return options_.max_tokens >= 0 && result_.tokens.size() >= static_cast<size_t>(options_.max_tokens);
  };
  if (is_full()) return finish(StopReason::kLength);
  PITH_RETURN_IF_ERROR(CheckLogits(logits));
  PITH_ASSIGN_OR_RETURN(step.token, sampler_(logits));
  if (model_.IsEnd(step.token)) return finish(StopReason::kEnd);
  result_.tokens.push_back(step.token);
  if (options_.num_logprobs >= 0)
    result_.logprobs.push_back(options_.logprobs(logits, step.token, options_.num_logprobs));
  step.text = indent_.Push(stops_.Push(utf8_.Push(model_.Piece(step.token))));
  result_.text += step.text;
  if (indent_.hit()) return finish(StopReason::kLength);
  if (stops_.hit()) return finish(StopReason::kStopString);
  if (is_full() || IsLate(step.text)) return finish(StopReason::kLength);
  return step;
}

bool Generator::IsLate(std::string_view text) {
  if (options_.max_seconds <= 0) return false;
  if (!since_first_) since_first_.emplace();
  return text.find('\n') != std::string_view::npos && since_first_->seconds() > options_.max_seconds;
}

std::string Generator::Finish(StopReason reason) {
  if (done_) return {};
  done_ = true;
  result_.stop = reason;
  std::string rest = stops_.Push(utf8_.Flush());
  if (stops_.hit()) {
    result_.stop = StopReason::kStopString;
  } else {
    rest += stops_.Flush();
  }
  rest = indent_.Push(rest) + indent_.Flush();
  result_.text += rest;
  return rest;
}

Result<GenerationResult> Generate(TokenSequence& sequence, Generator generator, const GenerateHooks& hooks) {
  const Stopwatch whole;
  double first_token_seconds = 0;
  Stopwatch rest;
  std::optional<int32_t> unfed;
  std::string stop_message;
  bool wanted = true;
  const auto show = [&](const std::string& text) {
    if (hooks.on_text && wanted && !text.empty()) wanted = hooks.on_text(text);
  };
  while (!generator.done()) {
    if (hooks.interrupted && hooks.interrupted()) {
      show(generator.Finish(StopReason::kInterrupted));
      break;
    }
    const size_t num_before = generator.result().tokens.size();
    PITH_ASSIGN_OR_RETURN(const GeneratorStep step, generator.Next(sequence.logits()));
    if (first_token_seconds == 0) {
      first_token_seconds = whole.seconds();
      rest = Stopwatch();
    }
    if (generator.result().tokens.size() > num_before) unfed = step.token;
    show(step.text);
    if (step.done) break;
    if (!wanted) {
      generator.Finish(StopReason::kCallback);
    } else if (sequence.num_tokens() >= hooks.num_ctx) {
      show(generator.Finish(StopReason::kContext));
    } else if (const Status status = sequence.Decode(step.token); status) {
      unfed.reset();
    } else if (status.error().code == ErrorCode::kCancelled) {
      show(generator.Finish(StopReason::kInterrupted));
    } else if (status.error().code == ErrorCode::kOutOfBudget) {
      stop_message = status.error().message;
      show(generator.Finish(StopReason::kBudget));
    } else {
      return tl::unexpected<Error>(status.error());
    }
  }
  GenerationResult result = generator.Take();
  result.unfed = unfed;
  result.stop_message = std::move(stop_message);
  result.first_token_seconds = first_token_seconds;
  result.seconds = rest.seconds();
  return result;
}

}  // namespace pith
