#include "engine/block_rereader.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/demotion.h"
#include "engine/entry_counts.h"

namespace pith {
namespace {

// What was read is repeated when so many tokens wait for it, if there is room for as many.
constexpr int kLeastRows = 32;

float* ColumnAt(HeadCache& head, int column, int entry) {
  return head.layout_of(entry).column(head.page_of(entry), column) + entry % kPageEntries;
}

}  // namespace

int32_t FirstNotRepeated(const EngineCore& core, const Sequence& sequence) {
  const int column = sequence.setup->active.front().first_column;
  int32_t first = sequence.next_position;
  for (const int layer : core.layers.layers()) {
    for (HeadCache& head : core.cache->heads(sequence.cache_id, layer)) {
      for (int i = head.num_entries() - 1; i >= 0 && *ColumnAt(head, column, i) >= kNotRepeated; --i) {
        first = std::min(first, PositionOf(head, i));
      }
    }
  }
  return first;
}

int BlockRereader::RowsAtOnce(const Sequence& sequence) const {
  const RepeatOptions& repeat = *sequence.setup->policy().repeat();
  // What is echoed needs no pass of its own.
  const int most =
      repeat.by_echo ? core_.plan.block_tokens : reader_.BlockChunk(repeat).value_or(core_.plan.block_tokens);
  // A number of entries that was asked for says nothing of the room for others.
  if (sequence.setup->keep_entries > 0) return most;
  return std::clamp(sequence.most_entries() / 4, std::min(kLeastRows, most), most);
}

int BlockRereader::Room(const Sequence& sequence) const {
  const int keep = sequence.setup->keep_entries;
  return keep > 0 ? keep + RowsAtOnce(sequence) : sequence.most_entries();
}

Status BlockRereader::MakeRoomForRows(Sequence& sequence, int num_rows) {
  if (!sequence.evicts_while_running()) return {};
  const int64_t heads = core_.layers.num_heads(), entries = GlobalEntriesOf(core_, sequence);
  const int room = Room(sequence);
  if (entries + num_rows * heads <= room * heads) return {};
  const int keep = std::min(KeepOf(sequence, PerHead(core_, entries)), room - num_rows);
  if (keep < kPageEntries) {
    return OutOfBudget(fmt::format("the KV budget holds {} entries per head, which leaves too few beside {} new ones",
                                   room, num_rows));
  }
  return Evict(sequence, keep, {});
}

Status BlockRereader::MakeRoomBehind(Sequence& sequence, ReferenceQueries echoed) {
  if (echoed.num_rows() < kLeastRows || !sequence.evicts_while_running()) return {};
  const int64_t heads = core_.layers.num_heads(), entries = GlobalEntriesOf(core_, sequence);
  const int room = Room(sequence), rows = RowsAtOnce(sequence);
  if (entries + rows * heads <= room * heads) return {};
  const int keep = std::min(KeepOf(sequence, PerHead(core_, entries)), room - rows);
  return keep < kPageEntries ? Status() : Evict(sequence, keep, std::move(echoed));
}

Status BlockRereader::Settle(Sequence& sequence, ReferenceQueries echoed) {
  if (!sequence.evicts_while_running()) return {};
  const int64_t heads = core_.layers.num_heads(), entries = GlobalEntriesOf(core_, sequence);
  if (entries <= KeepOf(sequence, PerHead(core_, entries)) * heads) return {};
  return Evict(sequence, std::nullopt, std::move(echoed));
}

Status BlockRereader::Evict(Sequence& sequence, std::optional<int> keep, ReferenceQueries echoed) {
  ActiveRecipe active = sequence.setup->active.front();
  if (const Status status = Repeat(sequence); !status) {
    const ErrorCode code = status.error().code;
    if (code != ErrorCode::kOutOfBudget && code != ErrorCode::kUnsupported) return status;
    active.recipe.policy = active.recipe.in_little_room;
    active.num_columns = 0;
  }
  if (sequence.repeat == nullptr && echoed.num_rows() >= kLeastRows && active.recipe.policy->residue() != nullptr) {
    PITH_ASSIGN_OR_RETURN(sequence.repeat,
                          RepeatColumns::Create(sequence.account, *active.recipe.policy, 0, {0, 0}, {}));
    sequence.repeat->references = std::move(echoed);
  }
  const int64_t heads = core_.layers.num_heads(), entries = GlobalEntriesOf(core_, sequence);
  // Heads that all hold the same number cannot be fitted to pages.
  const bool fits = !keep && active.recipe.policy->ragged();
  Budget budget = keep   ? Budget{.keep = *keep, .keep_fraction = std::min(1.0, *keep / PerHead(core_, entries))}
                  : fits ? SettledBudget(core_, sequence, entries, heads)
                         : BlockBudget(sequence, entries, heads);
  if (sequence.repeat == nullptr || sequence.repeat->references.num_rows() == 0) budget.stand_ins = Budget::kNoStandIns;
  const Clock::time_point start = Clock::now();
  FlightLoan loan(core_.flight);
  loan.Lend(sequence);
  const Shrink shrink{.sequence = &sequence, .budget = budget, .format = sequence.setup->formats.converted};
  Status result = shrinker_.Run(sequence, active, {.num_sinks = active.recipe.num_running_sinks}, {&shrink, 1});
  sequence.repeat.reset();  // of entries that may be gone
  if (result && sequence.setup->formats.converted) result = DemoteAll(core_, sequence);
  core_.times.policy += SecondsSince(start);
  return result;
}

Status BlockRereader::Repeat(Sequence& sequence) {
  const int32_t from = FirstNotRepeated(core_, sequence);
  if (from >= sequence.next_position) return {};
  const size_t ceiling = sequence.ceiling_bytes;
  // Nobody takes anything from it meanwhile; it has what a step's rows would have.
  sequence.evicts = false;
  core_.flight.LetGo();
  sequence.ceiling_bytes = ceiling + core_.flight.bytes();
  (void)sequence.account->SetLimits(sequence.floor_bytes, sequence.ceiling_bytes);
  Status status = reader_.ReadBlock(sequence, from);
  const bool judged = status || status.error().code != ErrorCode::kCancelled;
  if (judged) Note(sequence, from);
  if (sequence.repeat != nullptr) sequence.repeat->ForgetColumns();
  sequence.ceiling_bytes = ceiling;
  sequence.evicts = true;
  (void)sequence.account->SetLimits(sequence.floor_bytes, ceiling);
  (void)core_.flight.HoldAgain();
  return status;
}

void BlockRereader::Note(Sequence& sequence, int32_t from) {
  const ActiveRecipe& active = sequence.setup->active.front();
  for (int global = 0; global < core_.layers.count(); ++global) {
    const std::span<HeadCache> heads = core_.cache->heads(sequence.cache_id, core_.layers.LayerOf(global));
    for (size_t h = 0; h < heads.size(); ++h) {
      HeadCache& head = heads[h];
      for (int i = EntriesBefore(head, from); i < head.num_entries(); ++i) {
        // A page that is shared and cannot be copied: its entries are repeated once more.
        if (!head.MakeWritable(i)) continue;
        for (int c = 0; c < active.num_columns; ++c) {
          *ColumnAt(head, active.first_column + c, i) =
              sequence.repeat == nullptr ? 0 : *sequence.repeat->ColumnFrom(global, static_cast<int>(h), c, i);
        }
      }
    }
  }
}

}  // namespace pith
