// What a recipe does between the turns of a conversation (policy/turns/turns.h).
//
// flowkv, entries of one head by position:
//
//   [ pinned | turn 1, frozen | turn 2, frozen | ... | the running turn, whole, f16 ]
//                                                    turn_start            next_position
//
// EndTurn() compresses the running turn among its own entries and freezes it. Where rows would find no room, it is
// closed early, and then the oldest turns go. epicache: where rows would find no room, all entries are judged by the
// guide, and what goes makes room for a block.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "engine/engine_impl.h"

namespace pith {
namespace {

// Beside the turn's tokens in a second reading: its instruction, and the last pages that its fork copies.
constexpr int kPassOverhead = 4 * kPageEntries;
// Of it, queries that entries which stand in for others are fitted to, at least.
constexpr size_t kReferenceTokens = 32;

int WindowOf(const Policy& policy) {
  return (policy.needs() & (kNeedWindowProbs | kNeedWindowQueries)) != 0 ? policy.window() : 0;
}

}  // namespace

double EngineImpl::EntriesPerHead(const Sequence& sequence, FrozenTurn turn) const {
  return static_cast<double>(EntriesWithin(sequence, turn.from, turn.to)) /
         static_cast<double>(std::max<int64_t>(num_global_heads_, 1));
}

double EngineImpl::TurnCap(const Sequence& sequence) const {
  const SequenceSetup& setup = *sequence.setup;
  const double cost = setup.converts_turns() ? TokenBytes(model_->info(), setup.formats.entry) /
                                                   TokenBytes(model_->info(), setup.turn_format)
                                             : 1;
  return setup.recipe.turns.cap * sequence.most_entries() * cost;
}

Status EngineImpl::EndTurn(SequenceId id) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, Find(id));
  const ResolvedRecipe& recipe = sequence->setup->recipe;
  if (!recipe.has_turns() || !sequence->evicts) return {};
  if (recipe.turns.method == TurnMethod::kFlowKv) return CloseTurn(*sequence);
  return sequence->setup->keep_entries > 0 ? CompressToBlock(*sequence) : Status();
}

Status EngineImpl::SetGuide(SequenceId id, std::span<const int32_t> tokens) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, Find(id));
  for (const int32_t token : tokens) {
    if (token < 0 || token >= model_->info().num_vocab)
      return InvalidArgument(fmt::format("there is no token {}", token));
  }
  EndReading(*sequence);
  sequence->guide.assign(tokens.begin(), tokens.end());
  sequence->repeat.reset();
  return {};
}

std::optional<EngineImpl::TurnPlan> EngineImpl::PlanTurn(const Sequence& sequence) const {
  TurnPlan plan{.turn = {sequence.turn_start, sequence.next_position}};
  FrozenTurn& turn = plan.turn;
  for (const auto& [from, to] : sequence.pinned) {
    if (from <= turn.from && turn.from < to) turn.from = to;
  }
  if (turn.from >= turn.to) return std::nullopt;
  const SequenceSetup& setup = *sequence.setup;
  const TurnOptions& options = setup.recipe.turns;
  const double m = EntriesPerHead(sequence, turn);
  const int whole = static_cast<int>(m + 1e-9), window = WindowOf(setup.policy());
  double keep = TurnKeep(options, whole, window);
  if (keep < whole && setup.converts_turns()) {
    // A share of bytes, as everywhere where a recipe has a format.
    keep = EntriesInBytes(model_->info(), setup.turn_format, false, m, 1 - options.drop);
  }
  std::vector<double> frozen;
  for (const FrozenTurn& old : sequence.turns) frozen.push_back(EntriesPerHead(sequence, old));
  const CapPlan cap = PlanCap(options, frozen, keep, TurnCap(sequence));
  plan.num_dropped = cap.num_dropped;
  plan.keep = std::min(cap.keep, m);
  plan.drops = plan.keep < m - 1e-9 && !setup.policy().keeps_everything();
  return plan;
}

Status EngineImpl::CloseTurn(Sequence& sequence) {
  const std::optional<TurnPlan> plan = PlanTurn(sequence);
  if (!plan) return {};
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < plan->num_dropped; ++i) PITH_RETURN_IF_ERROR(DropOldestTurn(sequence));
  PITH_RETURN_IF_ERROR(CompressTurn(sequence, *plan));
  sequence.turns.push_back(plan->turn);
  sequence.turn_start = plan->turn.to;
  times_.policy += SecondsSince(start);
  return {};
}

Status EngineImpl::CompressTurn(Sequence& sequence, const TurnPlan& plan) {
  if (plan.drops) {
    const EntryGuard part{
        .num_sinks = sequence.setup->recipe.num_sinks, .from = plan.turn.from, .to = plan.turn.to};
    PITH_RETURN_IF_ERROR(ShrinkOrDrop(sequence, part, plan.keep));
  }
  if (!sequence.setup->converts_turns()) return {};
  const PageFormat format = sequence.setup->turn_format;
  FlightLoan loan(*flight_, flight_bytes_);
  loan.Lend(sequence);
  if (!(cache_->layout(sequence.cache_id).low == format))
    PITH_RETURN_IF_ERROR(cache_->SetLow(sequence.cache_id, format));
  return DemoteAll(sequence);
}

Status EngineImpl::DropOldestTurn(Sequence& sequence) {
  const FrozenTurn oldest = sequence.turns.front();
  sequence.turns.erase(sequence.turns.begin());
  EndReading(sequence);
  sequence.repeat.reset();
  sequence.exact_from = sequence.next_position;
  FlightLoan loan(*flight_, flight_bytes_);
  loan.Lend(sequence);
  std::vector<int32_t> kept, positions;
  for (int layer = 0; layer < num_global_layers_; ++layer) {
    for (HeadCache& head : cache_->heads(sequence.cache_id, LayerOf(layer))) {
      positions.resize(static_cast<size_t>(head.num_entries()));
      head.ReadPositions(positions);
      kept.clear();
      for (int32_t i = 0; i < head.num_entries(); ++i) {
        const int32_t position = positions[static_cast<size_t>(i)];
        if (position < oldest.from || position >= oldest.to || sequence.IsPinned(position)) kept.push_back(i);
      }
      PITH_RETURN_IF_ERROR(head.Keep(kept));
    }
  }
  return {};
}

// Rows, and what the recipe would read to judge what is there.
bool EngineImpl::HasRoomForRows(const Sequence& sequence, int num_rows) const {
  const SequenceSetup& setup = *sequence.setup;
  if (const int keep = setup.keep_entries; keep > 0) {  // so many after a block, whatever the bytes would hold
    const int block = setup.recipe.turns.block;
    if (GlobalEntriesOf(sequence) + num_rows * num_global_heads_ > (keep + block) * num_global_heads_) return false;
  }
  size_t columns = 0;
  int pass = 0;
  if (const RepeatOptions* repeat = setup.policy().repeat(); repeat != nullptr) {
    const int read = sequence.next_position - sequence.turn_start + num_rows;
    pass = kPassOverhead + (repeat->guided ? MostGuideTokens(sequence, *repeat) : std::min(read, repeat->chunk));
    columns = static_cast<size_t>(GlobalEntriesOf(sequence) + num_rows * num_global_heads_) * sizeof(float);
  }
  if (setup.policy().residue() != nullptr) {
    for (const LayerShape& layer : model_->info().layers) {
      const bool global = layer.kind == LayerKind::kGlobal;
      if (global) columns += kReferenceTokens * static_cast<size_t>(layer.num_heads * layer.key_dim) * sizeof(uint16_t);
    }
  }
  const size_t used = sequence.account->used_bytes();
  const size_t most = used + BytesToExtend(sequence, num_rows + pass) + columns;
  const size_t promised = std::max(used, sequence.floor_bytes);
  return most <= sequence.ceiling_bytes && most - std::min(most, promised) <= ledger_->uncommitted_bytes();
}

Status EngineImpl::MakeRoomForRows(Sequence& sequence, int num_rows) {
  const ResolvedRecipe& recipe = sequence.setup->recipe;
  if (!recipe.has_turns() || !sequence.evicts || HasRoomForRows(sequence, num_rows)) return {};
  if (recipe.turns.method == TurnMethod::kEpiCache) return CompressToBlock(sequence);
  PITH_RETURN_IF_ERROR(CloseTurn(sequence));
  while (!sequence.turns.empty() && !HasRoomForRows(sequence, num_rows)) PITH_RETURN_IF_ERROR(DropOldestTurn(sequence));
  return {};
}

Status EngineImpl::CompressToBlock(Sequence& sequence) {
  const SequenceSetup& setup = *sequence.setup;
  const int64_t entries = GlobalEntriesOf(sequence);
  if (entries == 0) return {};
  int keep = setup.keep_entries;
  if (keep <= 0) {
    const RepeatOptions* const repeat = setup.policy().repeat();
    const int room = sequence.most_entries();
    const int pass = repeat == nullptr ? 0 : kPassOverhead + MostGuideTokens(sequence, *repeat);
    keep = std::max(room - RowsAtOnce(sequence) - pass, room / 4);
  }
  const double mean = static_cast<double>(entries) / static_cast<double>(num_global_heads_);
  if (keep >= mean) return {};
  sequence.exact_from = sequence.next_position;
  return ShrinkOrDrop(sequence, {.num_sinks = setup.recipe.num_sinks}, keep);
}

// By the recipe, or where it has no room to read again, by what needs less.
Status EngineImpl::ShrinkOrDrop(Sequence& sequence, const EntryGuard& part, double keep) {
  ResolvedRecipe recipe = sequence.setup->recipe;
  const Result<ActiveRecipe> active = ActiveFor(sequence, recipe);
  Status status = active ? ShrinkPart(sequence, *active, part, keep) : Status(tl::unexpected<Error>(active.error()));
  if (status || recipe.in_little_room == recipe.policy) return status;
  if (status.error().code != ErrorCode::kOutOfBudget && status.error().code != ErrorCode::kUnsupported) return status;
  recipe.policy = recipe.in_little_room;
  return ShrinkPart(sequence, ActiveRecipe{.recipe = std::move(recipe)}, part, keep);
}

// Of a guide, which takes a quarter of the room at most.
int EngineImpl::MostGuideTokens(const Sequence& sequence, const RepeatOptions& repeat) {
  const int tokens = sequence.guide.empty() ? repeat.chunk : static_cast<int>(sequence.guide.size());
  const int room = sequence.setup->keep_entries > 0 ? tokens : sequence.most_entries() / 4;
  return std::min(tokens, std::max(room, 16));
}

// Rows between two looks at the room that is left.
int EngineImpl::RowsAtOnce(const Sequence& sequence) const {
  const ResolvedRecipe& recipe = sequence.setup->recipe;
  if (!recipe.has_turns() || !sequence.evicts || recipe.policy->repeat() == nullptr) return plan_.block_tokens;
  const int most = recipe.turns.method == TurnMethod::kEpiCache ? recipe.turns.block : plan_.block_tokens;
  return std::max(1, std::min({plan_.block_tokens, most, std::max(sequence.most_entries() / 4, 32)}));
}

std::vector<float> EngineImpl::Keys(SequenceId id, int global_layer, int kv_head, int32_t from, int32_t to) const {
  const Sequence* const sequence = Lookup(id);
  if (sequence == nullptr || global_layer < 0 || global_layer >= num_global_layers_) return {};
  const std::span<const HeadCache> heads = std::as_const(*cache_).heads(sequence->cache_id, LayerOf(global_layer));
  if (kv_head < 0 || kv_head >= static_cast<int>(heads.size())) return {};
  const HeadCache& head = heads[static_cast<size_t>(kv_head)];
  const auto dim = static_cast<size_t>(head.layout().key_dim);
  std::vector<float> keys(static_cast<size_t>(head.num_entries()) * dim);
  head.ReadKeys(keys.data());
  const auto first = static_cast<size_t>(EntriesBefore(head, from)),
             last = static_cast<size_t>(EntriesBefore(head, to));
  return {keys.begin() + static_cast<std::ptrdiff_t>(first * dim),
          keys.begin() + static_cast<std::ptrdiff_t>(std::max(first, last) * dim)};
}

}  // namespace pith
