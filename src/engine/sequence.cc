#include "engine/sequence.h"

#include <fmt/format.h>

#include <utility>

#include "host/halves.h"

namespace pith {
namespace {

// The place of a recipe's columns, and what it wants noted.
void AddRecipe(const ResolvedRecipe& recipe, bool rereads_blocks, SequenceSetup& setup) {
  const uint32_t needs = recipe.policy->needs();
  const int first = setup.num_columns;
  for (const ColumnSpec& column : PageColumns(*recipe.policy, rereads_blocks)) {
    if (column.initial != 0) setup.column_initials.emplace_back(setup.num_columns, column.initial);
    ++setup.num_columns;
  }
  setup.active.push_back({.recipe = recipe,
                          .first_column = first,
                          .num_columns = static_cast<int>(recipe.policy->columns().size()),
                          .norm_column = (needs & kNeedValueNorms) != 0 ? setup.num_columns - 1 : -1});
  if (needs & kNeedEveryQuery)
    setup.observed_needs |= needs & (kNeedEveryQuery | kNeedSquares | kNeedLargest | kNeedRows);
  setup.counts_moments = setup.counts_moments || (needs & kNeedQueryMoments) != 0;
  setup.reads_again = setup.reads_again || recipe.policy->repeat() != nullptr;
}

}  // namespace

Result<std::shared_ptr<const SequenceSetup>> SequenceSetup::Make(const ModelInfo& info, const EngineOptions& options) {
  auto setup = std::make_shared<SequenceSetup>();
  PITH_ASSIGN_OR_RETURN(static_cast<ResolvedSequence&>(*setup), Resolve(info, options));
  AddRecipe(setup->recipe, setup->rereads_blocks(), *setup);
  for (const ResolvedRecipe& later : setup->later_recipes) AddRecipe(later, false, *setup);
  setup->flight = FlightOf(info, *setup);
  setup->ring_window = RingWindow(*setup);
  return std::shared_ptr<const SequenceSetup>(std::move(setup));
}

const ActiveRecipe* SequenceSetup::Find(const ResolvedRecipe& wanted) const {
  const auto found = std::ranges::find(active, wanted.text, [](const ActiveRecipe& one) { return one.recipe.text; });
  return found != active.end() ? &*found : nullptr;
}

void Sequence::ReadQueries(int global_layer, int count, size_t width, float* rows) const {
  for (int32_t position = next_position - count; position < next_position; ++position, rows += width) {
    ToFloats(queries.row(global_layer, position), width, rows);
  }
}

void Sequence::EndAt(int32_t position, int64_t num_global_heads) {
  next_position = position;
  entries_seen = position * num_global_heads;
  while (!turns.empty() && turns.back().to > position) turns.pop_back();
  turn_start = turns.empty() ? 0 : turns.back().to;
  if (position == 0) exact_from = 0;
  while (!pinned.empty() && pinned.back().first >= position) pinned.pop_back();
  if (!pinned.empty()) pinned.back().second = std::min(pinned.back().second, position);
  if (tokens.size() > static_cast<size_t>(position)) tokens.resize(static_cast<size_t>(position));
  repeat.reset();
  logits_row = -1;
  kept_logits.clear();
  logit_bytes = HeldBytes();
}

void Sequence::CopyHistory(const Sequence& from) {
  next_position = from.next_position;
  entries_seen = from.entries_seen;
  evicts = from.evicts;
  prompt_continues = from.prompt_continues;
  pinned = from.pinned;
  queries = from.queries;
  queries_from = from.queries_from;
  turns = from.turns;
  turn_start = from.turn_start;
  exact_from = from.exact_from;
  guide = from.guide;
  moments = from.moments;
  merge_thresholds = from.merge_thresholds;
  tokens.assign(from.tokens.begin(), from.tokens.end());
  repeat = from.repeat;
}

Error BudgetFull(const Sequence& sequence, size_t limit_bytes) {
  Error full{ErrorCode::kOutOfBudget,
             fmt::format("the KV budget of {:.2f} MiB is full at {} tokens",
                         static_cast<double>(limit_bytes) / (1 << 20), sequence.next_position)};
  const bool drops = sequence.setup->style.evicts || sequence.setup->recipe.has_turns();
  if (!drops) full.message += ", and nothing may be dropped";
  return full;
}

Status CheckRoom(const Sequence& sequence, size_t num_tokens) {
  const auto num_ctx = static_cast<size_t>(sequence.setup->num_ctx);
  const size_t end = static_cast<size_t>(sequence.next_position) + num_tokens;
  if (end <= num_ctx) return {};
  return InvalidArgument(fmt::format("{} tokens do not fit into a context of {}: raise it with -c", end, num_ctx));
}

Status CheckPinned(const Sequence& sequence, int64_t more) {
  const int64_t pinned = sequence.num_pinned() + more;
  if (!sequence.setup->style.evicts || pinned <= sequence.share.keep_entries) return {};
  return OutOfBudget(fmt::format("the KV budget holds {} entries per head, fewer than the {} pinned tokens",
                                 sequence.share.keep_entries, pinned));
}

}  // namespace pith
