// The second reading of a prompt (engine/repeat.h).
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/engine_impl.h"
#include "engine/second_reading.h"
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

// The next pass of a reading, on a fork that has what its source leaves of its bytes. False: there is none.
Result<bool> EngineImpl::BeginPass(Sequence& source, SecondReading& reading) {
  const RepeatOptions& options = *reading.recipe.policy->repeat();
  const bool is_first = reading.pass.to == 0;
  if (options.guided) {
    if (!is_first) return false;
    reading.pass = {.to = source.next_position, .start = source.next_position, .guided = true};
    reading.tokens = GuideOf(source, options);
    const int last = model_->info().max_positions;
    const int room = last > 0 ? std::max(last - source.next_position, 1) : INT32_MAX;
    reading.tokens.resize(std::min(reading.tokens.size(), static_cast<size_t>(room)));
  } else {
    const int begin = std::max(reading.prefix, reading.part.from),
              end = std::min(source.next_position, reading.part.to);
    const int from = is_first ? begin : reading.pass.to;
    if (from >= end) return false;
    PITH_ASSIGN_OR_RETURN(const RepeatPrompt prompt, RepeatPrompt::Make(*model_));
    reading.pass = {.prefix_end = reading.prefix,
                    .from = from,
                    .to = EndOfChunk(from, reading.chunk, end),
                    .start = source.next_position,
                    .first_token = reading.columns->references.num_tokens(),
                    .whole = options.whole};
    reading.tokens = prompt.Tokens(source.tokens, reading.pass, options.overlap, from == reading.prefix);
  }
  reading.num_read = 0;
  PITH_ASSIGN_OR_RETURN(reading.fork, ForkForPass(source));
  return true;
}

Result<std::unique_ptr<Sequence>> EngineImpl::ForkForPass(Sequence& source) {
  const size_t used = source.account->used_bytes();
  auto fork = std::make_unique<Sequence>();
  fork->id = source.id;
  fork->setup = source.setup;
  fork->share = source.share;
  fork->ceiling_bytes = fork->planned_bytes = source.ceiling_bytes - std::min(source.ceiling_bytes, used);
  fork->floor_bytes = source.floor_bytes - std::min(source.floor_bytes, used);
  fork->next_position = source.next_position;
  fork->pinned = source.pinned;
  fork->evicts = false;
  const bool is_spare_free = spare_slot_ >= 0 && !is_spare_used_;
  fork->slot = is_spare_free ? spare_slot_ : FreeSlot();
  if (fork->slot < 0) return OutOfBudget("a second reading takes a place for a sequence, and all are in use");
  // What the source was promised beyond what it holds is the fork's while it reads.
  (void)source.account->SetLimits(0, source.ceiling_bytes);
  fork->own_account = MemoryAccount::Open(ledger_.get(), fork->floor_bytes, fork->ceiling_bytes);
  fork->account = fork->own_account.get();
  Result<int> cache = OutOfBudget("the KV budget has no room for a second reading");
  if (fork->account != nullptr) cache = cache_->Fork(source.cache_id, fork->account);
  if (!cache) {
    fork.reset();
    (void)source.account->SetLimits(source.floor_bytes, source.ceiling_bytes);
    return tl::unexpected<Error>(cache.error());
  }
  fork->cache_id = *cache;
  is_spare_free ? is_spare_used_ = true : slot_used_[static_cast<size_t>(fork->slot)] = true;
  context_->CopySlot(source.slot, fork->slot);
  return fork;
}

void EngineImpl::EndPass(Sequence& source, SecondReading& reading) {
  if (reading.fork == nullptr) return;
  const int slot = reading.fork->slot;
  cache_->Free(reading.fork->cache_id);
  context_->ClearSlot(slot);
  slot == spare_slot_ ? is_spare_used_ = false : slot_used_[static_cast<size_t>(slot)] = false;
  reading.fork.reset();
  (void)source.account->SetLimits(source.floor_bytes, source.ceiling_bytes);
}

void EngineImpl::EndReading(Sequence& source) {
  if (source.reading == nullptr) return;
  EndPass(source, *source.reading);
  source.reading.reset();
}

// At most so many rows of the pass that is under way.
Status EngineImpl::ReadPass(Sequence& source, SecondReading& reading, int rows) {
  const std::span<const int32_t> left = std::span(reading.tokens).subspan(reading.num_read);
  const size_t count = std::min({left.size(), static_cast<size_t>(plan_.block_tokens), static_cast<size_t>(rows)});
  repeat_policy_ = reading.recipe.policy.get();
  repeat_columns_ = reading.columns.get();
  repeat_pass_ = reading.pass;
  const Status status = cancelled() ? Status(Cancelled("stopped while reading the prompt again"))
                                    : RunRows(*reading.fork, left.first(count), count - 1, 0);
  repeat_policy_ = nullptr;
  repeat_columns_ = nullptr;
  BeginBlock();  // its group names the fork
  PITH_RETURN_IF_ERROR(status);
  reading.num_read += count;
  if (reading.num_read < reading.tokens.size()) return {};
  reading.columns->references.Count(static_cast<int>(reading.tokens.size()));
  EndPass(source, reading);
  return {};
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

Status EngineImpl::BeginReading(Sequence& source, const ActiveRecipe& active, const EntryGuard& part) {
  const Policy& policy = *active.recipe.policy;
  const RepeatOptions& options = *policy.repeat();
  if (source.tokens.size() != static_cast<size_t>(source.next_position)) {
    return Unsupported(
        fmt::format("{} reads the prompt again, and the tokens of this sequence are not known", active.recipe.text));
  }
  source.repeat.reset();
  auto reading = std::make_shared<SecondReading>();
  reading->recipe = active.recipe;
  reading->part = part;
  reading->prefix = PrefixOf(source, active.recipe);
  PITH_ASSIGN_OR_RETURN(const RepeatPrompt prompt, RepeatPrompt::Make(*model_));
  const int overhead = prompt.overhead(options.overlap);
  PITH_ASSIGN_OR_RETURN(reading->chunk, ChunkOf(source, active, overhead));
  std::vector<std::vector<int>> entries(static_cast<size_t>(num_global_layers_));
  for (size_t layer = 0; layer < global_index_.size(); ++layer) {
    if (global_index_[layer] < 0) continue;
    for (const HeadCache& head : cache_->heads(source.cache_id, static_cast<int>(layer))) {
      entries[static_cast<size_t>(global_index_[layer])].push_back(head.num_entries());
    }
  }
  PITH_ASSIGN_OR_RETURN(reading->columns,
                        RepeatColumns::Create(source.account, policy, reading->prefix, {part.from, part.to}, entries));
  PITH_RETURN_IF_ERROR(ReserveReferences(source, active, part, reading->chunk, overhead, *reading->columns));
  source.reading = std::move(reading);
  return {};
}

Result<bool> EngineImpl::ReadOn(Sequence& source, const ActiveRecipe& active, const EntryGuard& part, int rows) {
  const Policy& policy = *active.recipe.policy;
  if (source.repeat && source.repeat->Serves(policy, PrefixOf(source, active.recipe), {part.from, part.to})) {
    return true;
  }
  const auto is_it = [&](const SecondReading& reading) {
    return reading.recipe.policy == active.recipe.policy && reading.part == part;
  };
  if (source.reading != nullptr && !is_it(*source.reading)) EndReading(source);
  Status status;
  if (source.reading == nullptr) status = BeginReading(source, active, part);
  bool is_done = false;
  while (status && !is_done && rows > 0) {
    SecondReading& reading = *source.reading;
    if (reading.fork == nullptr) {
      const Result<bool> begun = BeginPass(source, reading);
      if (!begun) status = tl::unexpected<Error>(begun.error());
      is_done = begun && !*begun;
      continue;
    }
    const size_t before = reading.num_read;
    const size_t left = reading.tokens.size() - before;
    status = ReadPass(source, reading, rows);
    rows -= static_cast<int>(reading.fork != nullptr ? reading.num_read - before : left);
  }
  if (!status) {
    const int tokens = source.reading != nullptr ? source.reading->chunk : policy.repeat()->chunk;
    EndReading(source);
    if (status.error().code != ErrorCode::kOutOfBudget) return tl::unexpected<Error>(status.error());
    return OutOfBudget(
        fmt::format("the KV budget of {:.2f} MiB holds the prompt but not its second reading in chunks of {} "
                    "tokens, which {} needs",
                    static_cast<double>(plan_.budget_bytes) / (1 << 20),
                    std::min(tokens, source.next_position - PrefixOf(source, active.recipe)), active.recipe.text));
  }
  if (!is_done) return false;
  source.repeat = source.reading->columns;
  EndReading(source);
  return true;
}

Status EngineImpl::ReadAll(Sequence& source, const ActiveRecipe& active, const EntryGuard& part) {
  // Blocks end the validity of logits, and the source's may still be wanted.
  KeepLogits();
  for (;;) {
    PITH_ASSIGN_OR_RETURN(const bool is_done, ReadOn(source, active, part, INT32_MAX));
    if (is_done) return {};
  }
}

Result<bool> EngineImpl::ReadAgain(SequenceId id, const Recipe& recipe, int rows) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, Find(id));
  if (rows < 1) return InvalidArgument("a second reading goes on by one row at least");
  EntryGuard part;
  if (const ResolvedRecipe& own = sequence->setup->recipe; own.has_turns()) {
    const std::optional<TurnPlan> plan = PlanTurn(*sequence);
    if (!plan || !plan->drops || own.turns.method != TurnMethod::kFlowKv) return true;
    for (int i = 0; i < plan->num_dropped; ++i) PITH_RETURN_IF_ERROR(DropOldestTurn(*sequence));
    part.from = plan->turn.from, part.to = plan->turn.to;
  }
  PITH_ASSIGN_OR_RETURN(const ActiveRecipe active, ActiveFor(*sequence, recipe));
  if (active.recipe.policy->repeat() == nullptr || GlobalEntriesOf(*sequence) == 0) return true;
  part.num_sinks = active.recipe.num_sinks;
  return AsRecipesTime([&] { return ReadOn(*sequence, active, part, rows); });
}

}  // namespace pith
