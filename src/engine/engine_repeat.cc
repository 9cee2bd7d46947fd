// The second reading of a prompt (engine/repeat.h).
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/engine_impl.h"
#include "policy/act/residue.h"

namespace pith {
namespace {

// Fewer tokens of a chunk than this are not worth a pass.
constexpr int kLeastChunk = 16;
// Queries of each kv head to which entries can be fitted at all.
constexpr int kLeastRows = 64;

// Chunks end where pages do, so that their entries are pages of their own.
int EndOfChunk(int from, int chunk, int num_tokens) {
  if (from + chunk >= num_tokens) return num_tokens;
  const int end = (from + chunk) / kPageEntries * kPageEntries;
  return end > from ? end : from + chunk;
}

}  // namespace

// The tokens at the front that stay whatever is found: sinks, and what the caller pinned there.
int EngineImpl::PrefixOf(const Sequence& sequence, const ResolvedRecipe& recipe) const {
  int prefix = recipe.num_sinks;
  for (const auto& [from, to] : sequence.pinned) {
    if (from <= prefix) prefix = std::max(prefix, to);
  }
  return std::min(prefix, sequence.next_position);
}

// Tokens per pass, so that the last position of a pass is one that the model knows.
Result<int> EngineImpl::ChunkOf(const Sequence& sequence, const ActiveRecipe& active, int overhead) const {
  const ModelInfo& info = model_->info();
  // A conversation goes on where the model's training ended.
  const int known = sequence.setup->recipe.has_turns() ? 0 : info.trained_ctx;
  const int trained = std::max(known, sequence.next_position);
  const int last = info.max_positions > 0 ? info.max_positions : trained > sequence.next_position ? trained : INT32_MAX;
  const int chunk = std::min(active.recipe.policy->repeat()->chunk, last - sequence.next_position - overhead);
  if (chunk >= kLeastChunk) return chunk;
  return Unsupported(fmt::format("{} tokens leave no positions of the model's {} to read them again, which {} needs",
                                 sequence.next_position, last, active.recipe.text));
}

// On a fork that takes what its source leaves of its bytes.
Status EngineImpl::RunPass(const Sequence& source, std::span<const int32_t> tokens) {
  Sequence fork;
  fork.id = source.id;
  fork.setup = source.setup;
  fork.share = source.share;
  fork.ceiling_bytes = fork.planned_bytes =
      source.ceiling_bytes - std::min(source.ceiling_bytes, source.account->used_bytes());
  fork.own_account = MemoryAccount::Open(ledger_.get(), 0, fork.ceiling_bytes);
  if (fork.own_account == nullptr) return OutOfBudget("the KV budget has no room for a second reading");
  fork.account = fork.own_account.get();
  fork.next_position = source.next_position;
  fork.pinned = source.pinned;
  fork.evicts = false;
  fork.slot = spare_slot_ >= 0 ? spare_slot_ : FreeSlot();
  if (fork.slot < 0) return OutOfBudget("a second reading takes a place for a sequence, and all are in use");
  PITH_ASSIGN_OR_RETURN(fork.cache_id, cache_->Fork(source.cache_id, fork.account));
  context_->CopySlot(source.slot, fork.slot);
  Status status;
  for (size_t at = 0; at < tokens.size() && status; at += static_cast<size_t>(plan_.block_tokens)) {
    if (cancelled()) {
      status = Cancelled("stopped while reading the prompt again");
      break;
    }
    const size_t count = std::min(tokens.size() - at, static_cast<size_t>(plan_.block_tokens));
    status = RunRows(fork, tokens.subspan(at, count), count - 1, 0);
  }
  cache_->Free(fork.cache_id);
  context_->ClearSlot(fork.slot);
  BeginBlock();
  return status;
}

// Room for the queries of all passes, in what the sequence's bytes leave beside the longest pass.
Status EngineImpl::ReserveReferences(const Sequence& source, const ActiveRecipe& active, const EntryGuard& part,
                                     int chunk, int overhead, RepeatColumns& columns) const {
  const ResidueOptions* const residue = active.recipe.policy->residue();
  if (residue == nullptr) return {};
  const int context =
      std::min(source.next_position, part.to) - std::max(PrefixOf(source, active.recipe), part.from);
  const int passes = (context + chunk - 1) / chunk;
  std::vector<size_t> widths;
  size_t token_bytes = 0;
  int group = 1;
  for (int layer = 0; layer < num_global_layers_; ++layer) {
    const LayerShape& shape = model_->info().layers[static_cast<size_t>(LayerOf(layer))];
    // Where attention falls with distance (ALiBi), a made key would hold at one distance alone: nothing stands in.
    if (ops_->params(LayerOf(layer)).alibi_slopes != nullptr) {
      return columns.references.Reserve(0, 0, std::vector<size_t>(static_cast<size_t>(num_global_layers_), 0));
    }
    widths.push_back(static_cast<size_t>(shape.num_heads * shape.key_dim));
    token_bytes += widths.back() * sizeof(uint16_t);
    group = std::max(group, shape.num_heads / shape.num_kv_heads);
  }
  // The pass's fork copies last pages and has tables of its own.
  const int pass_tokens = std::min(chunk, context) + overhead + 3 * kPageEntries;
  const size_t used = source.account->used_bytes() + BytesToExtend(source, pass_tokens);
  const size_t free = source.ceiling_bytes - std::min(source.ceiling_bytes, used);
  const int tokens = std::min(residue->rows / group,
                              static_cast<int>(std::min(free / std::max<size_t>(token_bytes, 1), size_t{INT32_MAX})));
  return columns.references.Reserve(context + passes * overhead, std::max(tokens, (kLeastRows + group - 1) / group),
                                    widths);
}

// The text that stands for what will be asked: one token at least, and no more than positions allow.
std::vector<int32_t> EngineImpl::GuideOf(const Sequence& source, const RepeatOptions& options) const {
  const auto most = static_cast<size_t>(MostGuideTokens(source, options));
  if (!source.guide.empty()) return {source.guide.begin(), source.guide.begin() + static_cast<std::ptrdiff_t>(most)};
  const size_t count = std::min(source.tokens.size(), most);
  return {source.tokens.end() - static_cast<std::ptrdiff_t>(count), source.tokens.end()};
}

Status EngineImpl::ReadPasses(Sequence& source, const ActiveRecipe& active, const EntryGuard& part, int chunk,
                              RepeatColumns& columns) {
  const RepeatOptions& options = *active.recipe.policy->repeat();
  const int prefix = PrefixOf(source, active.recipe);
  if (options.guided) {
    repeat_pass_ = {.to = source.next_position, .start = source.next_position, .guided = true};
    std::vector<int32_t> guide = GuideOf(source, options);
    const int last = model_->info().max_positions;
    const int room = last > 0 ? std::max(last - source.next_position, 1) : INT32_MAX;
    guide.resize(std::min(guide.size(), static_cast<size_t>(room)));
    return RunPass(source, guide);
  }
  PITH_ASSIGN_OR_RETURN(const RepeatPrompt prompt, RepeatPrompt::Make(*model_));
  const int begin = std::max(prefix, part.from), end = std::min(source.next_position, part.to);
  Status status;
  for (int from = begin; from < end && status; from = repeat_pass_.to) {
    repeat_pass_ = {.prefix_end = prefix,
                    .from = from,
                    .to = EndOfChunk(from, chunk, end),
                    .start = source.next_position,
                    .first_token = columns.references.num_tokens(),
                    .whole = options.whole};
    const std::vector<int32_t> tokens = prompt.Tokens(source.tokens, repeat_pass_, options.overlap, from == prefix);
    status = RunPass(source, tokens);
    columns.references.Count(static_cast<int>(tokens.size()));
  }
  return status;
}

Status EngineImpl::ReadAgain(Sequence& source, const ActiveRecipe& active, const EntryGuard& part) {
  const Policy& policy = *active.recipe.policy;
  const RepeatOptions& options = *policy.repeat();
  const int prefix = PrefixOf(source, active.recipe);
  const bool whole = part.from == 0 && part.to == INT32_MAX;
  if (whole && !options.guided && source.repeat && source.repeat->Serves(policy, prefix)) return {};
  if (source.tokens.size() != static_cast<size_t>(source.next_position)) {
    return Unsupported(
        fmt::format("{} reads the prompt again, and the tokens of this sequence are not known", active.recipe.text));
  }
  source.repeat.reset();
  PITH_ASSIGN_OR_RETURN(const RepeatPrompt prompt, RepeatPrompt::Make(*model_));
  const int overhead = prompt.overhead(options.overlap);
  PITH_ASSIGN_OR_RETURN(const int chunk, ChunkOf(source, active, overhead));
  std::vector<std::vector<int>> entries(static_cast<size_t>(num_global_layers_));
  for (size_t layer = 0; layer < global_index_.size(); ++layer) {
    if (global_index_[layer] < 0) continue;
    for (const HeadCache& head : cache_->heads(source.cache_id, static_cast<int>(layer))) {
      entries[static_cast<size_t>(global_index_[layer])].push_back(head.num_entries());
    }
  }
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<RepeatColumns> columns,
                        RepeatColumns::Create(source.account, policy, prefix, entries));
  PITH_RETURN_IF_ERROR(ReserveReferences(source, active, part, chunk, overhead, *columns));
  // Blocks end the validity of logits, and the source's may still be wanted.
  KeepLogits();
  (void)source.account->SetLimits(0, source.ceiling_bytes);
  repeat_policy_ = &policy;
  repeat_columns_ = columns.get();
  const Status status = ReadPasses(source, active, part, chunk, *columns);
  repeat_policy_ = nullptr;
  repeat_columns_ = nullptr;
  (void)source.account->SetLimits(source.floor_bytes, source.ceiling_bytes);
  if (!status && status.error().code == ErrorCode::kOutOfBudget) {
    return OutOfBudget(
        fmt::format("the KV budget of {:.2f} MiB holds the prompt but not its second reading in chunks of {} "
                    "tokens, which {} needs",
                    static_cast<double>(plan_.budget_bytes) / (1 << 20), std::min(chunk, source.next_position - prefix),
                    active.recipe.text));
  }
  if (status) source.repeat = columns;
  return status;
}

}  // namespace pith
