// Samplers and generators: from logits to text.
#ifndef PITH_CPP_TEXT_HPP_
#define PITH_CPP_TEXT_HPP_

#include <pith/stop_reason.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <pith/cpp/model.hpp>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace pith {
inline namespace api {

// What is not given: what the model's file or its makers recommend, else llama.cpp's.
struct SamplingOptions {
  std::optional<float> temperature = {};  // 0: always the most probable token
  std::optional<int> top_k = {};
  std::optional<float> top_p = {};
  std::optional<float> min_p = {};
  std::optional<float> typical_p = {};
  std::optional<float> repeat_penalty = {};
  std::optional<float> presence_penalty = {};
  std::optional<float> frequency_penalty = {};
  std::optional<int> repeat_last_n = {};
  std::optional<float> dry_multiplier = {};
  std::optional<int> mirostat = {};
  uint32_t seed = 0;             // 0: conversations draw from the engine's seed
  bool ignore_eos = false;       // the model may not end the text
  std::string order = {};        // "penalties;top_k;temperature"
  std::string grammar = {};      // GBNF that the text keeps to
  std::string json_schema = {};  // in place of a grammar
  std::vector<std::pair<int32_t, float>> logit_bias = {};
};

namespace internal {

// Calls use with the options as C takes them, over what the model recommends.
template <typename Use>
Status WithSampling(const Model& model, const SamplingOptions& options, const Use& use) {
  pith_sampler_options own;
  PITH_RETURN_IF_ERROR(ToStatus(pith_sampler_options_init(model.get(), &own, sizeof own)));
  const auto set = [](auto& field, const auto& value) {
    if (value) field = static_cast<std::remove_reference_t<decltype(field)>>(*value);
  };
  set(own.temperature, options.temperature);
  set(own.top_k, options.top_k);
  set(own.top_p, options.top_p);
  set(own.min_p, options.min_p);
  set(own.typical_p, options.typical_p);
  set(own.repeat_penalty, options.repeat_penalty);
  set(own.presence_penalty, options.presence_penalty);
  set(own.frequency_penalty, options.frequency_penalty);
  set(own.repeat_last_n, options.repeat_last_n);
  set(own.dry_multiplier, options.dry_multiplier);
  set(own.mirostat, options.mirostat);
  own.seed = options.seed;
  own.ignore_eos = options.ignore_eos;
  own.order = OrNull(options.order);
  own.grammar = OrNull(options.grammar);
  own.json_schema = OrNull(options.json_schema);
  std::vector<int32_t> tokens;
  std::vector<float> biases;
  for (const auto& [token, bias] : options.logit_bias) {
    tokens.push_back(token);
    biases.push_back(bias);
  }
  own.bias_tokens = tokens.data();
  own.biases = biases.data();
  own.num_biases = tokens.size();
  return use(&own);
}

}  // namespace internal

class Sampler {
 public:
  static Result<Sampler> Create(const Model& model, const SamplingOptions& options = {}) {
    pith_sampler* made = nullptr;
    PITH_RETURN_IF_ERROR(internal::WithSampling(model, options, [&](const pith_sampler_options* own) {
      return internal::ToStatus(pith_sampler_new(model.get(), own, &made));
    }));
    return Sampler(made);
  }
  Result<int32_t> Sample(std::span<const float> logits) {
    int32_t token = -1;
    PITH_RETURN_IF_ERROR(internal::ToStatus(pith_sampler_sample(get(), logits.data(), logits.size(), &token)));
    return token;
  }
  void Reset() { pith_sampler_reset(get()); }
  pith_sampler* get() const { return handle_.get(); }

 private:
  explicit Sampler(pith_sampler* handle) : handle_(handle) {}
  std::unique_ptr<pith_sampler, internal::Deleter<pith_sampler_free>> handle_;
};

struct GenerateOptions {
  int max_tokens = 128;                 // < 0: no limit
  std::vector<std::string> stops = {};  // the text ends before the first of these
  int num_logprobs = 0;                 // per token its own and the n - 1 likeliest; 0: none
  SamplingOptions sampling = {};
};

struct Generation {
  std::string text;  // valid UTF-8
  Tokens tokens;     // without the one that ended it
  int prompt_tokens = 0;
  StopReason stop = StopReason::kEnd;
  std::string stop_message;  // kBudget: what there is no room for
  double first_token_seconds = 0;
  double seconds = 0;                                       // from the first token on
  std::vector<float> logprobs;                              // [tokens]
  std::vector<std::vector<std::pair<int32_t, float>>> top;  // [tokens], the likeliest with theirs

  bool ended() const { return stop == StopReason::kEnd; }
};

namespace internal {

inline Generation ToGeneration(const pith_generation& from) {
  Generation to;
  to.text.assign(from.text, from.text_length);
  to.tokens.assign(from.tokens, from.tokens + from.num_tokens);
  to.prompt_tokens = from.prompt_tokens;
  to.stop = static_cast<StopReason>(from.stop);
  to.stop_message = from.stop_message;
  to.first_token_seconds = from.first_token_seconds;
  to.seconds = from.seconds;
  if (from.logprobs != nullptr) to.logprobs.assign(from.logprobs, from.logprobs + from.num_tokens);
  for (size_t i = 0; from.num_top > 0 && i < from.num_tokens; ++i) {
    to.top.emplace_back();
    for (size_t j = i * from.num_top; j < (i + 1) * from.num_top; ++j) {
      to.top.back().emplace_back(from.top_tokens[j], from.top_logprobs[j]);
    }
  }
  return to;
}

}  // namespace internal

// Logits to text, token by token, for programs that batch sequences themselves.
class Generator {
 public:
  static Result<Generator> Create(const Model& model, const GenerateOptions& options = {}) {
    PITH_ASSIGN_OR_RETURN(Sampler sampler, Sampler::Create(model, options.sampling));
    const std::vector<const char*> stops = internal::Pointers(options.stops);
    auto own = PITH_INIT(pith_generator_options);
    own.max_tokens = options.max_tokens;
    own.num_logprobs = options.num_logprobs;
    own.stops = stops.data();
    own.num_stops = stops.size();
    pith_generator* made = nullptr;
    PITH_RETURN_IF_ERROR(internal::ToStatus(pith_generator_new(model.get(), sampler.get(), &own, &made)));
    return Generator(std::move(sampler), made);
  }

  struct Next {
    int32_t token = -1;  // to decode before the next call; -1: it is done
    std::string text;    // to show now
  };
  Result<Next> Take(std::span<const float> logits) {
    Next next;
    const char* text = nullptr;
    size_t length = 0;
    PITH_RETURN_IF_ERROR(
        internal::ToStatus(pith_generator_next(get(), logits.data(), logits.size(), &next.token, &text, &length)));
    next.text.assign(text, length);
    return next;
  }
  bool done() const { return pith_generator_done(get()); }
  // Ends it from outside.
  void Finish(StopReason reason) { pith_generator_finish(get(), static_cast<pith_stop>(reason)); }
  // What there is so far.
  Generation generation() const {
    auto generation = PITH_INIT(pith_generation);
    (void)pith_generator_get(get(), &generation);
    return internal::ToGeneration(generation);
  }
  pith_generator* get() const { return handle_.get(); }

 private:
  Generator(Sampler sampler, pith_generator* handle) : sampler_(std::move(sampler)), handle_(handle) {}
  Sampler sampler_;
  std::unique_ptr<pith_generator, internal::Deleter<pith_generator_free>> handle_;  // goes first
};

}  // namespace api
}  // namespace pith

#endif  // PITH_CPP_TEXT_HPP_
