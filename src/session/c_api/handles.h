// What stands behind the handles of <pith/pith.h>. Each keeps what it rests on.
#ifndef PITH_SESSION_C_API_HANDLES_H_
#define PITH_SESSION_C_API_HANDLES_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "host/embedding_context.h"
#include "host/model.h"
#include "host/sampler.h"
#include "pith/pith.h"
#include "session/c_api/support.h"
#include "session/conversation.h"
#include "session/generator.h"
#include "session/text_model.h"
#include "session/token_sequence.h"

namespace pith::c_api {

struct ModelState {
  std::shared_ptr<HostModel> model;
  std::unique_ptr<HostText> text;
};

// Of an engine and all that was made with it.
struct EngineState {
  std::shared_ptr<ModelState> model;
  std::shared_ptr<Engine> engine;
  SequenceOptions defaults;  // of sequences
  uint64_t seed = 0;
  uint64_t num_draws = 0;  // generations so far
  // Of the last step.
  std::vector<StepItem> items;
  std::vector<Status> statuses;
  std::vector<std::vector<float>> all_logits, all_embeddings;
};

// A caller's options over the engine's.
Result<SequenceOptions> ReadSequenceOptions(const EngineState& state, const pith_sequence_options* options);

// Over what the model recommends.
Result<SamplerOptions> ReadSamplerOptions(const HostModel& model, const pith_sampler_options* options);

Result<GeneratorOptions> ReadGeneratorOptions(const pith_generator_options* options);

// kInvalidArgument: they are not [vocab]. Whether they are numbers is not looked at.
Status CheckLogitsOf(const ModelState& model, const float* logits, size_t count);

// What a pith_generation points to.
struct GenerationTexts {
  GenerationResult result;
  std::vector<float> logprobs;
  std::vector<int32_t> top_tokens;
  std::vector<float> top_logprobs;
  size_t num_top = 0;

  void Take(GenerationResult from);
  pith_generation View(int prompt_tokens) const;
};

}  // namespace pith::c_api

struct pith_model {
  std::shared_ptr<pith::c_api::ModelState> state;
};

struct pith_embedder {
  std::shared_ptr<pith::c_api::ModelState> model;
  std::unique_ptr<pith::EmbeddingContext> own;  // after `model`: goes first
};

struct pith_engine {
  std::shared_ptr<pith::c_api::EngineState> state;
};

struct pith_sequence {
  std::shared_ptr<pith::c_api::EngineState> state;
  pith::SequenceOptions options;
  std::unique_ptr<pith::EngineSequence> own;  // after `state`: goes first
};

struct pith_sampler {
  std::shared_ptr<pith::c_api::ModelState> model;
  std::unique_ptr<pith::HostSampler> own;
};

struct pith_generator {
  std::shared_ptr<pith::c_api::ModelState> model;
  pith::Generator own;
  std::string piece;  // of the last step
  mutable pith::c_api::GenerationTexts texts;
};

struct pith_conversation {
  pith_sequence sequence;
  pith::Conversation own;
  bool answers = false;  // the next text is the answer to a message
  std::atomic<bool> cancelled{false};
  pith::c_api::GenerationTexts texts;
  std::string note;  // of the last message
};

#endif  // PITH_SESSION_C_API_HANDLES_H_
