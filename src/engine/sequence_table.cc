#include "engine/sequence_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace pith {
namespace {

double Mib(size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

}  // namespace

// Accounts must outlive the pages that are charged to them.
SequenceTable::~SequenceTable() {
  while (!sequences_.empty()) Free(sequences_.begin()->first);
}

EngineOptions SequenceTable::WithDefaults(const SequenceOptions& options) const {
  const MemoryPlan& plan = core_.plan;
  EngineOptions merged = core_.options;
  static_cast<SequenceOptions&>(merged) = options;
  merged.num_ctx = options.num_ctx > 0 ? std::min(options.num_ctx, core_.options.num_ctx) : core_.options.num_ctx;
  merged.block_tokens = plan.block_tokens;
  merged.budget_bytes = plan.budget_bytes;
  if (options.ceiling_bytes > 0) {
    merged.max_sequences = 1;
    merged.budget_bytes = std::min(
        plan.budget_bytes, plan.block_bytes + plan.recurrent_bytes + core_.flight.bytes() + options.ceiling_bytes);
  }
  return merged;
}

Sequence* SequenceTable::Lookup(SequenceId id) const {
  const auto found = sequences_.find(id);
  return found == sequences_.end() ? nullptr : found->second.get();
}

Result<Sequence*> SequenceTable::Find(SequenceId id) const {
  Sequence* const sequence = Lookup(id);
  if (sequence == nullptr) return InvalidArgument(fmt::format("there is no sequence {}", id));
  if (sequence->lost) return tl::unexpected<Error>(*sequence->lost);
  return sequence;
}

void SequenceTable::PlanShareOf(Sequence& sequence, size_t bytes) const {
  sequence.planned_bytes = bytes;
  sequence.share = PlanShare(*core_.info, *sequence.setup, bytes);
}

Result<SequenceId> SequenceTable::New(const SequenceOptions& options) {
  PITH_ASSIGN_OR_RETURN(const SetupPtr setup, SequenceSetup::Make(*core_.info, WithDefaults(options)));
  return Add(setup, options.floor_bytes, options.ceiling_bytes);
}

Result<SequenceId> SequenceTable::New() {
  return Add(core_.default_setup, core_.options.floor_bytes, core_.options.ceiling_bytes);
}

Result<SequenceId> SequenceTable::Add(const SetupPtr& setup, size_t floor_bytes, size_t ceiling_bytes) {
  return Register(MakeEmpty(setup, floor_bytes, ceiling_bytes));
}

Result<std::unique_ptr<Sequence>> SequenceTable::MakeEmpty(const SetupPtr& setup, size_t floor_bytes,
                                                           size_t ceiling_bytes) {
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<Sequence> sequence, Make(setup, floor_bytes, ceiling_bytes));
  const SequenceLayout layout{.entry = setup->formats.entry,
                              .num_columns = setup->num_columns,
                              .low = setup->formats.converted,
                              .lower = setup->formats.chosen,
                              .state_rank = setup->maps != nullptr ? setup->maps->rank() : 0};
  PITH_ASSIGN_OR_RETURN(sequence->cache_id, core_.cache->NewSequence(layout, sequence->account));
  ReserveTables(*sequence);
  core_.context->ClearSlot(sequence->slot);
  return sequence;
}

// So that tables don't grow while tokens are decoded.
void SequenceTable::ReserveTables(const Sequence& sequence) const {
  KvCache& cache = *core_.cache;
  const size_t heads = std::max<size_t>(cache.num_heads(), 1);
  const size_t page_bytes = std::max<size_t>(LeastShare(*core_.info, *sequence.setup) / heads, 1);
  const size_t pages = sequence.ceiling_bytes / page_bytes / heads;
  for (HeadCache& head : cache.heads(sequence.cache_id)) {
    (void)head.ReserveTable(std::clamp<size_t>(pages + 8, 8, 4096));
  }
}

Result<SequenceId> SequenceTable::Register(Result<std::unique_ptr<Sequence>> made) {
  if (!made) {
    SettleFlight();
    return tl::unexpected<Error>(made.error());
  }
  core_.slots.Take((*made)->slot);
  (*made)->id = next_id_;
  sequences_.emplace(next_id_, *std::move(made));
  return next_id_++;
}

size_t SequenceTable::FlightBytesOf(const SequenceSetup& setup) const {
  return std::max(core_.plan.flight_bytes, setup.flight.Bytes(core_.plan.block_tokens, core_.options.max_sequences));
}

void SequenceTable::SettleFlight() {
  size_t bytes = core_.plan.flight_bytes;
  for (const auto& [id, sequence] : sequences_) bytes = std::max(bytes, FlightBytesOf(*sequence->setup));
  if (bytes < core_.flight.bytes()) (void)core_.flight.Promise(bytes);
}

Result<std::unique_ptr<Sequence>> SequenceTable::Make(const SetupPtr& setup, size_t floor_bytes, size_t ceiling_bytes) {
  const MemoryPlan& plan = core_.plan;
  auto sequence = std::make_unique<Sequence>();
  sequence->setup = setup;
  sequence->slot = core_.slots.FindFree();
  if (sequence->slot < 0) {
    return OutOfBudget(fmt::format("all {} sequences of this engine are in use", core_.slots.count()));
  }
  const size_t least = LeastShare(*core_.info, *setup);
  size_t ceiling = ceiling_bytes > 0 ? ceiling_bytes : std::max(plan.share_bytes, floor_bytes);
  if (ceiling < least) {
    return OutOfBudget(
        fmt::format("{:.2f} MiB do not hold a sequence with the recipe {}; {:.2f} MiB are the least that does",
                    Mib(ceiling), setup->recipe.text, Mib(least) + 0.005));
  }
  size_t floor =
      std::max(least, floor_bytes > 0 ? std::min(floor_bytes, ceiling) : std::min(plan.share_bytes, ceiling));
  const size_t flight = std::max(core_.flight.bytes(), FlightBytesOf(*setup));
  const size_t more_flight = flight - core_.flight.bytes();
  if (floor_bytes == 0 && more_flight > 0) {
    // Nobody has asked for just so many: an equal share pays for what its own steps take beyond the engine's.
    floor = std::max(least, floor - std::min(floor, more_flight));
    if (ceiling_bytes == 0) ceiling = floor;
  }
  const size_t needed = floor + more_flight;
  if (Reclaim(needed, nullptr) && core_.flight.Promise(flight)) {
    sequence->own_account = MemoryAccount::Open(core_.ledger.get(), floor, ceiling);
  }
  if (sequence->own_account == nullptr) {
    return OutOfBudget(
        fmt::format("another sequence takes {:.2f} MiB, and {:.2f} of the KV budget's {:.2f} MiB are not promised "
                    "to others",
                    Mib(needed), Mib(core_.ledger->uncommitted_bytes()), Mib(plan.budget_bytes)));
  }
  sequence->account = sequence->own_account.get();
  sequence->floor_bytes = floor;
  sequence->ceiling_bytes = ceiling;
  PlanShareOf(*sequence, ceiling);
  PITH_RETURN_IF_ERROR(HoldOwnBytes(*sequence));
  return sequence;
}

// What a sequence remembers beside its pages is part of its bytes.
Status SequenceTable::HoldOwnBytes(Sequence& sequence) const {
  const SequenceSetup& setup = *sequence.setup;
  const QueryMoments::Shape shape = MomentsOf(*core_.info);
  const size_t moments = setup.counts_moments ? QueryMoments::Bytes(shape) : 0;
  const size_t tokens = setup.reads_again ? static_cast<size_t>(setup.num_ctx) * sizeof(int32_t) : 0;
  if (!sequence.query_bytes.Hold(sequence.account, MemoryTag::kQueries,
                                 QueryRing::Bytes(shape, setup.ring_window) + moments) ||
      !sequence.token_bytes.Hold(sequence.account, MemoryTag::kTokens, tokens) || !sequence.HoldScratch()) {
    return OutOfBudget(fmt::format("{:.2f} MiB do not hold what the recipe {} remembers of queries and tokens",
                                   Mib(sequence.account->ceiling_bytes()), setup.recipe.text));
  }
  sequence.merge_thresholds.resize(static_cast<size_t>(core_.layers.count()), std::nan(""));
  if (setup.ring_window > 0 && sequence.queries.window() == 0) sequence.queries = QueryRing(shape, setup.ring_window);
  if (setup.counts_moments && sequence.moments.empty()) sequence.moments = QueryMoments(shape);
  if (setup.reads_again) sequence.tokens.reserve(static_cast<size_t>(setup.num_ctx));
  if (setup.recipe.skips_attention()) sequence.pruner = std::make_unique<PrefillPruner>(setup.recipe.prefill);
  return {};
}

size_t SequenceTable::BorrowedBytes(const Sequence* except) const {
  size_t bytes = 0;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence.get() != except && sequence->evicts_while_running()) bytes += sequence->borrowed_bytes();
  }
  return bytes;
}

bool SequenceTable::Reclaim(size_t bytes, const Sequence* except) {
  if (core_.ledger->uncommitted_bytes() + BorrowedBytes(except) < bytes) return false;
  for (const auto& [id, sequence] : sequences_) {
    if (core_.ledger->uncommitted_bytes() >= bytes) return true;
    if (sequence.get() == except || sequence->borrowed_bytes() == 0) continue;
    if (!sequence->evicts_while_running()) continue;
    PlanShareOf(*sequence, sequence->floor_bytes);
    (void)sequence->HoldScratch();
    const size_t guaranteed = sequence->floor_bytes + sequence->step_bytes;
    (void)sequence->account->SetLimits(guaranteed, guaranteed);
    (void)evictor_.EvictToShare(*sequence);
  }
  return core_.ledger->uncommitted_bytes() >= bytes;
}

Result<Admission> SequenceTable::Admit(const SequenceOptions& options, size_t num_tokens) const {
  PITH_ASSIGN_OR_RETURN(const SetupPtr setup, SequenceSetup::Make(*core_.info, WithDefaults(options)));
  if (num_tokens > static_cast<size_t>(setup->num_ctx)) {
    return InvalidArgument(
        fmt::format("{} tokens do not fit into a context of {}: raise it with -c", num_tokens, setup->num_ctx));
  }
  const ModelInfo& info = *core_.info;
  Admission admission;
  admission.reread_bytes = RereadBytes(info, *setup, static_cast<int>(num_tokens));
  admission.step_bytes = setup->flight.Bytes(std::min(static_cast<int>(num_tokens), core_.plan.block_tokens), 1);
  const size_t ceiling = options.ceiling_bytes > 0 ? options.ceiling_bytes : core_.plan.share_bytes;
  const size_t whole = ShareFor(info, *setup, static_cast<int>(num_tokens));
  admission.steady_bytes = setup->style.evicts || setup->recipe.has_turns()
                               ? std::min(whole, std::max(ceiling, LeastShare(info, *setup)))
                               : whole;
  admission.free_bytes = core_.ledger->uncommitted_bytes() + BorrowedBytes(nullptr);
  const size_t more_flight = std::max(core_.flight.bytes(), admission.step_bytes) - core_.flight.bytes();
  const size_t needed = admission.steady_bytes + more_flight;
  admission.fits = needed <= admission.free_bytes && core_.slots.FindFree() >= 0 &&
                   admission.steady_bytes <= std::max(ceiling, core_.plan.share_bytes);
  admission.missing_bytes = needed > admission.free_bytes ? needed - admission.free_bytes : 0;
  return admission;
}

Status SequenceTable::SetBudget(Sequence& sequence, size_t floor_bytes, size_t ceiling_bytes) {
  sequence.EndPieces();
  const SequenceSetup& setup = *sequence.setup;
  const size_t least = LeastShare(*core_.info, setup);
  const size_t ceiling = ceiling_bytes > 0 ? ceiling_bytes : std::max(core_.plan.share_bytes, floor_bytes);
  const size_t floor = std::max(least, floor_bytes > 0 ? floor_bytes : std::min(core_.plan.share_bytes, ceiling));
  if (ceiling < least) {
    return OutOfBudget(fmt::format("{:.2f} MiB do not hold this sequence; {:.2f} MiB are the least that does",
                                   Mib(ceiling), Mib(least) + 0.005));
  }
  const size_t used = sequence.account->used_bytes();
  if (used > ceiling && !sequence.evicts_while_running()) {
    return OutOfBudget(fmt::format("the sequence holds {:.2f} MiB, and nothing of it may be dropped", Mib(used)));
  }
  const size_t committed = std::max(used, sequence.floor_bytes);
  if (floor > committed && !Reclaim(floor - committed, &sequence)) {
    return OutOfBudget(
        fmt::format("{:.2f} MiB of the KV budget are not promised to others", Mib(core_.ledger->uncommitted_bytes())));
  }
  const SharePlan before = sequence.share;
  const size_t planned = sequence.planned_bytes;
  PlanShareOf(sequence, ceiling);
  if (CheckPinned(sequence, 0) && sequence.account->SetLimits(floor, ceiling)) {
    (void)sequence.HoldScratch();
    sequence.floor_bytes = floor;
    sequence.ceiling_bytes = ceiling;
    // With the share that it had, what it holds is not too much: it goes on as if nobody had asked.
    const bool shrinks = sequence.share.keep_entries < before.keep_entries;
    return shrinks && sequence.evicts_while_running() ? evictor_.EvictToShare(sequence) : Status();
  }
  sequence.share = before;
  sequence.planned_bytes = planned;
  return OutOfBudget(
      fmt::format("{:.2f} MiB do not hold the sequence's pinned tokens, or are promised to others", Mib(ceiling)));
}

Result<SequenceId> SequenceTable::Fork(const Sequence& source) { return Register(MakeFork(source)); }

Result<std::unique_ptr<Sequence>> SequenceTable::MakeFork(const Sequence& source) {
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<Sequence> fork, Make(source.setup, source.floor_bytes, source.ceiling_bytes));
  PITH_ASSIGN_OR_RETURN(fork->cache_id, core_.cache->Fork(source.cache_id, fork->account));
  fork->CopyHistory(source);
  core_.context->CopySlot(source.slot, fork->slot);
  return fork;
}

void SequenceTable::Free(SequenceId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  Sequence& sequence = *found->second;
  sequence.EndPieces();
  core_.cache->Free(sequence.cache_id);
  core_.context->ClearSlot(sequence.slot);
  core_.slots.Give(sequence.slot);
  sequences_.erase(found);
  SettleFlight();
  // What it leaves may be borrowed again.
  for (const auto& [other, lender] : sequences_) {
    if (lender->account->ceiling_bytes() >= lender->ceiling_bytes) continue;
    if (!lender->account->SetLimits(lender->floor_bytes, lender->ceiling_bytes)) continue;
    PlanShareOf(*lender, lender->ceiling_bytes);
    if (!lender->HoldScratch()) PlanShareOf(*lender, lender->floor_bytes);
  }
}

}  // namespace pith
