// Going back: a sequence drops the last tokens that it has read, where that leaves it as if it had never read them.
//
// What stands in the way depends on what it has: entries that were dropped, merged or converted since; statistics to
// which later queries have added; queries that later ones have overwritten; pages of sliding windows that are gone; a
// recurrent state, which has moved on.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/engine_impl.h"

namespace pith {
namespace {

constexpr int kP = kPageEntries;

// The first entries whose positions are 0, 1, ...
int ContiguousEntries(const HeadCache& head) {
  int begin = 0, end = head.num_entries();
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    PositionOf(head, middle) == middle ? begin = middle + 1 : end = middle;
  }
  return begin;
}

}  // namespace

int EntriesBefore(const HeadCache& head, int32_t position) {
  int begin = 0, end = head.num_entries();
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    PositionOf(head, middle) < position ? begin = middle + 1 : end = middle;
  }
  return begin;
}

void EngineImpl::LimitByRecipe(const Sequence& sequence, RewindRange& range) const {
  const SequenceSetup& setup = *sequence.setup;
  const auto nothing = [&range](const char* reason) {
    if (range.most > 0) range.most = 0, range.reason = reason;
  };
  if (model_->info().hybrid) nothing("the model's recurrent state has moved on");
  if (setup.observed_needs != 0 || setup.counts_moments) nothing("its recipe's statistics count all that was read");
  if (sequence.pruner != nullptr) nothing("its recipe reads the end of a prompt in another way than what goes before");
  if (std::ranges::any_of(sequence.merge_thresholds, [](double threshold) { return !std::isnan(threshold); })) {
    nothing("its recipe has merged entries");
  }
  const SequenceLayout& layout = cache_->layout(sequence.cache_id);
  if (layout.pruned.share > 0) nothing("its keys have lost channels");
  if (!(layout.full() == setup.formats.full())) {
    nothing("its entries were converted");
  }
  if (layout.lower != setup.formats.lower) nothing("its entries were converted");
  // Without an eviction before the window is full again, nobody asks for what was overwritten.
  const int window = setup.ring_window;
  if (sequence.next_position <= window || !sequence.evicts_while_running()) return;
  const int before_eviction = std::max(sequence.most_entries() - window, 0);
  if (before_eviction < range.most) range.most = before_eviction, range.reason = "its recipe wants the queries before";
}

void EngineImpl::LimitByHeads(const Sequence& sequence, RewindRange& range) const {
  for (size_t layer = 0; layer < cache_->layers().size(); ++layer) {
    if (cache_->layers()[layer].num_kv_heads == 0) continue;
    for (const HeadCache& head : std::as_const(*cache_).heads(sequence.cache_id, static_cast<int>(layer))) {
      if (head.state().num_entries() > 0 && range.most > 0) {
        range.most = 0, range.reason = "its recipe's states know of entries that are gone";
        continue;
      }
      if (head.num_lower_entries() > 0 && range.most > 0) {
        range.most = 0, range.reason = "its recipe has stored entries by what they are worth";
        continue;
      }
      const int first = head.num_entries() > 0 ? PositionOf(head, 0) : 0;
      if (global_index_[layer] < 0) {
        if (first > 0) range.least = std::max(range.least, first + model_->info().window - 1);
        range.whole_pages = std::max(range.whole_pages, first + head.num_low_entries());
        continue;
      }
      int all = ContiguousEntries(head);
      if (all == sequence.next_position) {
        range.whole_pages = std::max(range.whole_pages, head.num_low_entries());
        continue;
      }
      // A page of few bits that lost entries was made anew from what is left.
      if (head.num_low_entries() > 0) all = all / kP * kP;
      if (all < range.most) range.most = all, range.reason = "its recipe has dropped entries";
    }
  }
}

// With turns=: within the running turn nothing was dropped yet, and a turn that is over left what it would leave again.
// Where the entries before num_tokens are those that they would be had the sequence read no more.
bool EngineImpl::IsTurnEnd(const Sequence& sequence, int num_tokens) const {
  if (num_tokens < sequence.exact_from || model_->info().hybrid) return false;
  if (sequence.setup->observed_needs != 0 || sequence.setup->counts_moments) return false;
  if (num_tokens >= sequence.turn_start) return true;
  if (std::ranges::none_of(sequence.turns, [&](const FrozenTurn& turn) { return turn.to == num_tokens; })) return false;
  for (int layer = 0; layer < num_global_layers_; ++layer) {
    for (const HeadCache& head : std::as_const(*cache_).heads(sequence.cache_id, LayerOf(layer))) {
      const int entries = EntriesBefore(head, num_tokens);
      if (entries < head.num_low_entries() && entries % kP != 0) return false;
    }
  }
  return true;
}

// The most of num_tokens tokens that can stay.
int EngineImpl::TurnTarget(const Sequence& sequence, int num_tokens) const {
  int target = num_tokens;
  const int window = sequence.setup->ring_window;
  if (num_tokens > sequence.turn_start && sequence.next_position > window) {
    target = std::max(sequence.turn_start, num_tokens - window);
  }
  for (size_t i = sequence.turns.size(); !IsTurnEnd(sequence, target); --i) {
    if (i == 0) return 0;
    target = std::min(target, sequence.turns[i - 1].to);
  }
  return target;
}

EngineImpl::RewindRange EngineImpl::RangeOf(const Sequence& sequence) const {
  RewindRange range{.most = sequence.next_position};
  LimitByRecipe(sequence, range);
  if (range.most > 0) LimitByHeads(sequence, range);
  return range;
}

int EngineImpl::RewindTarget(SequenceId id, int num_tokens) const {
  const Result<Sequence*> found = Find(id);
  if (!found || num_tokens <= 0) return 0;
  const Sequence& sequence = **found;
  if (num_tokens >= sequence.next_position) return sequence.next_position;
  if (sequence.setup->recipe.has_turns()) return TurnTarget(sequence, num_tokens);
  // What was overwritten is read again.
  const int window = sequence.setup->ring_window;
  int target = sequence.next_position > window ? num_tokens - window : num_tokens;
  const RewindRange range = RangeOf(sequence);
  target = std::min(target, range.most);
  if (target < range.whole_pages) target = target / kP * kP;
  return target < range.least ? 0 : std::max(target, 0);
}

Status EngineImpl::Rewind(SequenceId id, int num_tokens) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, Find(id));
  if (num_tokens < 0 || num_tokens > sequence->next_position) {
    return InvalidArgument(fmt::format("the sequence has read {} tokens, and cannot go back to {}",
                                       sequence->next_position, num_tokens));
  }
  if (num_tokens == sequence->next_position) return {};
  EndReading(*sequence);
  if (num_tokens == 0) return Empty(*sequence);
  const bool turns = sequence->setup->recipe.has_turns();
  const RewindRange range = turns ? RewindRange{.most = num_tokens} : RangeOf(*sequence);
  const auto refused = [&](const char* reason) {
    return Unsupported(fmt::format("the sequence cannot go back from {} tokens to {}: {}", sequence->next_position,
                                   num_tokens, reason));
  };
  if (turns && !IsTurnEnd(*sequence, num_tokens)) return refused("it is not at the end of a turn that left it so");
  if (num_tokens > range.most) return refused(range.reason);
  if (num_tokens < range.least) return refused("the entries of its sliding windows are gone");
  if (num_tokens < range.whole_pages && num_tokens % kP != 0) return refused("pages of few bits are kept whole");
  for (size_t layer = 0; layer < cache_->layers().size(); ++layer) {
    if (cache_->layers()[layer].num_kv_heads == 0) continue;
    for (HeadCache& head : cache_->heads(sequence->cache_id, static_cast<int>(layer))) {
      PITH_RETURN_IF_ERROR(head.Truncate(EntriesBefore(head, num_tokens)));
    }
  }
  sequence->ForgetQueriesOf(sequence->next_position - num_tokens);
  sequence->EndAt(num_tokens, num_global_heads_);
  return {};
}

Status EngineImpl::Empty(Sequence& sequence) {
  const SequenceSetup& setup = *sequence.setup;
  for (size_t layer = 0; layer < cache_->layers().size(); ++layer) {
    if (cache_->layers()[layer].num_kv_heads == 0) continue;
    for (HeadCache& head : cache_->heads(sequence.cache_id, static_cast<int>(layer))) head.Clear();
  }
  PITH_RETURN_IF_ERROR(cache_->SetLow(sequence.cache_id, setup.formats.full()));
  PITH_RETURN_IF_ERROR(cache_->SetLower(sequence.cache_id, setup.formats.lower));
  context_->ClearSlot(sequence.slot);
  std::ranges::fill(sequence.moments.data(), 0.0F);
  std::ranges::fill(sequence.merge_thresholds, std::nan(""));
  if (sequence.pruner != nullptr) sequence.pruner = std::make_unique<PrefillPruner>(setup.recipe.prefill);
  sequence.queries_from = 0;
  sequence.EndAt(0, num_global_heads_);
  return {};
}

}  // namespace pith
