#include <limits>
#include <vector>

#include "base/check.h"
#include "host/llama_util.h"
#include "host/model.h"

namespace pith {

struct HostSampler::Private {
  LlamaSamplerPtr chain;
  std::vector<llama_token_data> candidates;  // [vocab], reused
};

HostSampler::HostSampler(const HostModel& model, const SamplerOptions& options) : private_(std::make_unique<Private>()) {
  llama_sampler* chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
  private_->chain.reset(chain);
  private_->candidates.resize(static_cast<size_t>(model.info().num_vocab));
  if (options.ignore_eos) {
    std::vector<llama_logit_bias> biases;
    for (int32_t token = 0; token < model.info().num_vocab; ++token) {
      if (model.IsEndOfGeneration(token)) biases.push_back({token, -std::numeric_limits<float>::infinity()});
    }
    llama_sampler_chain_add(chain, llama_sampler_init_logit_bias(model.info().num_vocab,
                                                                 static_cast<int32_t>(biases.size()), biases.data()));
  }
  if (options.temperature <= 0) {
    llama_sampler_chain_add(chain, llama_sampler_init_greedy());
    return;
  }
  if (options.top_k > 0) llama_sampler_chain_add(chain, llama_sampler_init_top_k(options.top_k));
  if (options.top_p < 1) llama_sampler_chain_add(chain, llama_sampler_init_top_p(options.top_p, 1));
  if (options.min_p > 0) llama_sampler_chain_add(chain, llama_sampler_init_min_p(options.min_p, 1));
  llama_sampler_chain_add(chain, llama_sampler_init_temp(options.temperature));
  llama_sampler_chain_add(chain, llama_sampler_init_dist(options.seed));
}

HostSampler::~HostSampler() = default;

int32_t HostSampler::Sample(std::span<const float> logits) {
  std::vector<llama_token_data>& candidates = private_->candidates;
  PITH_CHECK(logits.size() == candidates.size());
  for (size_t i = 0; i < logits.size(); ++i) candidates[i] = {static_cast<llama_token>(i), logits[i], 0.0f};
  llama_token_data_array array{candidates.data(), candidates.size(), -1, false};
  llama_sampler_apply(private_->chain.get(), &array);
  PITH_CHECK(array.selected >= 0);
  const llama_token token = array.data[array.selected].id;
  llama_sampler_accept(private_->chain.get(), token);
  return token;
}

}  // namespace pith
