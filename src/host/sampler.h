// Sampling by libllama's samplers, in llama.cpp's order.
#ifndef PITH_HOST_SAMPLER_H_
#define PITH_HOST_SAMPLER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pith/types.h"

namespace pith {

class HostModel;

// Names, meanings and neutral values are llama.cpp's.
struct SamplerOptions {
  float temperature = 0.8f;        // <= 0: greedy
  float dynatemp_range = 0;        // the temperature moves by so much up and down with the entropy
  float dynatemp_exponent = 1;
  int top_k = 40;                  // 0: all
  float top_p = 0.95f;             // 1: all
  float min_p = 0.05f;             // 0: all
  float typical_p = 1;             // 1: all
  float top_n_sigma = -1;          // <= 0: all
  float xtc_probability = 0;       // 0: off
  float xtc_threshold = 0.1f;
  int repeat_last_n = 64;          // tokens that penalties look back on; -1: as many as repeat_context
  float repeat_penalty = 1;        // 1: off
  float presence_penalty = 0;
  float frequency_penalty = 0;
  float dry_multiplier = 0;        // 0: off
  float dry_base = 1.75f;
  int dry_allowed_length = 2;
  int dry_last_n = 64;             // as repeat_last_n
  std::vector<std::string> dry_breakers = {"\n", ":", "\"", "*"};
  int repeat_context = 4096;       // what -1 means
  // What changes the distribution, in this order: penalties, dry, top_n_sigma, top_k, typ_p, top_p, min_p, xtc,
  // temperature. Those that are missing do nothing.
  std::vector<std::string> sequence = {"penalties", "dry",   "top_n_sigma", "top_k",      "typ_p",
                                       "top_p",     "min_p", "xtc",         "temperature"};
  int mirostat = 0;                // 1, 2: instead of all that cuts the distribution
  float mirostat_tau = 5;
  float mirostat_eta = 0.1f;
  std::vector<std::pair<int32_t, float>> logit_bias;  // token, what is added; -inf forbids it
  std::string grammar;             // GBNF with a rule "root"; empty: none
  uint32_t seed = 0;
  bool ignore_eos = false;         // never samples a token that ends the generation
};

// What llama.cpp would take for this file: the values above, with those that the file names (general.sampling.*), or
// else those that its makers recommend, where pith knows them.
SamplerOptions SamplingDefaults(const HostModel& model);

// "penalties;top-k;temp" as SamplerOptions::sequence. kInvalidArgument: a name that is none.
Result<std::vector<std::string>> ParseSequence(const std::string& text);

// kInvalidArgument, with the flag's name as llama.cpp has it: a value outside its range.
Status CheckSampling(const SamplerOptions& options);

struct TokenProbability {
  int32_t token = -1;
  float probability = 0;
};

// Not thread-safe.
class HostSampler {
 public:
  // `model` outlives it. kInvalidArgument: CheckSampling()'s, a token that the vocabulary lacks, or a grammar that is
  // none.
  static Result<std::unique_ptr<HostSampler>> Create(const HostModel& model, const SamplerOptions& options);
  ~HostSampler();

  // [vocab] of numbers (base/logits.h). kUnsupported: the grammar allows no token.
  Result<int32_t> Sample(std::span<const float> logits);
  // The same, and what the token was drawn from: its own probability in front, then of the likeliest that were left to
  // choose from `num_top` at most, descending.
  Result<int32_t> Sample(std::span<const float> logits, int num_top, std::vector<TokenProbability>& drawn_from);
  // A new generation: penalties, grammar and mirostat begin anew, random numbers go on.
  void StartOver();

 private:
  explicit HostSampler(const HostModel& model);
  struct Private;
  const HostModel& model_;  // outlives it
  std::unique_ptr<Private> private_;
};

}  // namespace pith

#endif  // PITH_HOST_SAMPLER_H_
