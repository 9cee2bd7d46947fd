#include <fmt/format.h>

#include <optional>
#include <utility>

#include "policy/policy.h"
#include "session/c_api/handles.h"

namespace pith::c_api {
namespace {

// Positions of a conversation where nothing was said about them.
int ContextOf(const ModelInfo& info, int requested) {
  if (requested > 0) return requested;
  return info.max_positions > 0 ? std::min(info.trained_ctx, info.max_positions) : info.trained_ctx;
}

Result<EngineOptions> ReadEngineOptions(const HostModel& model, const pith_engine_options* given) {
  PITH_ASSIGN_OR_RETURN(const pith_engine_options options, Read(given, "options of the engine"));
  if (options.num_ctx < 0 || options.num_threads < 0)
    return InvalidArgument("num_ctx and num_threads must not be negative");
  if (options.max_sequences < 0 || options.block_tokens < 0) {
    return InvalidArgument("max_sequences and block_tokens must not be negative");
  }
  EngineOptions own;
  PITH_ASSIGN_OR_RETURN(own.recipe, ParseRecipe(options.recipe == nullptr ? "full" : options.recipe));
  own.budget_bytes = options.budget_bytes;
  own.num_ctx = ContextOf(model.info(), options.num_ctx);
  own.num_threads = options.num_threads;
  own.max_sequences = options.max_sequences > 0 ? options.max_sequences : 1;
  own.block_tokens = options.block_tokens;
  own.seed = options.seed;
  own.adapt_threads = !options.fixed_threads;
  if (options.save_format != nullptr) {
    PITH_ASSIGN_OR_RETURN(own.saved, ParseCodedForm(options.save_format));
  }
  return own;
}

// One step's items as the engine takes them. Logits of all tokens come through vectors of ours.
Status ReadItems(EngineState& state, const pith_step_item* items, size_t num_items) {
  PITH_ASSIGN_OR_RETURN(const std::vector<pith_step_item> own, ReadAll(items, num_items, "items of the step"));
  state.all_logits.resize(std::max(state.all_logits.size(), num_items));
  state.all_embeddings.resize(state.all_logits.size());
  for (size_t i = 0; i < num_items; ++i) {
    const pith_step_item& item = own[i];
    PITH_RETURN_IF_ERROR(Require(item.sequence, "sequence in an item of the step"));
    if (item.sequence->state.get() != &state) return InvalidArgument("a sequence of the step is one of another engine");
    if (item.num_tokens > 0) PITH_RETURN_IF_ERROR(Require(item.tokens, "tokens in an item of the step"));
    state.all_logits[i].clear();
    state.all_embeddings[i].clear();
    state.items.push_back({.sequence = item.sequence->own->id(),
                           .tokens = {item.tokens, item.num_tokens},
                           .pin = item.pin,
                           .all_logits = item.all_logits != nullptr ? &state.all_logits[i] : nullptr,
                           .all_hidden = item.all_embeddings != nullptr ? &state.all_embeddings[i] : nullptr});
  }
  return {};
}

Status RunStep(EngineState& state, const pith_step_item* items, size_t num_items) {
  state.items.clear();
  state.statuses.clear();
  const Status read = ReadItems(state, items, num_items);
  state.statuses.assign(num_items, read);
  if (!read) return read;
  state.engine->Step(state.items, state.statuses);
  // A vector of ours for an array of theirs, which an older program's struct may lack.
  const auto copy = [](const std::vector<float>* from, float* to) {
    if (from != nullptr) std::copy(from->begin(), from->end(), to);
  };
  PITH_ASSIGN_OR_RETURN(const std::vector<pith_step_item> own, ReadAll(items, num_items, "items of the step"));
  Status first;
  for (size_t i = 0; i < num_items; ++i) {
    if (!state.statuses[i] && first) first = state.statuses[i];
    if (!state.statuses[i]) continue;
    copy(state.items[i].all_logits, own[i].all_logits);
    copy(state.items[i].all_hidden, own[i].all_embeddings);
  }
  return first;
}

}  // namespace

Result<SequenceOptions> ReadSequenceOptions(const EngineState& state, const pith_sequence_options* given) {
  PITH_ASSIGN_OR_RETURN(const pith_sequence_options options, Read(given, "options of the sequence"));
  if (options.num_ctx < 0 || options.keep_entries < 0)
    return InvalidArgument("num_ctx and keep_entries must not be negative");
  SequenceOptions own = state.defaults;
  if (options.recipe != nullptr) {
    PITH_ASSIGN_OR_RETURN(own.recipe, ParseRecipe(options.recipe));
  }
  if (options.num_ctx > 0) own.num_ctx = options.num_ctx;
  if (options.seed != 0) own.seed = options.seed;
  own.keep_entries = options.keep_entries;
  own.floor_bytes = options.floor_bytes;
  own.ceiling_bytes = options.ceiling_bytes;
  own.compress = options.compress_after ? CompressMode::kAfter : CompressMode::kBlock;
  PITH_ASSIGN_OR_RETURN(const std::vector<std::string> later,
                        ReadTexts(options.later_recipes, options.num_later_recipes, "recipes for later"));
  for (const std::string& text : later) {
    PITH_ASSIGN_OR_RETURN(Recipe recipe, ParseRecipe(text));
    own.later_recipes.push_back(std::move(recipe));
  }
  return own;
}

}  // namespace pith::c_api

using namespace pith;         // NOLINT: functions of C have no namespace of their own
using namespace pith::c_api;  // NOLINT

extern "C" {

pith_status pith_engine_new(pith_model* model, const pith_engine_options* options, pith_engine** engine) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(engine, "place for the engine"));
    *engine = nullptr;
    PITH_RETURN_IF_ERROR(Require(model, "model"));
    const std::shared_ptr<HostModel>& host = model->state->model;
    PITH_ASSIGN_OR_RETURN(const EngineOptions own, ReadEngineOptions(*host, options));
    auto state = std::make_shared<EngineState>();
    PITH_ASSIGN_OR_RETURN(state->engine, Engine::Create(host, own));
    state->model = model->state;
    state->defaults = own;
    state->seed = own.seed;
    *engine = new pith_engine{std::move(state)};
    return {};
  });
}

void pith_engine_free(pith_engine* engine) { delete engine; }

pith_status pith_engine_get_stats(const pith_engine* engine, pith_engine_stats* stats) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(engine, "engine"));
    const KvStats kv = engine->state->engine->stats();
    const EngineTimes times = engine->state->engine->times();
    pith_engine_stats full{};
    full.budget_bytes = kv.budget_bytes;
    full.used_bytes = kv.used_bytes;
    full.peak_bytes = kv.peak_bytes;
    full.block_bytes = kv.block_bytes;
    full.page_bytes = kv.page_bytes;
    full.table_bytes = kv.table_bytes;
    full.recurrent_bytes = kv.recurrent_bytes;
    full.promised_bytes = kv.promised_bytes;
    full.entries = kv.entries;
    full.entries_seen = kv.entries_seen;
    full.kept_fraction = kv.kept_fraction;
    full.block_tokens = kv.block_tokens;
    full.decode_threads = engine->state->engine->decode_threads();
    full.attention_seconds = times.attention;
    full.policy_seconds = times.policy;
    full.total_seconds = times.total;
    return Fill(full, stats, "place for statistics");
  });
}

int32_t pith_engine_block_tokens(const pith_engine* engine) {
  return engine == nullptr ? 0 : engine->state->engine->block_tokens();
}

pith_status pith_engine_admit(const pith_engine* engine, const pith_sequence_options* options, size_t num_tokens,
                              pith_admission* admission) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(engine, "engine"));
    PITH_ASSIGN_OR_RETURN(const SequenceOptions own, ReadSequenceOptions(*engine->state, options));
    PITH_ASSIGN_OR_RETURN(const Admission found, engine->state->engine->Admit(own, num_tokens));
    pith_admission full{};
    full.steady_bytes = found.steady_bytes;
    full.step_bytes = found.step_bytes;
    full.free_bytes = found.free_bytes;
    full.missing_bytes = found.missing_bytes;
    full.fits = found.fits;
    return Fill(full, admission, "place for the admission");
  });
}

void pith_engine_cancel(pith_engine* engine) {
  if (engine != nullptr) engine->state->engine->Cancel();
}

void pith_engine_clear_cancel(pith_engine* engine) {
  if (engine != nullptr) engine->state->engine->ClearCancel();
}

pith_status pith_step(pith_engine* engine, const pith_step_item* items, size_t num_items, pith_status* statuses) {
  const pith_status result = Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(engine, "engine"));
    return RunStep(*engine->state, items, num_items);
  });
  for (size_t i = 0; statuses != nullptr && i < num_items; ++i) {
    const bool known = engine != nullptr && i < engine->state->statuses.size();
    statuses[i] = !known ? result : engine->state->statuses[i] ? PITH_OK : CodeOf(engine->state->statuses[i].error());
  }
  return result;
}

const char* pith_step_message(const pith_engine* engine, size_t item) {
  if (engine == nullptr || item >= engine->state->statuses.size()) return "";
  const Status& status = engine->state->statuses[item];
  return status ? "" : status.error().message.c_str();
}

}  // extern "C"
