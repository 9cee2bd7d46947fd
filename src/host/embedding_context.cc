#include "host/embedding_context.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "host/llama_util.h"

namespace pith {
namespace {

// Attention over a whole text takes memory by the square of its length.
constexpr int kLongestText = 2048;

}  // namespace

std::vector<float> UnitVector(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  const double scale = sum > 0 && std::isfinite(sum) ? 1 / std::sqrt(sum) : 0;
  std::vector<float> unit(values.size());
  std::ranges::transform(values, unit.begin(),
                         [scale](double value) { return scale > 0 ? static_cast<float>(value * scale) : 0.0f; });
  return unit;
}

struct EmbeddingContext::Private {
  LlamaContextPtr context;
  std::unique_ptr<Batch> batch;
  ModelInfo info;
  int num_ctx = 0;
  bool encodes = false;  // a model with an encoder and a decoder
};

EmbeddingContext::EmbeddingContext() : private_(std::make_unique<Private>()) {}
EmbeddingContext::~EmbeddingContext() = default;

int EmbeddingContext::num_ctx() const { return private_->num_ctx; }
size_t EmbeddingContext::bytes() const { return llama_state_get_size(private_->context.get()); }

Result<std::unique_ptr<EmbeddingContext>> EmbeddingContext::Create(const HostModel& model, int num_threads) {
  if (model.info().use != ModelUse::kEmbeddings) {
    return InvalidArgument(model.info().path + " was not loaded for embeddings");
  }
  std::unique_ptr<EmbeddingContext> made(new EmbeddingContext);
  Private& self = *made->private_;
  self.info = model.info();
  self.encodes = llama_model_has_encoder(model.handle());
  const int trained = self.info.trained_ctx > 0 ? self.info.trained_ctx : kLongestText;
  self.num_ctx = std::clamp(trained, 1, kLongestText);
  llama_context_params params = ContextParams(self.info);
  params.n_ctx = params.n_batch = params.n_ubatch = static_cast<uint32_t>(self.num_ctx);
  params.n_seq_max = 1;
  params.n_threads = params.n_threads_batch = num_threads;
  params.embeddings = true;
  params.pooling_type = LLAMA_POOLING_TYPE_NONE;
  params.no_perf = true;
  self.context.reset(llama_init_from_model(model.handle(), params));
  if (self.context == nullptr) return IoError("libllama cannot make a context for " + self.info.path);
  if (llama_get_memory(self.context.get()) != nullptr && !self.encodes) {
    return Unsupported(self.info.architecture + " models generate text, and give their embeddings beside it");
  }
  PITH_RETURN_IF_ERROR(ApplyAdapters(model, self.context.get()));
  self.batch = std::make_unique<Batch>(self.num_ctx);
  return made;
}

Result<std::vector<float>> EmbeddingContext::Embed(std::span<const int32_t> tokens, std::span<float> rows) {
  Private& self = *private_;
  if (tokens.empty()) return InvalidArgument("there are no tokens to read");
  if (tokens.size() > static_cast<size_t>(self.num_ctx)) {
    return OutOfContext(fmt::format("the text has {} tokens, more than the {} that this model reads at once",
                                    tokens.size(), self.num_ctx));
  }
  self.batch->Clear();
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= self.info.num_vocab) {
      return InvalidArgument(fmt::format("there is no token {}", tokens[i]));
    }
    self.batch->Add(tokens[i], static_cast<int32_t>(i), 0, true);
  }
  const int status = llama_encode(self.context.get(), self.batch->get());
  if (status != 0) return IoError(fmt::format("libllama could not encode a text (status {})", status));
  const auto dim = static_cast<size_t>(self.info.hidden_dim);
  PITH_CHECK(rows.empty() || rows.size() == tokens.size() * dim);
  std::vector<double> pooled(dim, 0);
  const size_t last = tokens.size() - 1;
  for (size_t token = 0; token <= last; ++token) {
    const float* hidden = llama_get_embeddings_ith(self.context.get(), static_cast<int32_t>(token));
    if (hidden == nullptr) return IoError("libllama gives no embedding");
    if (!rows.empty()) std::copy_n(hidden, dim, rows.subspan(token * dim).begin());
    if (self.info.pooling == EmbeddingPooling::kFirst && token > 0) continue;
    if (self.info.pooling == EmbeddingPooling::kLast && token < last) continue;
    for (size_t i = 0; i < dim; ++i) pooled[i] += static_cast<double>(hidden[i]);
  }
  return UnitVector(pooled);
}

Status ProbeEmbeddings(const HostModel& model) {
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<EmbeddingContext> context, EmbeddingContext::Create(model, 1));
  const std::vector<int32_t> tokens(static_cast<size_t>(std::min(4, context->num_ctx())), 0);
  PITH_ASSIGN_OR_RETURN(const std::vector<float> embedding, context->Embed(tokens));
  if (std::ranges::all_of(embedding, [](float value) { return value == 0; })) {
    return Unsupported("this model gives no embeddings");
  }
  return {};
}

}  // namespace pith
