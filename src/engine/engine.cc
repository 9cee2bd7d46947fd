// Sequences: how they come, what they may take, how they end.
#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/cores.h"
#include "engine/engine_impl.h"
#include "engine/synthetic.h"

namespace pith {
namespace {

// libllama knows 256, of which second readings and recurrent states take one each.
constexpr int kMostSequences = 254;

// What kernels have room for on their stacks.
constexpr int kMostChannels = 1024;

double Mib(size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

std::vector<CacheLayer> LayersOf(const ModelInfo& info) {
  std::vector<CacheLayer> layers;
  for (const LayerShape& shape : info.layers) {
    if (shape.kind == LayerKind::kNone) {
      layers.emplace_back();
    } else {
      layers.push_back({shape.num_kv_heads, shape.key_dim, shape.value_dim, shape.kind == LayerKind::kGlobal});
    }
  }
  return layers;
}

}  // namespace

EngineImpl::~EngineImpl() {
  // Accounts and the ledger must outlive the pages that are charged to them.
  while (!sequences_.empty()) Free(sequences_.begin()->first);
  ops_.reset();
  cache_.reset();
  if (flight_ == nullptr) return;
  flight_.reset();
  ledger_->Release(MemoryTag::kBlock, plan_.block_bytes);
  ledger_->Release(MemoryTag::kRecurrent, plan_.recurrent_bytes);
}

Status EngineImpl::Init() {
  const ModelInfo& info = model_->info();
  if (info.use != ModelUse::kText) {
    return InvalidArgument(fmt::format("{} was loaded for its {} alone", info.path,
                                       info.use == ModelUse::kVocabulary ? "vocabulary" : "embeddings"));
  }
  for (const LayerShape& shape : info.layers) {
    if (shape.kind != LayerKind::kNone && std::max(shape.key_dim, shape.value_dim) > kMostChannels) {
      return Unsupported(fmt::format("this model's heads have {} channels, and pith takes {} at most",
                                     std::max(shape.key_dim, shape.value_dim), kMostChannels));
    }
    const bool global = shape.kind == LayerKind::kGlobal;
    if (global) global_layers_.push_back(static_cast<int>(global_index_.size()));
    global_index_.push_back(global ? num_global_layers_++ : -1);
    if (global) num_global_heads_ += shape.num_kv_heads;
  }
  const int last = info.max_positions;
  if (options_.num_ctx <= 0) options_.num_ctx = last > 0 ? std::min(last, info.trained_ctx) : info.trained_ctx;
  if (last > 0 && options_.num_ctx > last) {
    return InvalidArgument(
        fmt::format("the positions of this model end after {} tokens, so that a context of {} cannot be reached", last,
                    options_.num_ctx));
  }
  if (options_.num_threads <= 0) options_.num_threads = PhysicalCores();
  if (options_.block_tokens > 4096) return InvalidArgument("a block of more than 4096 tokens is not supported");
  options_.max_sequences = std::max(options_.max_sequences, 1);
  // One thread does at most kMaxMembers threads' parts of attention.
  const int most = options_.num_threads;
  const int least =
      options_.adapt_threads ? std::max(1, (most + kernels::kMaxMembers - 1) / kernels::kMaxMembers) : most;
  token_governor_.emplace(most, least, kTokenPace);
  block_governor_.emplace(most, least, kBlockPace);
  options_.resting_sequences = std::max(options_.resting_sequences, 0);
  const int num_slots = options_.max_sequences + options_.resting_sequences;
  if (num_slots > kMostSequences) {
    return InvalidArgument(fmt::format("an engine holds {} sequences at most, not {}", kMostSequences, num_slots));
  }
  PITH_ASSIGN_OR_RETURN(default_setup_, SequenceSetup::Make(info, options_));
  static_cast<SequenceOptions&>(options_) = default_setup_->options;
  PITH_RETURN_IF_ERROR(InitBudget());
  cache_ = KvCache::Create(ledger_.get(), LayersOf(info));
  // Where sequences have states of their own, a second reading takes one more only if it was announced.
  const bool spare = !info.hybrid || default_setup_->reads_again;
  if (spare) spare_slot_ = num_slots;
  PITH_ASSIGN_OR_RETURN(context_, HostContext::Create(*model_, plan_.block_tokens, num_slots + (spare ? 1 : 0),
                                                      options_.num_threads, this));
  ops_ = std::make_unique<LayerOps>(*model_, *cache_);
  slot_used_.assign(static_cast<size_t>(num_slots), false);
  return {};
}

Status EngineImpl::InitBudget() {
  const ModelInfo& info = model_->info();
  EngineOptions planned = options_;
  const size_t spare_state = default_setup_->reads_again ? info.recurrent_bytes : 0;
  if (planned.budget_bytes > spare_state) planned.budget_bytes -= spare_state;
  PITH_ASSIGN_OR_RETURN(plan_, PlanMemory(info, *default_setup_, planned));
  plan_.budget_bytes += spare_state;
  plan_.recurrent_bytes += spare_state;
  ledger_ = std::make_unique<Ledger>(plan_.budget_bytes);
  flight_bytes_ = plan_.flight_bytes;
  const bool charged = ledger_->TryCharge(MemoryTag::kBlock, plan_.block_bytes) &&
                       ledger_->TryCharge(MemoryTag::kRecurrent, plan_.recurrent_bytes);
  if (charged) flight_ = MemoryAccount::Open(ledger_.get(), flight_bytes_, flight_bytes_);
  if (flight_ == nullptr) return OutOfBudget("the KV budget does not hold libllama's block");
  return {};
}

// The engine's options with a sequence's own in place of the default ones.
EngineOptions EngineImpl::WithDefaults(const SequenceOptions& options) const {
  EngineOptions merged = options_;
  static_cast<SequenceOptions&>(merged) = options;
  merged.num_ctx = options.num_ctx > 0 ? std::min(options.num_ctx, options_.num_ctx) : options_.num_ctx;
  merged.block_tokens = plan_.block_tokens;
  merged.budget_bytes = plan_.budget_bytes;
  if (options.ceiling_bytes > 0) {
    merged.max_sequences = 1;
    merged.budget_bytes =
        std::min(plan_.budget_bytes, plan_.block_bytes + plan_.recurrent_bytes + flight_bytes_ + options.ceiling_bytes);
  }
  return merged;
}

int EngineImpl::FreeSlot() const {
  const auto slot = std::find(slot_used_.begin(), slot_used_.end(), false);
  return slot == slot_used_.end() ? -1 : static_cast<int>(slot - slot_used_.begin());
}

Sequence* EngineImpl::Lookup(SequenceId id) const {
  const auto found = sequences_.find(id);
  return found == sequences_.end() ? nullptr : found->second.get();
}

Result<Sequence*> EngineImpl::Find(SequenceId id) const {
  Sequence* const sequence = Lookup(id);
  if (sequence == nullptr) return InvalidArgument(fmt::format("there is no sequence {}", id));
  if (sequence->lost) return tl::unexpected<Error>(*sequence->lost);
  return sequence;
}

void EngineImpl::SetEviction(SequenceId id, bool on) {
  if (Sequence* const sequence = Lookup(id)) sequence->evicts = on;
}

void EngineImpl::SetPromptContinues(SequenceId id, bool on) {
  if (Sequence* const sequence = Lookup(id)) sequence->prompt_continues = on;
}

int EngineImpl::num_tokens(SequenceId id) const {
  const Sequence* const sequence = Lookup(id);
  return sequence != nullptr ? sequence->next_position : 0;
}

void EngineImpl::PlanOwnShare(Sequence& sequence, size_t bytes) const {
  sequence.planned_bytes = bytes;
  sequence.share = PlanShare(model_->info(), *sequence.setup, bytes);
}

Result<SequenceId> EngineImpl::NewSequence(const SequenceOptions& options) {
  PITH_ASSIGN_OR_RETURN(const SetupPtr setup, SequenceSetup::Make(model_->info(), WithDefaults(options)));
  return AddSequence(setup, options.floor_bytes, options.ceiling_bytes);
}

Result<SequenceId> EngineImpl::AddSequence(const SetupPtr& setup, size_t floor_bytes, size_t ceiling_bytes) {
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<Sequence> sequence, MakeSequence(setup, floor_bytes, ceiling_bytes));
  const SequenceLayout layout{.entry = setup->formats.entry,
                              .num_columns = setup->num_columns,
                              .low = setup->formats.low,
                              .lower = setup->formats.lower,
                              .state_rank = setup->maps != nullptr ? setup->maps->rank() : 0};
  PITH_ASSIGN_OR_RETURN(sequence->cache_id, cache_->NewSequence(layout, sequence->account));
  const size_t heads = std::max<size_t>(cache_->num_heads(), 1);
  const size_t page_bytes = std::max<size_t>(LeastShare(model_->info(), *setup) / heads, 1);
  const size_t pages = sequence->ceiling_bytes / page_bytes / heads;
  for (size_t layer = 0; layer < cache_->layers().size(); ++layer) {
    if (cache_->layers()[layer].num_kv_heads == 0) continue;
    for (HeadCache& head : cache_->heads(sequence->cache_id, static_cast<int>(layer))) {
      (void)head.ReserveTable(std::clamp<size_t>(pages + 8, 8, 4096));
    }
  }
  context_->ClearSlot(sequence->slot);
  return Register(std::move(sequence));
}

Result<SequenceId> EngineImpl::Register(std::unique_ptr<Sequence> sequence) {
  slot_used_[static_cast<size_t>(sequence->slot)] = true;
  sequence->id = next_id_;
  sequences_.emplace(next_id_, std::move(sequence));
  return next_id_++;
}

Result<std::unique_ptr<Sequence>> EngineImpl::MakeSequence(const SetupPtr& setup, size_t floor_bytes,
                                                           size_t ceiling_bytes) {
  auto sequence = std::make_unique<Sequence>();
  sequence->setup = setup;
  sequence->slot = FreeSlot();
  if (sequence->slot < 0)
    return OutOfBudget(fmt::format("all {} sequences of this engine are in use", slot_used_.size()));
  const size_t least = LeastShare(model_->info(), *setup);
  size_t ceiling = ceiling_bytes > 0 ? ceiling_bytes : std::max(plan_.share_bytes, floor_bytes);
  if (ceiling < least) {
    return OutOfBudget(
        fmt::format("{:.2f} MiB do not hold a sequence with the recipe {}; {:.2f} MiB are the least that does",
                    Mib(ceiling), setup->recipe.text, Mib(least) + 0.005));
  }
  size_t floor =
      std::max(least, floor_bytes > 0 ? std::min(floor_bytes, ceiling) : std::min(plan_.share_bytes, ceiling));
  const size_t flight = std::max(flight_bytes_, setup->flight.Bytes(plan_.block_tokens, options_.max_sequences));
  const size_t more_flight = flight - flight_bytes_;
  if (floor_bytes == 0 && more_flight > 0) {
    // Nobody has asked for just so many: an equal share pays for what its own steps take beyond the engine's.
    floor = std::max(least, floor - std::min(floor, more_flight));
    if (ceiling_bytes == 0) ceiling = floor;
  }
  const size_t needed = floor + more_flight;
  const bool is_there = Reclaim(needed, nullptr) && flight_->SetLimits(flight, flight);
  if (is_there) flight_bytes_ = flight;
  if (is_there) sequence->own_account = MemoryAccount::Open(ledger_.get(), floor, ceiling);
  if (sequence->own_account == nullptr) {
    return OutOfBudget(
        fmt::format("another sequence takes {:.2f} MiB, and {:.2f} of the KV budget's {:.2f} MiB are not promised "
                    "to others",
                    Mib(needed), Mib(ledger_->uncommitted_bytes()), Mib(plan_.budget_bytes)));
  }
  sequence->account = sequence->own_account.get();
  sequence->floor_bytes = floor;
  sequence->ceiling_bytes = ceiling;
  PlanOwnShare(*sequence, ceiling);
  PITH_RETURN_IF_ERROR(HoldOwnBytes(*sequence));
  return sequence;
}

// What a sequence remembers beside its pages is part of its bytes.
Status EngineImpl::HoldOwnBytes(Sequence& sequence) const {
  const SequenceSetup& setup = *sequence.setup;
  const QueryMoments::Shape shape = MomentsOf(model_->info());
  const size_t moments = setup.counts_moments ? QueryMoments::Bytes(shape) : 0;
  const size_t tokens = setup.reads_again ? static_cast<size_t>(setup.num_ctx) * sizeof(int32_t) : 0;
  if (!sequence.query_bytes.Hold(sequence.account, MemoryTag::kQueries,
                                 QueryRing::Bytes(shape, setup.ring_window) + moments) ||
      !sequence.token_bytes.Hold(sequence.account, MemoryTag::kTokens, tokens) || !sequence.HoldScratch()) {
    return OutOfBudget(fmt::format("{:.2f} MiB do not hold what the recipe {} remembers of queries and tokens",
                                   Mib(sequence.account->ceiling_bytes()), setup.recipe.text));
  }
  sequence.merge_thresholds.resize(static_cast<size_t>(num_global_layers_), std::nan(""));
  if (setup.ring_window > 0 && sequence.queries.window() == 0) sequence.queries = QueryRing(shape, setup.ring_window);
  if (setup.counts_moments && sequence.moments.empty()) sequence.moments = QueryMoments(shape);
  if (setup.reads_again) sequence.tokens.reserve(static_cast<size_t>(setup.num_ctx));
  if (setup.recipe.skips_attention()) sequence.pruner = std::make_unique<PrefillPruner>(setup.recipe.prefill);
  return {};
}

bool EngineImpl::Reclaim(size_t bytes, const Sequence* except) {
  for (const auto& [id, sequence] : sequences_) {
    if (ledger_->uncommitted_bytes() >= bytes) return true;
    if (sequence.get() == except || sequence->account->used_bytes() <= sequence->floor_bytes) continue;
    if (!sequence->evicts_while_running()) continue;
    PlanOwnShare(*sequence, sequence->floor_bytes);
    (void)sequence->HoldScratch();
    (void)sequence->account->SetLimits(sequence->floor_bytes, sequence->floor_bytes);
    (void)EvictToShare(*sequence);
  }
  return ledger_->uncommitted_bytes() >= bytes;
}

Result<Admission> EngineImpl::Admit(const SequenceOptions& options, size_t num_tokens) const {
  PITH_ASSIGN_OR_RETURN(const SetupPtr setup, SequenceSetup::Make(model_->info(), WithDefaults(options)));
  if (num_tokens > static_cast<size_t>(setup->num_ctx)) {
    return InvalidArgument(
        fmt::format("{} tokens do not fit into a context of {}: raise it with -c", num_tokens, setup->num_ctx));
  }
  const ModelInfo& info = model_->info();
  Admission admission;
  admission.reread_bytes = RereadBytes(info, *setup, static_cast<int>(num_tokens));
  admission.step_bytes = setup->flight.Bytes(std::min(static_cast<int>(num_tokens), plan_.block_tokens), 1);
  const size_t ceiling = options.ceiling_bytes > 0 ? options.ceiling_bytes : plan_.share_bytes;
  const size_t whole = ShareFor(info, *setup, static_cast<int>(num_tokens));
  admission.steady_bytes = setup->style.evicts || setup->recipe.has_turns()
                               ? std::min(whole, std::max(ceiling, LeastShare(info, *setup)))
                               : whole;
  size_t borrowed = 0;
  for (const auto& [id, sequence] : sequences_) {
    const size_t used = sequence->account->used_bytes();
    if (sequence->evicts_while_running() && used > sequence->floor_bytes) borrowed += used - sequence->floor_bytes;
  }
  admission.free_bytes = ledger_->uncommitted_bytes() + borrowed;
  const size_t more_flight = std::max(flight_bytes_, admission.step_bytes) - flight_bytes_;
  const size_t needed = admission.steady_bytes + more_flight;
  admission.fits = needed <= admission.free_bytes && FreeSlot() >= 0 &&
                   admission.steady_bytes <= std::max(ceiling, plan_.share_bytes);
  admission.missing_bytes = needed > admission.free_bytes ? needed - admission.free_bytes : 0;
  return admission;
}

Status EngineImpl::SetBudget(SequenceId id, size_t floor_bytes, size_t ceiling_bytes) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, Find(id));
  EndReading(*sequence);
  const SequenceSetup& setup = *sequence->setup;
  const size_t least = LeastShare(model_->info(), setup);
  const size_t ceiling = ceiling_bytes > 0 ? ceiling_bytes : std::max(plan_.share_bytes, floor_bytes);
  const size_t floor = std::max(least, floor_bytes > 0 ? floor_bytes : std::min(plan_.share_bytes, ceiling));
  if (ceiling < least) {
    return OutOfBudget(fmt::format("{:.2f} MiB do not hold this sequence; {:.2f} MiB are the least that does",
                                   Mib(ceiling), Mib(least) + 0.005));
  }
  const size_t used = sequence->account->used_bytes();
  if (used > ceiling && !sequence->evicts_while_running()) {
    return OutOfBudget(fmt::format("the sequence holds {:.2f} MiB, and nothing of it may be dropped", Mib(used)));
  }
  const size_t committed = std::max(used, sequence->floor_bytes);
  if (floor > committed && !Reclaim(floor - committed, sequence)) {
    return OutOfBudget(
        fmt::format("{:.2f} MiB of the KV budget are not promised to others", Mib(ledger_->uncommitted_bytes())));
  }
  const SharePlan before = sequence->share;
  const size_t planned = sequence->planned_bytes;
  PlanOwnShare(*sequence, ceiling);
  if (CheckPinned(*sequence, 0) && sequence->account->SetLimits(floor, ceiling)) {
    (void)sequence->HoldScratch();
    sequence->floor_bytes = floor;
    sequence->ceiling_bytes = ceiling;
    // With the share that it had, what it holds is not too much: it goes on as if nobody had asked.
    const bool shrinks = sequence->share.keep_entries < before.keep_entries;
    return shrinks && sequence->evicts_while_running() ? EvictToShare(*sequence) : Status();
  }
  sequence->share = before;
  sequence->planned_bytes = planned;
  return OutOfBudget(
      fmt::format("{:.2f} MiB do not hold the sequence's pinned tokens, or are promised to others", Mib(ceiling)));
}

Result<SequenceId> EngineImpl::Fork(SequenceId id) {
  PITH_ASSIGN_OR_RETURN(const Sequence* const source, Find(id));
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<Sequence> fork,
                        MakeSequence(source->setup, source->floor_bytes, source->ceiling_bytes));
  PITH_ASSIGN_OR_RETURN(fork->cache_id, cache_->Fork(source->cache_id, fork->account));
  fork->CopyHistory(*source);
  context_->CopySlot(source->slot, fork->slot);
  return Register(std::move(fork));
}

void EngineImpl::Free(SequenceId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  Sequence& sequence = *found->second;
  EndReading(sequence);
  cache_->Free(sequence.cache_id);
  context_->ClearSlot(sequence.slot);
  slot_used_[static_cast<size_t>(sequence.slot)] = false;
  sequences_.erase(found);
  const std::lock_guard lock(cancel_mutex_);
  cancels_.erase(id);
  has_cancels_.store(!cancels_.empty(), std::memory_order_release);
  // What it leaves may be borrowed again.
  for (const auto& [other, lender] : sequences_) {
    if (lender->account->ceiling_bytes() >= lender->ceiling_bytes) continue;
    if (!lender->account->SetLimits(lender->floor_bytes, lender->ceiling_bytes)) continue;
    PlanOwnShare(*lender, lender->ceiling_bytes);
    if (!lender->HoldScratch()) PlanOwnShare(*lender, lender->floor_bytes);
  }
}

void EngineImpl::Cancel(SequenceId id) {
  const std::lock_guard lock(cancel_mutex_);
  cancels_.insert(id);
  has_cancels_.store(true, std::memory_order_release);
}

Status EngineImpl::FillForBenchmark(SequenceId id, int num_tokens) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, Find(id));
  if (sequence->next_position != 0) return InvalidArgument("only an empty sequence can be filled");
  PITH_RETURN_IF_ERROR(CheckRoom(*sequence, static_cast<size_t>(num_tokens)));
  if (num_global_layers_ != model_->info().num_layers) {
    return Unsupported("a synthetic cache is made for models whose layers all attend over everything");
  }
  const int kept =
      sequence->evicts_while_running() ? sequence->share.keep_entries + sequence->share.slack_entries / 2 : num_tokens;
  PITH_RETURN_IF_ERROR(
      FillHeads(*cache_, sequence->cache_id, std::min(num_tokens, kept), num_tokens, sequence->setup->column_initials));
  sequence->next_position = num_tokens;
  sequence->entries_seen = num_tokens * num_global_heads_;
  return {};
}

KvStats EngineImpl::stats() const {
  KvStats stats;
  ReadLedger(*ledger_, stats);
  for (const auto& [id, sequence] : sequences_) {
    stats.entries += GlobalEntriesOf(*sequence);
    stats.entries_seen += sequence->entries_seen;
  }
  if (stats.entries_seen > 0)
    stats.kept_fraction = static_cast<double>(stats.entries) / static_cast<double>(stats.entries_seen);
  stats.promised_bytes = ledger_->limit_bytes() - ledger_->used_bytes() - ledger_->uncommitted_bytes();
  stats.keep_entries = plan_.keep_entries;
  stats.block_tokens = plan_.block_tokens;
  const SequenceSetup& setup = *default_setup_;
  stats.format = setup.turn_format;
  return stats;
}

SequenceStats EngineImpl::stats(SequenceId id) const {
  SequenceStats stats;
  const Sequence* const found = Lookup(id);
  if (found == nullptr) return stats;
  const Sequence& sequence = *found;
  stats.used_bytes = sequence.account->used_bytes();
  stats.floor_bytes = sequence.floor_bytes;
  stats.ceiling_bytes = sequence.ceiling_bytes;
  stats.entries = GlobalEntriesOf(sequence);
  stats.entries_seen = sequence.entries_seen;
  if (stats.entries_seen > 0)
    stats.kept_fraction = static_cast<double>(stats.entries) / static_cast<double>(stats.entries_seen);
  stats.keep_entries = sequence.share.keep_entries;
  stats.num_tokens = sequence.next_position;
  stats.num_pinned = static_cast<int>(sequence.num_pinned());
  const SequenceSetup& setup = *sequence.setup;
  // A recipe may have converted what stays (format=auto).
  stats.format = setup.converts_turns() ? setup.turn_format : cache_->layout(sequence.cache_id).full();
  stats.recipe = setup.recipe.text;
  return stats;
}

Result<std::unique_ptr<Engine>> Engine::Create(std::shared_ptr<HostModel> model, const EngineOptions& options) {
  auto engine = std::make_unique<EngineImpl>(std::move(model), options);
  PITH_RETURN_IF_ERROR(engine->Init());
  return std::unique_ptr<Engine>(std::move(engine));
}

}  // namespace pith
