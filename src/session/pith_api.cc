// include/pith/pith.h over the engine.
#include <pith/pith.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "host/sampler.h"
#include "policy/policy.h"

namespace pith {
namespace {

// Length of the prefix of `text` that ends on a whole UTF-8 character. Bytes
// that can never become one count as whole, so that nothing is held back for ever.
size_t WholeCharacters(std::string_view text) {
  constexpr size_t kLongest = 4;
  for (size_t back = 1; back <= std::min(kLongest - 1, text.size()); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xC0) == 0x80) continue;  // a continuation: look further back
    const size_t length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
    return length > back ? text.size() - back : text.size();
  }
  return text.size();
}

}  // namespace

const char* Version() { return PITH_VERSION; }

struct Session::State {
  std::shared_ptr<HostModel> model;
  std::shared_ptr<Engine> engine;  // of a session and its forks
  SequenceId sequence = -1;        // -1: none yet
  uint64_t seed = 0;

  ~State() {
    if (engine != nullptr) engine->Free(sequence);
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
  auto state = std::make_unique<State>();
  EngineOptions engine_options;
  engine_options.num_ctx = options.num_ctx;
  engine_options.budget_bytes = options.kv_budget_bytes;
  engine_options.num_threads = options.num_threads;
  engine_options.seed = options.seed;
  engine_options.max_sequences = options.max_conversations;
  PITH_ASSIGN_OR_RETURN(engine_options.recipe, ParseRecipe(options.recipe));

  HostModelOptions model_options;
  if (options.num_threads > 0) model_options.num_threads = options.num_threads;
  PITH_ASSIGN_OR_RETURN(state->model, HostModel::Load(gguf_path, model_options));
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, Engine::Create(state->model, engine_options));
  state->engine = std::move(engine);
  PITH_ASSIGN_OR_RETURN(state->sequence, state->engine->NewSequence());
  state->seed = options.seed;
  return Session(std::move(state));
}

Result<Generation> Session::Generate(std::string_view prompt, const GenerateOptions& options,
                                     const TextCallback& on_text) {
  HostModel& model = *state_->model;
  Engine& engine = *state_->engine;
  const SequenceId sequence = state_->sequence;
  engine.ClearCancel();

  std::string text(prompt);
  if (options.chat) {
    const ChatMessage message{"user", text};
    PITH_ASSIGN_OR_RETURN(text, model.ApplyChatTemplate({&message, 1}, true));
  }
  const bool first = engine.num_tokens(sequence) == 0;
  PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, model.Tokenize(text, first, options.chat));
  if (tokens.empty()) return InvalidArgument("the prompt holds no token.");
  PITH_RETURN_IF_ERROR(engine.Prefill(sequence, tokens));

  SamplerOptions sampling;
  sampling.temperature = options.temperature;
  sampling.top_k = options.top_k;
  sampling.top_p = options.top_p;
  sampling.min_p = options.min_p;
  sampling.seed = static_cast<uint32_t>(state_->seed);
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<HostSampler> sampler, HostSampler::Create(model, sampling));

  Generation generation;
  generation.prompt_tokens = static_cast<int>(tokens.size());
  size_t sent = 0;  // bytes of generation.text given to the callback
  bool stopped = false;
  const auto send = [&](size_t end) {
    if (on_text && end > sent) stopped = !on_text(std::string_view(generation.text).substr(sent, end - sent));
    sent = end;
  };
  while (generation.tokens < options.max_tokens && !stopped) {
    if (engine.cancelled()) return MakeError(ErrorCode::kCancelled, "stopped while generating");
    PITH_ASSIGN_OR_RETURN(const int32_t token, sampler->Sample(engine.logits(sequence)));
    if (model.IsEndOfGeneration(token)) {
      generation.ended = true;
      break;
    }
    ++generation.tokens;
    generation.text += model.Piece(token);
    send(WholeCharacters(generation.text));
    // The last token, too: the conversation may go on after it.
    PITH_RETURN_IF_ERROR(engine.Decode(sequence, token));
  }
  if (!stopped) send(generation.text.size());
  return generation;
}

Status Session::Reset() {
  state_->engine->Free(state_->sequence);
  PITH_ASSIGN_OR_RETURN(state_->sequence, state_->engine->NewSequence());
  return {};
}

Result<Session> Session::Fork() const {
  auto state = std::make_unique<State>();
  state->model = state_->model;
  state->seed = state_->seed;
  PITH_ASSIGN_OR_RETURN(state->sequence, state_->engine->Fork(state_->sequence));
  state->engine = state_->engine;
  return Session(std::move(state));
}

Status Session::Save(const std::string& path) const {
  return state_->engine->Save(state_->sequence, path, SessionNote());
}

Status Session::Restore(const std::string& path) {
  state_->engine->Free(state_->sequence);  // its place may be the only one
  const Result<RestoredSequence> restored = state_->engine->Restore(path);
  if (restored) {
    state_->sequence = restored->sequence;
    return {};
  }
  PITH_ASSIGN_OR_RETURN(state_->sequence, state_->engine->NewSequence());
  return tl::unexpected<Error>(restored.error());
}

void Session::Cancel() { state_->engine->Cancel(); }

SessionStats Session::stats() const {
  const KvStats kv = state_->engine->stats();
  SessionStats stats;
  stats.kv_budget_bytes = kv.budget_bytes;
  stats.kv_used_bytes = kv.used_bytes;
  stats.kv_peak_bytes = kv.peak_bytes;
  stats.kv_block_bytes = kv.block_bytes;
  stats.kv_entries = kv.entries;
  stats.kept_fraction = kv.kept_fraction;
  stats.num_tokens = state_->engine->num_tokens(state_->sequence);
  return stats;
}

}  // namespace pith
