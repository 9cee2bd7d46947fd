#include <algorithm>

#include "base/cores.h"
#include "session/c_api/handles.h"

using namespace pith;         // NOLINT: functions of C have no namespace of their own
using namespace pith::c_api;  // NOLINT

extern "C" {

pith_status pith_embedder_new(pith_model* model, int32_t num_threads, pith_embedder** embedder) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(embedder, "place for the embedder"));
    *embedder = nullptr;
    PITH_RETURN_IF_ERROR(Require(model, "model"));
    if (num_threads < 0) return InvalidArgument("num_threads must not be negative");
    PITH_ASSIGN_OR_RETURN(
        std::unique_ptr<EmbeddingContext> own,
        EmbeddingContext::Create(*model->state->model, num_threads > 0 ? num_threads : PhysicalCores()));
    *embedder = new pith_embedder{model->state, std::move(own)};
    return {};
  });
}

void pith_embedder_free(pith_embedder* embedder) { delete embedder; }

size_t pith_embedder_num_ctx(const pith_embedder* embedder) {
  return embedder == nullptr ? 0 : static_cast<size_t>(embedder->own->num_ctx());
}

pith_status pith_embedder_embed(pith_embedder* embedder, const int32_t* tokens, size_t num_tokens, float* rows,
                                float* pooled) {
  return Guarded([&]() -> Status {
    PITH_RETURN_IF_ERROR(Require(embedder, "embedder"));
    if (num_tokens > 0) PITH_RETURN_IF_ERROR(Require(tokens, "tokens"));
    const std::span text(tokens, num_tokens);
    const auto dim = static_cast<size_t>(embedder->model->model->info().hidden_dim);
    const std::span room = rows == nullptr ? std::span<float>() : std::span(rows, num_tokens * dim);
    PITH_ASSIGN_OR_RETURN(const std::vector<float> own, embedder->own->Embed(text, room));
    if (pooled != nullptr) std::ranges::copy(own, pooled);
    return {};
  });
}

}  // extern "C"
