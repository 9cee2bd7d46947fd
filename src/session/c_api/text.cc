// Samplers and generators.
#include <fmt/format.h>

#include <utility>

#include "base/logits.h"
#include "host/json_schema.h"
#include "session/c_api/handles.h"

namespace pith::c_api {
namespace {

pith_sampler_options ToC(const SamplerOptions& own, size_t struct_size) {
  pith_sampler_options options{};
  options.struct_size = struct_size;
  options.temperature = own.temperature;
  options.dynatemp_range = own.dynatemp_range;
  options.dynatemp_exponent = own.dynatemp_exponent;
  options.top_k = own.top_k;
  options.top_p = own.top_p;
  options.min_p = own.min_p;
  options.typical_p = own.typical_p;
  options.top_n_sigma = own.top_n_sigma;
  options.xtc_probability = own.xtc_probability;
  options.xtc_threshold = own.xtc_threshold;
  options.repeat_last_n = own.repeat_last_n;
  options.repeat_penalty = own.repeat_penalty;
  options.presence_penalty = own.presence_penalty;
  options.frequency_penalty = own.frequency_penalty;
  options.dry_multiplier = own.dry_multiplier;
  options.dry_base = own.dry_base;
  options.dry_allowed_length = own.dry_allowed_length;
  options.dry_last_n = own.dry_last_n;
  options.mirostat = own.mirostat;
  options.mirostat_tau = own.mirostat_tau;
  options.mirostat_eta = own.mirostat_eta;
  options.seed = own.seed;
  options.ignore_eos = own.ignore_eos;
  return options;
}

void TakeNumbers(const pith_sampler_options& options, SamplerOptions& own) {
  own.temperature = options.temperature;
  own.dynatemp_range = options.dynatemp_range;
  own.dynatemp_exponent = options.dynatemp_exponent;
  own.top_k = options.top_k;
  own.top_p = options.top_p;
  own.min_p = options.min_p;
  own.typical_p = options.typical_p;
  own.top_n_sigma = options.top_n_sigma;
  own.xtc_probability = options.xtc_probability;
  own.xtc_threshold = options.xtc_threshold;
  own.repeat_last_n = options.repeat_last_n;
  own.repeat_penalty = options.repeat_penalty;
  own.presence_penalty = options.presence_penalty;
  own.frequency_penalty = options.frequency_penalty;
  own.dry_multiplier = options.dry_multiplier;
  own.dry_base = options.dry_base;
  own.dry_allowed_length = options.dry_allowed_length;
  own.dry_last_n = options.dry_last_n;
  own.mirostat = options.mirostat;
  own.mirostat_tau = options.mirostat_tau;
  own.mirostat_eta = options.mirostat_eta;
  own.seed = options.seed;
  own.ignore_eos = options.ignore_eos;
}

}  // namespace

Result<GeneratorOptions> ReadGeneratorOptions(const pith_generator_options* given) {
  PITH_ASSIGN_OR_RETURN(const pith_generator_options options, Read(given, "options of the generator"));
  if (options.num_logprobs < 0) return InvalidArgument("num_logprobs must not be negative");
  GeneratorOptions own;
  own.max_tokens = options.max_tokens > 0 ? options.max_tokens : -1;
  own.num_logprobs = options.num_logprobs - 1;
  PITH_ASSIGN_OR_RETURN(own.stops, ReadTexts(options.stops, options.num_stops, "stop strings"));
  return own;
}

Status CheckLogitsOf(const ModelState& model, const float* logits, size_t count) {
  PITH_RETURN_IF_ERROR(Require(logits, "logits: read something into this sequence first"));
  if (count == static_cast<size_t>(model.model->info().num_vocab)) return {};
  return InvalidArgument(
      fmt::format("{} logits are not the {} of the vocabulary", count, model.model->info().num_vocab));
}

Result<SamplerOptions> ReadSamplerOptions(const HostModel& model, const pith_sampler_options* given) {
  SamplerOptions own = SamplingDefaults(model);
  own.repeat_context = model.info().trained_ctx;
  if (given == nullptr) return own;
  PITH_ASSIGN_OR_RETURN(const size_t size, SizeOf(given, "options of the sampler"));
  PITH_ASSIGN_OR_RETURN(pith_sampler_options options, Read(given, "options of the sampler"));
  // What an older program's struct lacks is what the model recommends, not zero.
  const size_t known = std::min(size, sizeof options);
  pith_sampler_options whole = ToC(own, sizeof whole);
  std::memcpy(&whole, &options, known);
  TakeNumbers(whole, own);
  if (whole.order != nullptr) {
    PITH_ASSIGN_OR_RETURN(own.sequence, ParseSequence(whole.order));
  }
  own.grammar = Text(whole.grammar);
  if (whole.json_schema != nullptr) {
    if (!own.grammar.empty()) return InvalidArgument("a grammar and a schema exclude one another; name one of them");
    PITH_ASSIGN_OR_RETURN(own.grammar, GrammarOfJsonSchema(whole.json_schema));
  }
  if (whole.num_biases > 0) {
    PITH_RETURN_IF_ERROR(Require(whole.bias_tokens, "tokens of the biases"));
    PITH_RETURN_IF_ERROR(Require(whole.biases, "biases"));
  }
  for (size_t i = 0; i < whole.num_biases; ++i) own.logit_bias.emplace_back(whole.bias_tokens[i], whole.biases[i]);
  return own;
}

void GenerationTexts::Take(GenerationResult from) {
  result = std::move(from);
  logprobs.clear();
  top_tokens.clear();
  top_logprobs.clear();
  num_top = result.logprobs.empty() ? 0 : result.logprobs.front().top.size();
  for (const TokenLogprobs& token : result.logprobs) {
    logprobs.push_back(token.chosen.logprob);
    for (const TokenLogprob& top : token.top) {
      top_tokens.push_back(top.token);
      top_logprobs.push_back(top.logprob);
    }
  }
}

pith_generation GenerationTexts::View(int prompt_tokens) const {
  pith_generation view{};
  view.text = result.text.c_str();
  view.text_length = result.text.size();
  view.tokens = result.tokens.data();
  view.num_tokens = result.tokens.size();
  view.prompt_tokens = prompt_tokens;
  view.stop = static_cast<pith_stop>(result.stop);
  view.stop_message = result.stop_message.c_str();
  view.first_token_seconds = result.first_token_seconds;
  view.seconds = result.seconds;
  view.logprobs = logprobs.empty() ? nullptr : logprobs.data();
  view.top_tokens = top_tokens.empty() ? nullptr : top_tokens.data();
  view.top_logprobs = top_logprobs.empty() ? nullptr : top_logprobs.data();
  view.num_top = num_top;
  return view;
}

}  // namespace pith::c_api

using namespace pith;         // NOLINT: functions of C have no namespace of their own
using namespace pith::c_api;  // NOLINT

extern "C" {

pith_status pith_sampler_options_init(const pith_model* model, pith_sampler_options* options, size_t struct_size) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(model, "model"));
    PITH_RETURN_IF_ERROR(Require(options, "place for options"));
    std::memcpy(options, &struct_size, sizeof struct_size);
    return Fill(ToC(SamplingDefaults(*model->state->model), struct_size), options, "options of the sampler");
  });
}

pith_status pith_sampler_new(const pith_model* model, const pith_sampler_options* options, pith_sampler** sampler) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(sampler, "place for the sampler"));
    *sampler = nullptr;
    PITH_RETURN_IF_ERROR(Require(model, "model"));
    PITH_ASSIGN_OR_RETURN(const SamplerOptions own, ReadSamplerOptions(*model->state->model, options));
    PITH_ASSIGN_OR_RETURN(std::unique_ptr<HostSampler> made, HostSampler::Create(*model->state->model, own));
    *sampler = new pith_sampler{model->state, std::move(made)};
    return {};
  });
}

void pith_sampler_free(pith_sampler* sampler) { delete sampler; }

pith_status pith_sampler_sample(pith_sampler* sampler, const float* logits, size_t count, int32_t* token) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(token, "place for the token"));
    *token = -1;
    PITH_RETURN_IF_ERROR(Require(sampler, "sampler"));
    PITH_RETURN_IF_ERROR(CheckLogitsOf(*sampler->model, logits, count));
    PITH_RETURN_IF_ERROR(CheckLogits({logits, count}));
    PITH_ASSIGN_OR_RETURN(*token, sampler->own->Sample({logits, count}));
    return {};
  });
}

pith_status pith_grammar_of_schema(const char* schema, char* buffer, size_t capacity, size_t* length) {
  return Guarded([&]() -> Status {
    if (length != nullptr) *length = 0;
    PITH_RETURN_IF_ERROR(Require(schema, "schema"));
    PITH_ASSIGN_OR_RETURN(const std::string grammar, GrammarOfJsonSchema(schema));
    const size_t needed = CopyText(grammar, buffer, capacity);
    if (length != nullptr) *length = needed;
    return {};
  });
}

void pith_sampler_reset(pith_sampler* sampler) {
  if (sampler != nullptr) sampler->own->StartOver();
}

pith_status pith_generator_new(const pith_model* model, pith_sampler* sampler, const pith_generator_options* options,
                               pith_generator** generator) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(generator, "place for the generator"));
    *generator = nullptr;
    PITH_RETURN_IF_ERROR(Require(model, "model"));
    PITH_RETURN_IF_ERROR(Require(sampler, "sampler"));
    PITH_ASSIGN_OR_RETURN(const GeneratorOptions own, ReadGeneratorOptions(options));
    *generator = new pith_generator{.model = model->state,
                                    .own = Generator(*model->state->text, SampleBy(*sampler->own), own),
                                    .piece = {},
                                    .texts = {}};
    return {};
  });
}

void pith_generator_free(pith_generator* generator) { delete generator; }

pith_status pith_generator_next(pith_generator* generator, const float* logits, size_t count, int32_t* token,
                                const char** text, size_t* text_length) {
  return Guarded([&]() -> Status {
    if (token != nullptr) *token = -1;
    if (text != nullptr) *text = "";
    if (text_length != nullptr) *text_length = 0;
    PITH_RETURN_IF_ERROR(Require(generator, "generator"));
    PITH_RETURN_IF_ERROR(Require(token, "place for the token"));
    if (!generator->own.done()) PITH_RETURN_IF_ERROR(CheckLogitsOf(*generator->model, logits, count));
    PITH_ASSIGN_OR_RETURN(GeneratorStep step, generator->own.Next({logits, count}));
    if (!step.done) *token = step.token;
    generator->piece = std::move(step.text);
    if (text != nullptr) *text = generator->piece.c_str();
    if (text_length != nullptr) *text_length = generator->piece.size();
    return {};
  });
}

bool pith_generator_done(const pith_generator* generator) { return generator == nullptr || generator->own.done(); }

void pith_generator_finish(pith_generator* generator, pith_stop stop) {
  (void)Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(generator, "generator"));
    if (stop < PITH_STOP_END || stop > PITH_STOP_BUDGET)
      return InvalidArgument(fmt::format("{} is no reason to stop", stop));
    generator->own.Finish(static_cast<StopReason>(stop));
    return {};
  });
}

pith_status pith_generator_get(const pith_generator* generator, pith_generation* generation) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(generator, "generator"));
    generator->texts.Take(generator->own.result());
    return Fill(generator->texts.View(0), generation, "place for the generation");
  });
}

}  // extern "C"
