#include <fmt/format.h>

#include <utility>

#include "policy/policy.h"
#include "session/c_api/handles.h"

namespace pith::c_api {
namespace {

Result<std::unique_ptr<pith_sequence>> NewHandle(pith_engine* engine, const pith_sequence_options* options) {
  PITH_RETURN_IF_ERROR(Require(engine, "engine"));
  auto handle = std::make_unique<pith_sequence>();
  handle->state = engine->state;
  PITH_ASSIGN_OR_RETURN(handle->options, ReadSequenceOptions(*engine->state, options));
  PITH_ASSIGN_OR_RETURN(handle->own, EngineSequence::Create(engine->state->engine, handle->options));
  return handle;
}

Result<Recipe> RecipeFor(const pith_sequence& sequence, const char* recipe) {
  if (recipe == nullptr) return sequence.options.recipe;
  return ParseRecipe(recipe);
}

template <typename Compress>
pith_status Compressed(pith_sequence* sequence, const char* recipe, double* kept, const Compress& compress) {
  return Guarded([&]() -> Status {
    if (kept != nullptr) *kept = 0;
    PITH_RETURN_IF_ERROR(Require(sequence, "sequence"));
    PITH_ASSIGN_OR_RETURN(const Recipe own, RecipeFor(*sequence, recipe));
    PITH_ASSIGN_OR_RETURN(const double share, compress(*sequence->state->engine, sequence->own->id(), own));
    if (kept != nullptr) *kept = share;
    return {};
  });
}

}  // namespace
}  // namespace pith::c_api

using namespace pith;         // NOLINT: functions of C have no namespace of their own
using namespace pith::c_api;  // NOLINT

extern "C" {

pith_status pith_sequence_new(pith_engine* engine, const pith_sequence_options* options, pith_sequence** sequence) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(sequence, "place for the sequence"));
    *sequence = nullptr;
    PITH_ASSIGN_OR_RETURN(std::unique_ptr<pith_sequence> handle, NewHandle(engine, options));
    *sequence = handle.release();
    return {};
  });
}

pith_status pith_sequence_fork(const pith_sequence* sequence, pith_sequence** fork) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(fork, "place for the fork"));
    *fork = nullptr;
    PITH_RETURN_IF_ERROR(Require(sequence, "sequence"));
    auto handle = std::make_unique<pith_sequence>();
    handle->state = sequence->state;
    handle->options = sequence->options;
    PITH_ASSIGN_OR_RETURN(handle->own, sequence->own->Fork());
    *fork = handle.release();
    return {};
  });
}

void pith_sequence_free(pith_sequence* sequence) { delete sequence; }

pith_status pith_sequence_prefill(pith_sequence* sequence, const int32_t* tokens, size_t num_tokens, bool pin,
                                  pith_progress_fn progress, void* user) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(sequence, "sequence"));
    if (num_tokens > 0) PITH_RETURN_IF_ERROR(Require(tokens, "tokens"));
    Progress own;
    if (progress != nullptr) own = [=](size_t done, size_t total) { return progress(user, done, total); };
    return sequence->own->Feed({tokens, num_tokens}, pin, own);
  });
}

pith_status pith_sequence_decode(pith_sequence* sequence, int32_t token) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(sequence, "sequence"));
    return sequence->own->Decode(token);
  });
}

const float* pith_sequence_logits(const pith_sequence* sequence, size_t* count) {
  const std::span<const float> logits = sequence == nullptr ? std::span<const float>() : sequence->own->logits();
  if (count != nullptr) *count = logits.size();
  return logits.empty() ? nullptr : logits.data();
}

int32_t pith_sequence_num_tokens(const pith_sequence* sequence) {
  return sequence == nullptr ? 0 : sequence->own->num_tokens();
}

pith_status pith_sequence_get_stats(const pith_sequence* sequence, pith_sequence_stats* stats) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(sequence, "sequence"));
    if (!sequence->own->is_there()) return OutOfBudget("the conversation has lost its place");
    const SequenceStats own = sequence->state->engine->stats(sequence->own->id());
    pith_sequence_stats full{};
    full.used_bytes = own.used_bytes;
    full.floor_bytes = own.floor_bytes;
    full.ceiling_bytes = own.ceiling_bytes;
    full.entries = own.entries;
    full.entries_seen = own.entries_seen;
    full.kept_fraction = own.kept_fraction;
    full.keep_entries = own.keep_entries;
    full.num_tokens = own.num_tokens;
    return Fill(full, stats, "place for statistics");
  });
}

const char* pith_sequence_recipe(const pith_sequence* sequence) {
  return sequence == nullptr ? "" : sequence->options.recipe.text.c_str();
}

pith_status pith_sequence_compress(pith_sequence* sequence, const char* recipe, double keep_fraction, double* kept) {
  return Compressed(sequence, recipe, kept, [&](Engine& engine, SequenceId id, const Recipe& own) {
    return engine.Compress(id, own, keep_fraction);
  });
}

pith_status pith_sequence_compress_part(pith_sequence* sequence, const char* recipe, double keep_fraction, int32_t from,
                                        int32_t to, double* kept) {
  return Compressed(sequence, recipe, kept, [&](Engine& engine, SequenceId id, const Recipe& own) {
    return engine.CompressPart(id, own, keep_fraction, from, to);
  });
}

pith_status pith_sequence_end_turn(pith_sequence* sequence) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(sequence, "sequence"));
    return sequence->state->engine->EndTurn(sequence->own->id());
  });
}

pith_status pith_sequence_set_budget(pith_sequence* sequence, uint64_t floor_bytes, uint64_t ceiling_bytes) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(sequence, "sequence"));
    return sequence->state->engine->SetBudget(sequence->own->id(), floor_bytes, ceiling_bytes);
  });
}

pith_status pith_sequence_rewind(pith_sequence* sequence, int32_t num_tokens) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(sequence, "sequence"));
    return sequence->state->engine->Rewind(sequence->own->id(), num_tokens);
  });
}

int32_t pith_sequence_rewind_target(const pith_sequence* sequence, int32_t num_tokens) {
  return sequence == nullptr ? 0 : sequence->state->engine->RewindTarget(sequence->own->id(), num_tokens);
}

void pith_sequence_cancel(pith_sequence* sequence) {
  if (sequence != nullptr) sequence->state->engine->Cancel(sequence->own->id());
}

pith_status pith_sequence_save(const pith_sequence* sequence, const char* path) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(sequence, "sequence"));
    PITH_RETURN_IF_ERROR(Require(path, "path to save to"));
    return sequence->own->Save(path, {});
  });
}

pith_status pith_sequence_save_to(const pith_sequence* sequence, pith_write_fn write, void* user) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(sequence, "sequence"));
    PITH_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, sequence->own->SaveToMemory({}));
    return WriteAll(write, user, bytes);
  });
}

pith_status pith_sequence_restore(pith_engine* engine, const pith_sequence_options* options, const char* path,
                                  pith_sequence** sequence) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(sequence, "place for the sequence"));
    *sequence = nullptr;
    PITH_RETURN_IF_ERROR(Require(path, "path of a saved sequence"));
    PITH_ASSIGN_OR_RETURN(std::unique_ptr<pith_sequence> handle, NewHandle(engine, options));
    PITH_ASSIGN_OR_RETURN(const auto restored, handle->own->Restore(path));
    if (!restored) return NotFound(fmt::format("there is no session in {}", path));
    *sequence = handle.release();
    return {};
  });
}

pith_status pith_sequence_restore_from(pith_engine* engine, const pith_sequence_options* options, pith_read_fn read,
                                       void* user, pith_sequence** sequence) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(sequence, "place for the sequence"));
    *sequence = nullptr;
    PITH_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, ReadToEnd(read, user));
    PITH_ASSIGN_OR_RETURN(std::unique_ptr<pith_sequence> handle, NewHandle(engine, options));
    PITH_RETURN_IF_ERROR(handle->own->RestoreFromMemory(bytes));
    *sequence = handle.release();
    return {};
  });
}

}  // extern "C"
