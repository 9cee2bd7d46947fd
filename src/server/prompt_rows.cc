// Prompts of which more is wanted than what comes after them: log probabilities of their own tokens, or an embedding.
#include <algorithm>
#include <cmath>
#include <utility>

#include "host/embedding_context.h"
#include "server/scheduler_impl.h"

namespace pith::server {
namespace {

// libllama keeps the logits of all rows that are wanted in a step.
constexpr size_t kMostLogitBytes = size_t{16} << 20;

}  // namespace

int SchedulerImpl::MostWantedRows() const {
  const size_t row = static_cast<size_t>(engine_->model().info().num_vocab) * sizeof(float);
  return std::clamp(static_cast<int>(kMostLogitBytes / std::max<size_t>(row, 1)), 1, engine_->block_tokens());
}

void SchedulerImpl::TakeRows(Job& job, std::span<const int32_t> tokens) {
  const std::vector<int32_t>& prompt = job.request.prompt;
  const auto vocab = static_cast<size_t>(engine_->model().info().num_vocab);
  for (size_t row = 0; (row + 1) * vocab <= row_logits_.size(); ++row) {
    const size_t next = job.prompt_done + row + 1;
    if (next >= prompt.size()) break;
    const std::span<const float> logits = std::span(row_logits_).subspan(row * vocab, vocab);
    job.prompt_logprobs.push_back(LogprobsOf(logits, prompt[next], job.request.prompt_logprobs));
  }
  const auto dim = static_cast<size_t>(engine_->model().info().hidden_dim);
  for (size_t row = 0; row < tokens.size() && (row + 1) * dim <= row_hidden_.size(); ++row) {
    const std::span<const float> hidden = std::span(row_hidden_).subspan(row * dim, dim);
    if (job.pooled.empty()) job.pooled.assign(dim, 0);
    const size_t at = job.prompt_done + row;
    for (size_t i = 0; i < dim; ++i) {
      if (job.request.pooling == EmbeddingPooling::kMean ||
          (job.request.pooling == EmbeddingPooling::kFirst && at == 0)) {
        job.pooled[i] += static_cast<double>(hidden[i]);
      } else if (job.request.pooling == EmbeddingPooling::kLast) {
        job.pooled[i] = static_cast<double>(hidden[i]);
      }
    }
  }
}

void SchedulerImpl::TellRows(Job& job) {
  if (!job.wants_rows()) return;
  job.rows_told = true;
  if (job.request.prompt_logprobs >= 0) {
    Tell(job, [&](RequestSink& sink) { sink.PromptLogprobs(std::move(job.prompt_logprobs)); });
  }
  if (job.request.pooling == EmbeddingPooling::kNone) return;
  std::vector<float> unit = UnitVector(job.pooled);
  Tell(job, [&](RequestSink& sink) { sink.Embedding(std::move(unit)); });
}

}  // namespace pith::server
