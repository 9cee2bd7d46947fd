// The second reading of a prompt (engine/repeat.h).
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "engine/engine_impl.h"

namespace pith {
namespace {

// Fewer tokens of a chunk than this are not worth a pass.
constexpr int kLeastChunk = 16;

}  // namespace

// The tokens at the front that stay whatever is found: sinks, and what the caller pinned there.
int EngineImpl::PrefixOf(const Sequence& sequence, const Recipe& recipe) const {
  int prefix = std::max(recipe.num_sinks, 0);
  for (const auto& [from, to] : sequence.pinned) {
    if (from <= prefix) prefix = std::max(prefix, to);
  }
  return std::min(prefix, sequence.next_position);
}

// Tokens per pass, so that the last position of a pass is one that the model knows.
Result<int> EngineImpl::ChunkOf(const Sequence& sequence, const RepeatOptions& options, int overhead) const {
  const ModelInfo& info = model_->info();
  const int trained = std::max(info.trained_ctx, sequence.next_position);
  const int last = info.max_positions > 0 ? info.max_positions : trained > sequence.next_position ? trained : INT32_MAX;
  const int chunk = std::min(options.chunk, last - sequence.next_position - overhead);
  if (chunk >= kLeastChunk) return chunk;
  return Unsupported(fmt::format("{} tokens leave no positions of the model's {} to read them again, which {} needs",
                                 sequence.next_position, last, active_.front().recipe.text));
}

Status EngineImpl::RunPass(const Sequence& source, std::span<const int32_t> tokens) {
  Sequence fork = source;
  PITH_ASSIGN_OR_RETURN(fork.cache_id, cache_->Fork(source.cache_id, ledger_->common()));
  fork.slot = spare_slot_;
  fork.tokens.clear();
  context_->CopySlot(source.slot, fork.slot);
  Status status;
  for (size_t at = 0; at < tokens.size() && status; at += static_cast<size_t>(plan_.block_tokens)) {
    if (cancelled()) {
      status = Cancelled("stopped while reading the prompt again");
      break;
    }
    status = RunRows(fork, tokens.subspan(at, std::min(tokens.size() - at, static_cast<size_t>(plan_.block_tokens))), false, 0);
  }
  cache_->Free(fork.cache_id);
  context_->ClearSlot(fork.slot);
  groups_.clear();
  return status;
}

Status EngineImpl::ReadAgain(Sequence& source, const ActiveRecipe& active) {
  const Policy& policy = *active.recipe.policy;
  const RepeatOptions& options = *policy.repeat();
  const int prefix = PrefixOf(source, active.recipe);
  if (source.repeat && source.repeat->Serves(policy, prefix)) return {};
  if (source.tokens.size() != static_cast<size_t>(source.next_position)) {
    return Unsupported(fmt::format("{} reads the prompt again, and the tokens of this sequence are not known", active.recipe.text));
  }
  source.repeat.reset();
  PITH_ASSIGN_OR_RETURN(const RepeatPrompt prompt, RepeatPrompt::Make(*model_));
  PITH_ASSIGN_OR_RETURN(const int chunk, ChunkOf(source, options, prompt.overhead(options.overlap)));
  std::vector<std::vector<int>> entries(static_cast<size_t>(num_global_layers_));
  for (size_t layer = 0; layer < global_index_.size(); ++layer) {
    if (global_index_[layer] < 0) continue;
    for (const HeadCache& head : cache_->heads(source.cache_id, static_cast<int>(layer))) {
      entries[static_cast<size_t>(global_index_[layer])].push_back(head.num_entries());
    }
  }
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<RepeatColumns> columns,
                        RepeatColumns::Create(ledger_.get(), policy, prefix, entries));
  // Blocks end the validity of logits, and the source's may still be wanted.
  for (auto& [id, sequence] : sequences_) {
    if (sequence.output < 0) continue;
    const std::span<const float> row = context_->logits(sequence.output);
    sequence.restored_logits.assign(row.begin(), row.end());
  }
  repeat_policy_ = &policy;
  repeat_columns_ = columns.get();
  Status status;
  for (int from = prefix; from < source.next_position && status; from += chunk) {
    repeat_pass_ = {.prefix_end = prefix, .from = from, .to = std::min(from + chunk, source.next_position), .start = source.next_position};
    status = RunPass(source, prompt.Tokens(source.tokens, repeat_pass_, options.overlap, from == prefix));
  }
  repeat_policy_ = nullptr;
  repeat_columns_ = nullptr;
  if (!status && status.error().code == ErrorCode::kOutOfBudget) {
    return OutOfBudget(fmt::format("the KV budget of {:.2f} MiB holds the prompt but not its second reading in chunks of {} "
                                   "tokens, which {} needs",
                                   static_cast<double>(plan_.budget_bytes) / (1 << 20),
                                   std::min(chunk, source.next_position - prefix), active.recipe.text));
  }
  if (status) source.repeat = columns;
  return status;
}

}  // namespace pith
