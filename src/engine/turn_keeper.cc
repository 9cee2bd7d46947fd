#include "engine/turn_keeper.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "engine/entry_counts.h"
#include "engine/flight.h"

namespace pith {
namespace {

// Beside the turn's tokens in a second reading: its instruction, and the last pages that its fork copies.
constexpr int kPassOverhead = 4 * kPageEntries;
// Of it, queries that entries which stand in for others are fitted to, at least.
constexpr size_t kReferenceTokens = 32;

}  // namespace

double TurnKeeper::EntriesPerHead(const Sequence& sequence, FrozenTurn turn) const {
  return PerHead(core_, EntriesWithin(core_, sequence, turn.from, turn.to));
}

double TurnKeeper::TurnCap(const Sequence& sequence) const {
  const SequenceSetup& setup = *sequence.setup;
  const double cost = setup.converts_turns()
                          ? TokenBytes(*core_.info, setup.formats.entry) / TokenBytes(*core_.info, setup.turn_format)
                          : 1;
  return setup.recipe.turns.cap * sequence.most_entries() * cost;
}

Status TurnKeeper::EndTurn(Sequence& sequence) {
  const FlightLoan loan(core_.flight);  // for what is to be read again
  for (;;) {
    PITH_ASSIGN_OR_RETURN(const bool is_done, EndTurnOn(sequence));
    if (is_done) return {};
  }
}

Result<bool> TurnKeeper::EndTurnOn(Sequence& sequence) {
  const ResolvedRecipe& recipe = sequence.setup->recipe;
  if (!recipe.has_turns() || !sequence.evicts) return true;
  // One that goes on is of another call's recipe, which has a name, or this one's.
  if (sequence.compression != nullptr && !sequence.compression->recipe.empty()) sequence.EndPieces();
  if (sequence.compression == nullptr) {
    if (recipe.turns.method == TurnMethod::kFlowKv)
      PITH_RETURN_IF_ERROR(BeginTurn(sequence));
    else if (sequence.setup->keep_entries > 0)
      PITH_RETURN_IF_ERROR(BeginBlock(sequence));
  }
  return GoOn(sequence);
}

Result<bool> TurnKeeper::GoOn(Sequence& sequence) {
  if (sequence.compression == nullptr) return true;
  if (const std::optional<TurnPlan> plan = sequence.compression->plan) {
    if (plan->num_dropped > 0) {
      const Result<bool> is_dropped = DropOldestTurnOn(sequence, kEntriesAtOnce);
      if (!is_dropped) sequence.EndPieces();
      if (is_dropped && *is_dropped) --sequence.compression->plan->num_dropped;
      return is_dropped ? Result<bool>(false) : is_dropped;
    }
    if (plan->turn.from >= plan->turn.to) return sequence.EndPieces(), true;
    PITH_RETURN_IF_ERROR(BeginPlanned(sequence, *plan));
  }
  const std::optional<FrozenTurn> turn = sequence.compression->turn;
  PITH_ASSIGN_OR_RETURN(const bool is_done, compressor_.GoOn(sequence));
  if (is_done && turn) {
    sequence.turns.push_back(*turn);
    sequence.turn_start = turn->to;
  }
  return is_done;
}

Status TurnKeeper::Close(Sequence& sequence, Status begun) {
  while (begun) {
    PITH_ASSIGN_OR_RETURN(const bool is_done, GoOn(sequence));
    if (is_done) return {};
  }
  return begun;
}

Status TurnKeeper::SetGuide(Sequence& sequence, std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) {
    if (token < 0 || token >= core_.info->num_vocab) return InvalidArgument(fmt::format("there is no token {}", token));
  }
  sequence.EndPieces();
  sequence.guide.assign(tokens.begin(), tokens.end());
  sequence.repeat.reset();
  return {};
}

std::optional<TurnPlan> TurnKeeper::PlanTurn(const Sequence& sequence) const {
  TurnPlan plan{.turn = {sequence.turn_start, sequence.next_position}};
  FrozenTurn& turn = plan.turn;
  for (const auto& [from, to] : sequence.pinned) {
    if (from <= turn.from && turn.from < to) turn.from = to;
  }
  if (turn.from >= turn.to) return std::nullopt;
  const SequenceSetup& setup = *sequence.setup;
  const TurnOptions& options = setup.recipe.turns;
  const double m = EntriesPerHead(sequence, turn);
  const int whole = static_cast<int>(m + 1e-9), window = QueryWindow(setup.policy());
  double keep = TurnKeep(options, whole, window);
  if (keep < whole && setup.converts_turns()) {
    // A share of bytes, as everywhere where a recipe has a format.
    keep = EntriesInBytes(*core_.info, setup.turn_format, false, m, 1 - options.drop);
  }
  std::vector<double> frozen;
  for (const FrozenTurn& old : sequence.turns) frozen.push_back(EntriesPerHead(sequence, old));
  const CapPlan cap = PlanCap(options, frozen, keep, TurnCap(sequence));
  plan.num_dropped = cap.num_dropped;
  plan.keep = std::min(cap.keep, m);
  plan.drops = plan.keep < m - 1e-9 && !setup.policy().keeps_everything();
  return plan;
}

Status TurnKeeper::BeginTurn(Sequence& sequence) {
  const std::optional<TurnPlan> plan = PlanTurn(sequence);
  if (!plan) return {};
  if (plan->num_dropped == 0) return BeginPlanned(sequence, *plan);
  BeginDropping(sequence, *plan);
  return {};
}

void TurnKeeper::BeginDropping(Sequence& sequence, const TurnPlan& plan) {
  sequence.EndPieces();
  sequence.repeat.reset();
  sequence.compression = std::make_shared<Compression>();
  sequence.compression->plan = plan;
}

Status TurnKeeper::BeginPlanned(Sequence& sequence, const TurnPlan& plan) {
  const SequenceSetup& setup = *sequence.setup;
  if (plan.drops) {
    const EntryGuard part{.num_sinks = setup.recipe.num_sinks, .from = plan.turn.from, .to = plan.turn.to};
    PITH_RETURN_IF_ERROR(compressor_.BeginOwn(sequence, part, plan.keep));
  } else {
    sequence.EndPieces();
    sequence.compression = std::make_shared<Compression>();
    sequence.compression->selects = false;
  }
  if (setup.converts_turns()) sequence.compression->changes.format = setup.turn_format;
  sequence.compression->turn = plan.turn;
  return {};
}

Status TurnKeeper::DropOldestTurn(Sequence& sequence) {
  sequence.EndPieces();
  sequence.repeat.reset();
  const Result<bool> dropped = DropOldestTurnOn(sequence, std::numeric_limits<int64_t>::max());
  return dropped ? Status() : Status(tl::unexpected<Error>(dropped.error()));
}

Result<bool> TurnKeeper::DropOldestTurnOn(Sequence& sequence, int64_t most_entries) {
  const FrozenTurn oldest = sequence.turns.front();
  sequence.exact_from = sequence.next_position;
  FlightLoan loan(core_.flight);
  loan.Lend(sequence);
  std::vector<int32_t> kept, positions;
  int64_t changed = 0;  // entries of heads that are not what they were
  for (int layer = 0; layer < core_.layers.count(); ++layer) {
    if (changed >= most_entries) return false;
    for (HeadCache& head : core_.cache->heads(sequence.cache_id, core_.layers.LayerOf(layer))) {
      positions.resize(static_cast<size_t>(head.num_entries()));
      head.ReadPositions(positions);
      kept.clear();
      for (int32_t i = 0; i < head.num_entries(); ++i) {
        const int32_t position = positions[static_cast<size_t>(i)];
        if (position < oldest.from || position >= oldest.to || sequence.IsPinned(position)) kept.push_back(i);
      }
      if (kept.size() == positions.size()) continue;
      PITH_RETURN_IF_ERROR(head.Keep(kept));
      changed += static_cast<int64_t>(positions.size());
    }
  }
  // Where an error leaves some of it, it is a turn as before, and the next call goes on.
  sequence.turns.erase(sequence.turns.begin());
  return true;
}

// Rows, and what the recipe would read to judge what is there.
bool TurnKeeper::HasRoomForRows(const Sequence& sequence, int num_rows) const {
  const SequenceSetup& setup = *sequence.setup;
  if (const int keep = setup.keep_entries; keep > 0) {  // so many after a block, whatever the bytes would hold
    const int block = setup.recipe.turns.block;
    if (GlobalEntriesOf(core_, sequence) + num_rows * core_.layers.num_heads() >
        (keep + block) * core_.layers.num_heads())
      return false;
  }
  size_t columns = 0;
  int pass = 0;
  if (const RepeatOptions* repeat = setup.policy().repeat(); repeat != nullptr) {
    const int read = sequence.next_position - sequence.turn_start + num_rows;
    pass = kPassOverhead + (repeat->guided ? MostGuideTokens(sequence, *repeat) : std::min(read, repeat->chunk));
    columns =
        static_cast<size_t>(GlobalEntriesOf(core_, sequence) + num_rows * core_.layers.num_heads()) * sizeof(float);
  }
  if (setup.policy().residue() != nullptr) {
    for (const LayerShape& layer : core_.info->layers) {
      const bool global = layer.kind == LayerKind::kGlobal;
      if (global) columns += kReferenceTokens * static_cast<size_t>(layer.num_heads * layer.key_dim) * sizeof(uint16_t);
    }
  }
  const size_t used = sequence.account->used_bytes();
  const size_t most = used + BytesToExtend(core_, sequence, num_rows + pass) + columns;
  const size_t promised = std::max(used, sequence.floor_bytes);
  return most <= sequence.ceiling_bytes && most - std::min(most, promised) <= core_.ledger->uncommitted_bytes();
}

bool TurnKeeper::HasRoomFor(const Sequence& sequence, int num_rows) const {
  return !sequence.setup->recipe.has_turns() || !sequence.evicts || HasRoomForRows(sequence, num_rows);
}

Status TurnKeeper::MakeRoomForRows(Sequence& sequence, int num_rows) {
  const ResolvedRecipe& recipe = sequence.setup->recipe;
  if (HasRoomFor(sequence, num_rows)) return {};
  if (sequence.compression != nullptr) sequence.EndPieces();
  const FlightLoan loan(core_.flight);
  if (recipe.turns.method == TurnMethod::kEpiCache) return Close(sequence, BeginBlock(sequence));
  PITH_RETURN_IF_ERROR(Close(sequence, BeginTurn(sequence)));
  while (!sequence.turns.empty() && !HasRoomForRows(sequence, num_rows)) PITH_RETURN_IF_ERROR(DropOldestTurn(sequence));
  return {};
}

Result<bool> TurnKeeper::MakeRoomOn(Sequence& sequence, int num_rows) {
  const bool is_flowkv = sequence.setup->recipe.turns.method == TurnMethod::kFlowKv;
  // One that goes on is of another call's recipe, which has a name, or this one's.
  if (sequence.compression != nullptr && !sequence.compression->recipe.empty()) sequence.EndPieces();
  const FlightLoan loan(core_.flight);
  if (sequence.compression == nullptr) {
    if (HasRoomFor(sequence, num_rows)) return true;
    PITH_RETURN_IF_ERROR(is_flowkv ? BeginTurn(sequence) : BeginBlock(sequence));
    if (sequence.compression == nullptr) {
      if (!is_flowkv || sequence.turns.empty()) return true;
      BeginDropping(sequence, {.turn = {}, .num_dropped = 1});
    }
  }
  PITH_ASSIGN_OR_RETURN(const bool is_done, GoOn(sequence));
  return is_done && (!is_flowkv || HasRoomFor(sequence, num_rows));  // blocks are chosen once
}

Status TurnKeeper::BeginBlock(Sequence& sequence) {
  const SequenceSetup& setup = *sequence.setup;
  const int64_t entries = GlobalEntriesOf(core_, sequence);
  if (entries == 0) return {};
  int keep = setup.keep_entries;
  if (keep <= 0) {
    const RepeatOptions* const repeat = setup.policy().repeat();
    const int room = sequence.most_entries();
    const int pass = repeat == nullptr ? 0 : kPassOverhead + MostGuideTokens(sequence, *repeat);
    keep = std::max(room - RowsAtOnce(sequence) - pass, room / 4);
  }
  const double mean = PerHead(core_, entries);
  if (keep >= mean) return {};
  sequence.exact_from = sequence.next_position;
  return compressor_.BeginOwn(sequence, {.num_sinks = setup.recipe.num_sinks}, keep);
}

int TurnKeeper::RowsAtOnce(const Sequence& sequence) const {
  const ResolvedRecipe& recipe = sequence.setup->recipe;
  if (!recipe.has_turns() || !sequence.evicts || recipe.policy->repeat() == nullptr) return core_.plan.block_tokens;
  const int most = recipe.turns.method == TurnMethod::kEpiCache ? recipe.turns.block : core_.plan.block_tokens;
  return std::max(1, std::min({core_.plan.block_tokens, most, std::max(sequence.most_entries() / 4, 32)}));
}

Result<std::optional<EntryGuard>> TurnKeeper::PartToRead(Sequence& sequence) {
  const ResolvedRecipe& recipe = sequence.setup->recipe;
  if (!recipe.has_turns()) return EntryGuard();
  if (recipe.policy->repeat() == nullptr) return std::nullopt;  // so that turns go by pieces
  // A turn that is being ended was read, and has fewer entries by now.
  if (sequence.compression != nullptr && sequence.compression->recipe.empty()) return std::nullopt;
  const std::optional<TurnPlan> plan = PlanTurn(sequence);
  if (!plan || !plan->drops || recipe.turns.method != TurnMethod::kFlowKv) return std::nullopt;
  for (int i = 0; i < plan->num_dropped; ++i) PITH_RETURN_IF_ERROR(DropOldestTurn(sequence));
  return EntryGuard{.from = plan->turn.from, .to = plan->turn.to};
}

}  // namespace pith
