#include "engine/steps.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/own_code.h"

namespace pith {
namespace {

// Rows of a block of a prompt that may skip attention work: not those of the prompt's last segment.
int SparseRows(const Sequence& sequence, int count, bool ends) {
  const ResolvedRecipe& recipe = sequence.setup->recipe;
  if (!recipe.skips_attention()) return 0;
  return ends ? (count - 1) / recipe.prefill.segment * recipe.prefill.segment : count;
}

}  // namespace

int Steps::RowsAtOnce(const Sequence& sequence) const {
  return sequence.setup->rereads_blocks() ? rereader_.RowsAtOnce(sequence) : turns_.RowsAtOnce(sequence);
}

Status Steps::ReadPiece(Sequence& sequence, const StepItem& piece, bool ends, bool settles) {
  PITH_RETURN_IF_ERROR(MakeRoomForRows(sequence, static_cast<int>(piece.tokens.size())));
  runner_.Begin();
  AddItem(sequence, piece, ends, settles);
  runner_.Run();
  const RowGroup& group = runner_.groups().front();
  const Status status = group.status() ? TakeRows(group, piece) : group.status();
  if (!status) {
    (void)runner_.TakeEchoedQueries(sequence);
    return status;
  }
  return MakeRoomBehind(sequence, settles);
}

Status Steps::ReadAhead(Sequence& sequence, StepItem& item) {
  const size_t count = item.tokens.size();
  const bool may_be_cut = count > 1 && sequence.setup->rereads_blocks();
  const size_t most = may_be_cut ? static_cast<size_t>(RowsAtOnce(sequence)) : count;
  const bool was_longer = count > most;
  Status status;
  while (status && item.tokens.size() > most) {
    // Two rows are left at least: a prompt that ends with the step settles.
    const size_t rows = item.tokens.size() == most + 1 ? most - 1 : most;
    StepItem piece = item;
    piece.tokens = item.tokens.first(rows);
    status = ReadPiece(sequence, piece, false, false);
    item.tokens = item.tokens.subspan(rows);
  }
  if (status) status = MakeRoomForRows(sequence, static_cast<int>(item.tokens.size()));
  if (status || !was_longer || sequence.lost) return status;
  sequence.lost = Error{status.error().code,
                        fmt::format("this sequence is lost, since a step broke off within its rows ({}): free it",
                                    status.error().message)};
  return tl::unexpected<Error>(*sequence.lost);
}

Status Steps::MakeRoomForRows(Sequence& sequence, int num_rows) {
  return sequence.setup->rereads_blocks() ? rereader_.MakeRoomForRows(sequence, num_rows)
                                          : turns_.MakeRoomForRows(sequence, num_rows);
}

Status Steps::MakeRoomBehind(Sequence& sequence, bool settles) {
  if (!sequence.setup->rereads_blocks()) return {};
  ReferenceQueries echoed = runner_.TakeEchoedQueries(sequence);
  return settles ? rereader_.Settle(sequence, std::move(echoed))
                 : rereader_.MakeRoomBehind(sequence, std::move(echoed));
}

Status Steps::CheckItem(const Sequence& sequence, const StepItem& item) const {
  if (item.tokens.empty()) return InvalidArgument("there are no tokens to read");
  for (const int32_t token : item.tokens) {
    if (token >= 0 && token < core_.info->num_vocab) continue;
    return InvalidArgument(fmt::format("there is no token {}", token));
  }
  PITH_RETURN_IF_ERROR(CheckRoom(sequence, item.tokens.size()));
  return item.pin ? CheckPinned(sequence, static_cast<int64_t>(item.tokens.size())) : Status();
}

Result<Sequence*> Steps::Admit(const StepItem& item, std::span<const StepItem> before, size_t num_rows) const {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, table_.Find(item.sequence));
  PITH_RETURN_IF_ERROR(CheckItem(*sequence, item));
  if (num_rows + item.tokens.size() > static_cast<size_t>(core_.plan.block_tokens)) {
    return InvalidArgument(fmt::format("a step takes at most {} rows", core_.plan.block_tokens));
  }
  if (std::ranges::any_of(before, [&](const StepItem& other) { return other.sequence == item.sequence; })) {
    return InvalidArgument("a sequence can be in a step only once");
  }
  return sequence;
}

void Steps::AddItem(Sequence& sequence, const StepItem& item, bool ends, bool settles) {
  const auto count = static_cast<int>(item.tokens.size());
  const bool all = item.all_logits != nullptr || item.all_hidden != nullptr;
  if (item.all_hidden != nullptr) runner_.WantHidden();
  RowGroup& group =
      runner_.Add(sequence, item.tokens, all ? 0 : item.tokens.size() - 1, SparseRows(sequence, count, ends));
  group.pins = item.pin;
  group.settles = settles;
}

Status Steps::TakeRows(const RowGroup& group, const StepItem& item) {
  if (item.all_logits != nullptr) runner_.CopyLogits(group, *item.all_logits);
  return item.all_hidden != nullptr ? runner_.CopyHidden(group, *item.all_hidden) : Status();
}

void Steps::RunItems(std::span<const StepItem> items, std::span<Status> statuses) {
  runner_.Run();
  for (size_t g = 0; g < item_of_group_.size(); ++g) {
    const RowGroup& group = runner_.groups()[g];
    const StepItem& item = items[item_of_group_[g]];
    Status& status = statuses[item_of_group_[g]];
    status = group.status();
    if (group.failed()) {
      (void)runner_.TakeEchoedQueries(*group.sequence);
      continue;
    }
    status = TakeRows(group, item);
    if (group.sequence->setup->rereads_blocks()) behind_.emplace_back(item_of_group_[g], group.settles);
  }
  item_of_group_.clear();
  for (const auto& [i, settles] : behind_) {
    const Status status = MakeRoomBehind(*table_.Lookup(items[i].sequence), settles);
    if (statuses[i]) statuses[i] = status;
  }
  behind_.clear();
}

void Steps::Step(std::span<const StepItem> items, std::span<Status> statuses) {
  if (statuses.size() != items.size()) {
    for (Status& status : statuses) status = InvalidArgument("a step gives a status for each of its items");
    return;
  }
  // Before any of them is in a block: what is dropped to make room may be read again, in blocks of its own.
  step_items_.assign(items.begin(), items.end());
  size_t num_rows = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    const Result<Sequence*> sequence = Admit(items[i], items.first(i), num_rows);
    const auto count = items[i].tokens.size();
    statuses[i] = sequence ? ReadAhead(**sequence, step_items_[i]) : Status(tl::unexpected<Error>(sequence.error()));
    if (statuses[i]) num_rows += count;
  }
  runner_.Begin();
  for (size_t i = 0; i < items.size(); ++i) {
    if (!statuses[i]) continue;
    Sequence& sequence = *table_.Lookup(items[i].sequence);
    AddItem(sequence, step_items_[i], !sequence.prompt_continues,
            step_items_[i].tokens.size() > 1 && !sequence.prompt_continues);
    item_of_group_.push_back(i);
    // Where states are recurrent, or rows of sequences cannot share a block, each sequence has a block of its own.
    if (!core_.info->hybrid) continue;
    RunItems(step_items_, statuses);
    runner_.KeepLogits();
    runner_.Begin();
  }
  if (!item_of_group_.empty()) RunItems(step_items_, statuses);
}

Status Steps::Prefill(SequenceId id, std::span<const int32_t> tokens, bool pin, std::vector<float>* all_logits,
                      const Progress& progress) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, table_.Find(id));
  PITH_RETURN_IF_ERROR(CheckItem(*sequence, {.sequence = id, .tokens = tokens, .pin = pin}));
  const int rows = RowsAtOnce(*sequence);
  for (size_t at = 0; at < tokens.size();) {
    if (cancelled()) return Cancelled("stopped while reading the prompt");
    const size_t count = std::min(tokens.size() - at, static_cast<size_t>(rows));
    const bool ends = at + count == tokens.size() && !sequence->prompt_continues;
    const StepItem piece{.sequence = id, .tokens = tokens.subspan(at, count), .pin = pin, .all_logits = all_logits};
    PITH_RETURN_IF_ERROR(ReadPiece(*sequence, piece, ends, ends && tokens.size() > 1));
    at += count;
    if (progress && !progress(at, tokens.size())) return Cancelled("stopped while reading the prompt");
  }
  return {};
}

Status Steps::ReadTogether(std::span<const SequenceId> ids, std::span<const int32_t> tokens, size_t skipped) {
  for (const SequenceId id : ids) {
    PITH_ASSIGN_OR_RETURN(Sequence* const sequence, table_.Find(id));
    PITH_RETURN_IF_ERROR(MakeRoomForRows(*sequence, static_cast<int>(tokens.size())));
  }
  runner_.Begin();
  for (const SequenceId id : ids) {
    PITH_ASSIGN_OR_RETURN(Sequence* const sequence, table_.Find(id));
    PITH_RETURN_IF_ERROR(CheckItem(*sequence, {.sequence = id, .tokens = tokens}));
    runner_.Add(*sequence, tokens, skipped, 0);
  }
  runner_.Run();
  for (const RowGroup& group : runner_.groups()) (void)runner_.TakeEchoedQueries(*group.sequence);
  return {};
}

Status Steps::PrefillTogether(std::span<const SequenceId> ids, std::span<const int32_t> tokens, size_t first_row,
                              std::vector<float>& logits, const Progress& progress) {
  if (tokens.empty() || ids.empty()) return InvalidArgument("there are no tokens to read");
  if (first_row >= tokens.size()) return InvalidArgument("no token is left whose logits are wanted");
  for (size_t i = 0; i < ids.size(); ++i) {
    if (std::ranges::count(ids.first(i), ids[i]) > 0) return InvalidArgument("a sequence can be in a step only once");
  }
  // A recurrent model takes equal lengths of one sequence after the other.
  const auto block_tokens = static_cast<size_t>(core_.plan.block_tokens);
  const size_t together = core_.info->hybrid ? 1 : std::min(ids.size(), block_tokens);
  const size_t vocab = static_cast<size_t>(core_.info->num_vocab), rows = tokens.size() - first_row;
  logits.resize(ids.size() * rows * vocab);
  for (size_t from = 0; from < ids.size(); from += together) {
    const std::span<const SequenceId> some = ids.subspan(from, std::min(together, ids.size() - from));
    const size_t step = block_tokens / some.size();
    for (size_t at = 0; at < tokens.size(); at += step) {
      if (cancelled()) return Cancelled("stopped while reading the prompt");
      const size_t count = std::min(step, tokens.size() - at);
      const size_t skipped = first_row > at ? std::min(first_row - at, count) : 0;
      PITH_RETURN_IF_ERROR(ReadTogether(some, tokens.subspan(at, count), skipped));
      for (size_t s = 0; s < some.size(); ++s) {
        const RowGroup& group = runner_.groups()[s];
        PITH_RETURN_IF_ERROR(group.status());
        for (size_t i = skipped; i < count; ++i) {
          const std::span<const float> row = runner_.logits(group, static_cast<int>(i - skipped));
          std::copy_n(row.begin(), vocab,
                      logits.begin() + static_cast<std::ptrdiff_t>(((from + s) * rows + at + i - first_row) * vocab));
        }
      }
      if (progress && !progress(at + count, tokens.size())) return Cancelled("stopped while reading the prompt");
    }
  }
  return {};
}

Status Steps::DecodeBatch(std::span<const SequenceId> ids, std::span<const int32_t> tokens) {
  const OwnCode own(true);
  if (ids.size() != tokens.size()) return InvalidArgument("each sequence of a batch takes one token");
  batch_items_.clear();
  for (size_t i = 0; i < ids.size(); ++i) batch_items_.push_back({.sequence = ids[i], .tokens = tokens.subspan(i, 1)});
  batch_statuses_.resize(ids.size());
  const auto most = static_cast<size_t>(core_.plan.block_tokens);
  for (size_t from = 0; from < ids.size(); from += most) {
    const size_t count = std::min(ids.size() - from, most);
    if (from > 0) runner_.KeepLogits();
    Step(std::span(batch_items_).subspan(from, count), std::span(batch_statuses_).subspan(from, count));
  }
  const auto failed = std::ranges::find_if(batch_statuses_, [](const Status& status) { return !status; });
  return failed == batch_statuses_.end() ? Status() : *failed;
}

}  // namespace pith
