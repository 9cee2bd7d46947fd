#include "engine/rewind.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "cache/page_entries.h"
#include "engine/block_rereader.h"
#include "engine/entry_counts.h"

namespace pith {
namespace {

// The first entries whose positions are 0, 1, ...
int ContiguousEntries(const HeadCache& head) {
  int begin = 0, end = head.num_entries();
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    PositionOf(head, middle) == middle ? begin = middle + 1 : end = middle;
  }
  return begin;
}

// From the whole sequence to [least, most] of its tokens, or less exactly where pages of few bits begin.
struct RewindRange {
  int least = 0;
  int most = 0;
  int whole_pages = 0;      // below this, only multiples of a page's entries
  const char* reason = "";  // of `most`, a part of a sentence
  const char* least_reason = "the entries of its sliding windows are gone";
};

void LimitByRecipe(const EngineCore& core, const Sequence& sequence, RewindRange& range) {
  const SequenceSetup& setup = *sequence.setup;
  const auto nothing = [&range](const char* reason) {
    if (range.most > 0) range.most = 0, range.reason = reason;
  };
  if (core.info->hybrid) nothing("the model's recurrent state has moved on");
  if (setup.observed_needs != 0 || setup.counts_moments) nothing("its recipe's statistics count all that was read");
  if (sequence.pruner != nullptr) nothing("its recipe reads the end of a prompt in another way than what goes before");
  if (std::ranges::any_of(sequence.merge_thresholds, [](double threshold) { return !std::isnan(threshold); })) {
    nothing("its recipe has merged entries");
  }
  // Those of act=residue and act=match, which judge by a second reading, are what others left, wherever they stand.
  if (setup.reads_again && GlobalEntriesOf(core, sequence) < sequence.entries_seen) {
    nothing("its entries may stand in for others that its recipe has dropped");
  }
  const SequenceLayout& layout = core.cache->layout(sequence.cache_id);
  if (layout.pruned.share > 0) nothing("its keys have lost channels");
  if (!(layout.full() == setup.formats.full())) {
    nothing("its entries were converted");
  }
  if (layout.lower != setup.formats.chosen) nothing("its entries were converted");
  if (setup.rereads_blocks()) {
    range.least = std::max(range.least, FirstNotRepeated(core, sequence));
    range.least_reason = "its recipe has judged entries by what came after";
  }
  // Without an eviction before the window is full again, nobody asks for what was overwritten.
  const int window = setup.ring_window;
  if (sequence.next_position <= window || !sequence.evicts_while_running()) return;
  const int before_eviction = std::max(sequence.most_entries() - window, 0);
  if (before_eviction < range.most) range.most = before_eviction, range.reason = "its recipe wants the queries before";
}

void LimitByHeads(const EngineCore& core, const Sequence& sequence, RewindRange& range) {
  for (size_t layer = 0; layer < core.cache->layers().size(); ++layer) {
    for (const HeadCache& head : std::as_const(*core.cache).heads(sequence.cache_id, static_cast<int>(layer))) {
      if (head.state().num_entries() > 0 && range.most > 0) {
        range.most = 0, range.reason = "its recipe's states know of entries that are gone";
        continue;
      }
      if (head.num_lower_entries() > 0 && range.most > 0) {
        range.most = 0, range.reason = "its recipe has stored entries by what they are worth";
        continue;
      }
      const int first = head.num_entries() > 0 ? PositionOf(head, 0) : 0;
      if (core.layers.IndexOf(static_cast<int>(layer)) < 0) {
        if (first > 0) range.least = std::max(range.least, first + core.info->window - 1);
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
bool IsTurnEnd(const EngineCore& core, const Sequence& sequence, int num_tokens) {
  if (num_tokens < sequence.exact_from || core.info->hybrid) return false;
  if (sequence.setup->observed_needs != 0 || sequence.setup->counts_moments) return false;
  if (num_tokens >= sequence.turn_start) return true;
  if (std::ranges::none_of(sequence.turns, [&](const FrozenTurn& turn) { return turn.to == num_tokens; })) return false;
  for (int layer = 0; layer < core.layers.count(); ++layer) {
    for (const HeadCache& head : std::as_const(*core.cache).heads(sequence.cache_id, core.layers.LayerOf(layer))) {
      const int entries = EntriesBefore(head, num_tokens);
      if (entries < head.num_low_entries() && entries % kP != 0) return false;
    }
  }
  return true;
}

// The most of num_tokens tokens that can stay.
int TurnTarget(const EngineCore& core, const Sequence& sequence, int num_tokens) {
  int target = num_tokens;
  const int window = sequence.setup->ring_window;
  if (num_tokens > sequence.turn_start && sequence.next_position > window) {
    target = std::max(sequence.turn_start, num_tokens - window);
  }
  for (size_t i = sequence.turns.size(); !IsTurnEnd(core, sequence, target); --i) {
    if (i == 0) return 0;
    target = std::min(target, sequence.turns[i - 1].to);
  }
  return target;
}

RewindRange RangeOf(const EngineCore& core, const Sequence& sequence) {
  RewindRange range{.most = sequence.next_position};
  LimitByRecipe(core, sequence, range);
  if (range.most > 0) LimitByHeads(core, sequence, range);
  return range;
}

Status Empty(EngineCore& core, Sequence& sequence) {
  const SequenceSetup& setup = *sequence.setup;
  for (HeadCache& head : core.cache->heads(sequence.cache_id)) head.Clear();
  PITH_RETURN_IF_ERROR(core.cache->SetLow(sequence.cache_id, setup.formats.full()));
  PITH_RETURN_IF_ERROR(core.cache->SetLower(sequence.cache_id, setup.formats.chosen));
  core.context->ClearSlot(sequence.slot);
  std::ranges::fill(sequence.moments.data(), 0.0F);
  std::ranges::fill(sequence.merge_thresholds, std::nan(""));
  if (sequence.pruner != nullptr) sequence.pruner = std::make_unique<PrefillPruner>(setup.recipe.prefill);
  sequence.queries_from = 0;
  sequence.EndAt(0, core.layers.num_heads());
  return {};
}

}  // namespace

int RewindTarget(const EngineCore& core, const Sequence& sequence, int num_tokens) {
  if (num_tokens <= 0) return 0;
  if (num_tokens >= sequence.next_position) return sequence.next_position;
  if (sequence.setup->recipe.has_turns()) return TurnTarget(core, sequence, num_tokens);
  // What was overwritten is read again.
  const int window = sequence.setup->ring_window;
  int target = sequence.next_position > window ? num_tokens - window : num_tokens;
  const RewindRange range = RangeOf(core, sequence);
  target = std::min(target, range.most);
  if (target < range.whole_pages) target = target / kP * kP;
  return target < range.least ? 0 : std::max(target, 0);
}

Status Rewind(EngineCore& core, Sequence& sequence, int num_tokens) {
  if (num_tokens < 0 || num_tokens > sequence.next_position) {
    return InvalidArgument(
        fmt::format("the sequence has read {} tokens, and cannot go back to {}", sequence.next_position, num_tokens));
  }
  if (num_tokens == sequence.next_position) return {};
  sequence.EndPieces();
  if (num_tokens == 0) return Empty(core, sequence);
  const bool turns = sequence.setup->recipe.has_turns();
  const RewindRange range = turns ? RewindRange{.most = num_tokens} : RangeOf(core, sequence);
  const auto refused = [&](const char* reason) {
    return Unsupported(fmt::format("the sequence cannot go back from {} tokens to {}: {}", sequence.next_position,
                                   num_tokens, reason));
  };
  if (turns && !IsTurnEnd(core, sequence, num_tokens)) return refused("it is not at the end of a turn that left it so");
  if (num_tokens > range.most) return refused(range.reason);
  if (num_tokens < range.least) return refused(range.least_reason);
  if (num_tokens < range.whole_pages && num_tokens % kP != 0) return refused("pages of few bits are kept whole");
  for (HeadCache& head : core.cache->heads(sequence.cache_id)) {
    PITH_RETURN_IF_ERROR(head.Truncate(EntriesBefore(head, num_tokens)));
  }
  sequence.ForgetQueriesOf(sequence.next_position - num_tokens);
  sequence.EndAt(num_tokens, core.layers.num_heads());
  return {};
}

}  // namespace pith
