// include/pith/pith.h over this layer.
#include <pith/pith.h>

#include <algorithm>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include "base/cores.h"
#include "engine/engine.h"
#include "host/model.h"
#include "host/sampler.h"
#include "policy/policy.h"
#include "session/conversation.h"
#include "session/generator.h"
#include "session/text_model.h"
#include "session/token_sequence.h"

namespace pith {
namespace {

// Of the draw-th generation. splitmix64, whose outputs for neighbouring inputs have nothing in common.
uint32_t SeedOf(uint64_t seed, uint64_t draw) {
  uint64_t x = seed + (draw + 1) * 0x9e3779b97f4a7c15;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  constexpr uint32_t kRandomInLibllama = 0xffffffff;
  const auto mixed = static_cast<uint32_t>((x ^ x >> 31) >> 32);
  return mixed == kRandomInLibllama ? 0 : mixed;
}

int ContextOf(const ModelInfo& info, int requested) {
  if (requested > 0) return requested;
  return info.max_positions > 0 ? std::min(info.trained_ctx, info.max_positions) : info.trained_ctx;
}

// Of a session and its forks.
struct Shared {
  std::shared_ptr<HostModel> model;
  std::shared_ptr<Engine> engine;
  std::unique_ptr<HostText> text;
  int num_ctx = 0;
  uint64_t seed = 0;
  uint64_t num_draws = 0;  // generations so far
};

Result<std::unique_ptr<HostSampler>> MakeSampler(Shared& shared, const GenerateOptions& options) {
  SamplerOptions sampling = SamplingDefaults(*shared.model);
  sampling.temperature = options.temperature.value_or(sampling.temperature);
  sampling.top_k = options.top_k.value_or(sampling.top_k);
  sampling.top_p = options.top_p.value_or(sampling.top_p);
  sampling.min_p = options.min_p.value_or(sampling.min_p);
  sampling.repeat_penalty = options.repeat_penalty.value_or(sampling.repeat_penalty);
  sampling.grammar = options.grammar;
  sampling.ignore_eos = options.ignore_eos;
  sampling.repeat_context = shared.num_ctx;
  sampling.seed = SeedOf(shared.seed, shared.num_draws++);
  return HostSampler::Create(*shared.model, sampling);
}

}  // namespace

const char* Version() { return PITH_VERSION; }

struct Session::State {
  std::shared_ptr<Shared> shared;
  std::unique_ptr<EngineSequence> sequence;
  Conversation conversation;

  // Queues the prompt, or leaves all as it was.
  Status Queue(std::string_view prompt, bool chat) {
    Conversation before = conversation;
    Status status = chat ? conversation.Say(std::string(prompt)) : conversation.Append(prompt);
    const size_t num_new = conversation.pending().size();
    const auto num_read = static_cast<size_t>(sequence->num_tokens());
    if (status && num_new == before.pending().size()) status = InvalidArgument("the prompt holds no token.");
    if (status && num_read + num_new > static_cast<size_t>(shared->num_ctx)) {
      status = InvalidArgument(fmt::format("the prompt's {} tokens do not fit into what is left of the context of {}: {} are "
                                           "taken.", num_new, shared->num_ctx, num_read));
    }
    if (!status) conversation = std::move(before);
    return status;
  }

  void Take(const GenerationResult& result, bool chat) {
    if (chat) {
      conversation.Answered(result.text, result.unfed);
    } else {
      conversation.Continued(result.unfed);
    }
  }
};

Session::Session(std::unique_ptr<State> state) : state_(std::move(state)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Result<Session> Session::Open(const std::string& gguf_path, const SessionOptions& options) {
  if (options.num_ctx < 0 || options.num_threads < 0) {
    return InvalidArgument("num_ctx and num_threads must not be negative.");
  }
  if (options.max_conversations < 1) return InvalidArgument("max_conversations must be at least 1.");
  EngineOptions engine_options;
  PITH_ASSIGN_OR_RETURN(engine_options.recipe, ParseRecipe(options.recipe));
  HostModelOptions model_options;
  model_options.num_threads = options.num_threads > 0 ? options.num_threads : PhysicalCores();
  auto shared = std::make_shared<Shared>();
  PITH_ASSIGN_OR_RETURN(shared->model, HostModel::Load(gguf_path, model_options));
  shared->text = std::make_unique<HostText>(shared->model);
  shared->num_ctx = ContextOf(shared->model->info(), options.num_ctx);
  shared->seed = options.seed;
  engine_options.num_ctx = shared->num_ctx;
  engine_options.budget_bytes = options.kv_budget_bytes;
  engine_options.num_threads = model_options.num_threads;
  engine_options.seed = options.seed;
  engine_options.max_sequences = options.max_conversations;
  PITH_ASSIGN_OR_RETURN(shared->engine, Engine::Create(shared->model, engine_options));
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<EngineSequence> sequence, EngineSequence::Create(shared->engine));
  Conversation conversation(*shared->text, {.system = options.system});
  return Session(std::unique_ptr<State>(new State{std::move(shared), std::move(sequence), std::move(conversation)}));
}

Result<Generation> Session::Generate(std::string_view prompt, const GenerateOptions& options,
                                     const TextCallback& on_text) {
  Shared& shared = *state_->shared;
  Engine& engine = *shared.engine;
  engine.ClearCancel();
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<HostSampler> sampler, MakeSampler(shared, options));
  PITH_RETURN_IF_ERROR(state_->Queue(prompt, options.chat));

  Generation generation;
  generation.prompt_tokens = static_cast<int>(state_->conversation.pending().size());
  PITH_RETURN_IF_ERROR(state_->conversation.Feed(*state_->sequence));
  GenerateHooks hooks{.num_ctx = shared.num_ctx, .on_text = on_text, .interrupted = [&engine] { return engine.cancelled(); }};
  Generator generator(*shared.text, SampleBy(*sampler), {.max_tokens = std::max(0, options.max_tokens), .stops = options.stops});
  PITH_ASSIGN_OR_RETURN(GenerationResult result, pith::Generate(*state_->sequence, std::move(generator), hooks));
  state_->Take(result, options.chat);
  if (result.stop == StopReason::kInterrupted) return MakeError(ErrorCode::kCancelled, "stopped while generating");
  generation.tokens = static_cast<int>(result.tokens.size());
  generation.text = std::move(result.text);
  generation.stop = result.stop;
  generation.stop_message = std::move(result.stop_message);
  generation.ended = result.stop == StopReason::kEnd;
  return generation;
}

Status Session::Reset() {
  state_->conversation.Reset();
  return state_->sequence->Reset();
}

Result<Session> Session::Fork() const {
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<EngineSequence> sequence, state_->sequence->Fork());
  return Session(std::unique_ptr<State>(new State{state_->shared, std::move(sequence), state_->conversation}));
}

Status Session::Save(const std::string& path) const {
  const std::span<const int32_t> pending = state_->conversation.pending();
  return state_->sequence->Save(path, {.tokens = {pending.begin(), pending.end()}, .text = state_->conversation.Save()});
}

Status Session::Restore(const std::string& path) {
  state_->conversation.Reset();
  PITH_ASSIGN_OR_RETURN(auto restored, state_->sequence->Restore(path));
  if (!restored) return NotFound(fmt::format("there is no session in {}", path));
  // "pith run" notes all tokens and no messages.
  SessionNote& note = restored->note;
  if (note.text.empty()) note = {.tokens = {}, .text = "[]"};
  const Status status =
      state_->conversation.Restore(note.text, std::move(note.tokens), state_->sequence->num_tokens());
  if (!status) PITH_RETURN_IF_ERROR(state_->sequence->Reset());
  return status;
}

void Session::Cancel() { state_->shared->engine->Cancel(); }

SessionStats Session::stats() const {
  const KvStats kv = state_->shared->engine->stats();
  SessionStats stats;
  stats.kv_budget_bytes = kv.budget_bytes;
  stats.kv_used_bytes = kv.used_bytes;
  stats.kv_peak_bytes = kv.peak_bytes;
  stats.kv_block_bytes = kv.block_bytes;
  stats.kv_entries = kv.entries;
  stats.kept_fraction = kv.kept_fraction;
  stats.num_tokens = state_->sequence->num_tokens();
  return stats;
}

}  // namespace pith
