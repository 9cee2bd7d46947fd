// Blocks: which rows run together, the bytes that they are promised, and what becomes of those that fail.
//
//   check      each item by itself: context, pins, a sequence that is lost
//   reserve    the bytes that its rows may take; who cannot have them is left out before anything has changed
//   run        libllama's graph, with OnAttention() in every layer (engine_attention.cc)
//   finish     eviction by recipes that compare layers; logits
//   roll back  a group that failed in the graph: its rows are cut off again, or its sequence is lost
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "base/own_code.h"
#include "engine/engine_impl.h"

namespace pith {
namespace {

Status StatusOf(const RowGroup& group) { return group.error ? Status(tl::unexpected<Error>(*group.error)) : Status(); }

}  // namespace

Status EngineImpl::CheckRoom(const Sequence& sequence, size_t num_tokens) const {
  const auto num_ctx = static_cast<size_t>(sequence.setup->num_ctx);
  const size_t end = static_cast<size_t>(sequence.next_position) + num_tokens;
  if (end <= num_ctx) return {};
  return InvalidArgument(fmt::format("{} tokens do not fit into a context of {}: raise it with -c", end, num_ctx));
}

Status EngineImpl::CheckPinned(const Sequence& sequence, int64_t more) const {
  const int64_t pinned = sequence.num_pinned() + more;
  if (!sequence.setup->style.evicts || pinned <= sequence.share.keep_entries) return {};
  return OutOfBudget(fmt::format("the KV budget holds {} entries per head, fewer than the {} pinned tokens",
                                 sequence.share.keep_entries, pinned));
}

Status EngineImpl::CheckItem(const Sequence& sequence, const StepItem& item) const {
  if (item.tokens.empty()) return InvalidArgument("there are no tokens to read");
  for (const int32_t token : item.tokens) {
    if (token >= 0 && token < model_->info().num_vocab) continue;
    return InvalidArgument(fmt::format("there is no token {}", token));
  }
  PITH_RETURN_IF_ERROR(CheckRoom(sequence, item.tokens.size()));
  return item.pin ? CheckPinned(sequence, static_cast<int64_t>(item.tokens.size())) : Status();
}

// Says what a full budget means to the user, who may have asked for no eviction at all.
Error EngineImpl::FullError(const Sequence& sequence) const {
  const size_t limit = sequences_.size() == 1 ? plan_.budget_bytes : sequence.ceiling_bytes;
  Error error{ErrorCode::kOutOfBudget, fmt::format("the KV budget of {:.2f} MiB is full at {} tokens",
                                                   static_cast<double>(limit) / (1 << 20), sequence.next_position)};
  const bool drops = sequence.setup->style.evicts || sequence.setup->recipe.has_turns();
  if (!drops) error.message += ", and nothing may be dropped";
  return error;
}

int EngineImpl::SparseRows(const Sequence& sequence, int count, bool ends) {
  const ResolvedRecipe& recipe = sequence.setup->recipe;
  if (!recipe.skips_attention()) return 0;
  return ends ? (count - 1) / recipe.prefill.segment * recipe.prefill.segment : count;
}

void EngineImpl::AddGroup(Sequence& sequence, std::span<const int32_t> tokens, size_t first_logits,
                          int num_sparse_rows) {
  EndReading(sequence);
  const auto count = static_cast<int>(tokens.size());
  groups_.push_back(RowGroup{.sequence = &sequence,
                             .first_row = static_cast<int>(tokens_.size()),
                             .num_rows = count,
                             .num_sparse_rows = num_sparse_rows,
                             .start = sequence.next_position,
                             .num_outputs = static_cast<int>(tokens.size() - std::min(tokens.size(), first_logits))});
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens_.push_back(tokens[i]);
    positions_.push_back(sequence.next_position + static_cast<int32_t>(i));
    slots_.push_back(sequence.slot);
    wants_logits_.push_back(i >= first_logits);
  }
}

void EngineImpl::BeginBlock() {
  wants_hidden_ = false;
  tokens_.clear(), positions_.clear(), slots_.clear(), wants_logits_.clear(), groups_.clear();
}

size_t EngineImpl::BytesToExtend(const Sequence& sequence, int num_rows) const {
  size_t bytes = 0;
  for (size_t layer = 0; layer < cache_->layers().size(); ++layer) {
    if (cache_->layers()[layer].num_kv_heads == 0) continue;
    for (const HeadCache& head : std::as_const(*cache_).heads(sequence.cache_id, static_cast<int>(layer))) {
      bytes += head.PagesToExtend(num_rows).bytes;
    }
  }
  return bytes;
}

size_t EngineImpl::BytesToKeep(const Sequence& sequence, int num_rows) const {
  size_t low_page = 0, low_pages = 0, pages = 0, pages_before = 0;
  for (size_t layer = 0; layer < cache_->layers().size(); ++layer) {
    if (cache_->layers()[layer].num_kv_heads == 0) continue;
    for (const HeadCache& head : std::as_const(*cache_).heads(sequence.cache_id, static_cast<int>(layer))) {
      const auto entries = static_cast<size_t>(head.num_entries() + num_rows), low = entries / kPageEntries;
      const auto low_before = static_cast<size_t>(head.num_low_entries() / kPageEntries);
      low_page = std::max(low_page, head.low_layout()->page_bytes);
      low_pages += low - std::min(low, low_before);
      pages += entries % kPageEntries != 0;
      pages_before += head.pages().size() - low_before;
    }
  }
  const size_t page_cost = sequence.setup->flight.page_cost;
  return low_pages * (low_page + PagePool::kTableBytesPerPage + 2 * sizeof(std::byte*)) +
         (pages - std::min(pages, pages_before)) * page_cost;
}

// Statistics may be taken back with a step that fails: each sequence has room for their copy from step to step.
void EngineImpl::PlanUndo() {
  undos_.resize(std::max(undos_.size(), groups_.size()));
  if (repeat_policy_ != nullptr || model_->info().hybrid) return;
  for (size_t i = 0; i < groups_.size(); ++i) {
    Sequence& sequence = *groups_[i].sequence;
    if (groups_[i].failed() || (sequence.setup->observed_needs == 0 && !sequence.setup->counts_moments)) continue;
    const size_t count = undos_[i].Plan(*cache_, sequence, global_layers_);
    float* const memory = sequence.UndoMemory(count);
    if (count > 0 && memory == nullptr) continue;
    undos_[i].SetMemory(memory);
    groups_[i].undo = &undos_[i];
  }
}

// The rows' bytes become part of what their sequences are guaranteed until the block ends.
Status EngineImpl::ReserveGroup(Sequence& sequence, int num_rows) {
  MemoryAccount& account = *sequence.account;
  const size_t used = account.used_bytes();
  size_t most = BytesToExtend(sequence, num_rows), ceiling = sequence.ceiling_bytes;
  const bool evicts = sequence.evicts_while_running();
  if (evicts) {
    // What is there and not evicted yet, and the rows of the layers in flight.
    ceiling += sequence.setup->flight.Bytes(num_rows, 1);
    most = std::min(most, std::max(ceiling, used) - used);
  } else if (sequence.setup->formats.low && sequence.setup->style.schedule->FinishesLayers()) {
    // Each layer converts its full pages before the next one takes its rows.
    const size_t kept = BytesToKeep(sequence, num_rows);
    if (used + kept > ceiling) return tl::unexpected<Error>(FullError(sequence));
    most = std::min(most, kept + sequence.setup->flight.Bytes(num_rows, 1));
    ceiling = std::max(ceiling, used + most);
  } else if (used + most > ceiling) {
    return tl::unexpected<Error>(FullError(sequence));
  }
  if (account.SetLimits(std::max(sequence.floor_bytes, used + most), ceiling)) return {};
  const size_t missing = used + most - std::min(used + most, std::max(used, sequence.floor_bytes));
  if (Reclaim(missing, &sequence) && account.SetLimits(std::max(sequence.floor_bytes, used + most), ceiling)) return {};
  if (!evicts) return tl::unexpected<Error>(FullError(sequence));
  // What it had borrowed is not there any more.
  PlanOwnShare(sequence, sequence.floor_bytes);
  (void)sequence.HoldScratch();
  PITH_RETURN_IF_ERROR(EvictToShare(sequence));
  const size_t guaranteed = sequence.floor_bytes + sequence.setup->flight.Bytes(num_rows, 1);
  if (account.SetLimits(guaranteed, guaranteed)) return {};
  return tl::unexpected<Error>(FullError(sequence));
}

void EngineImpl::ReserveBlock() {
  (void)flight_->SetLimits(0, 0);
  // Who drops has been promised its flight, and comes first.
  for (const bool evicts : {true, false}) {
    for (RowGroup& group : groups_) {
      if (group.failed() || group.sequence->evicts_while_running() != evicts) continue;
      if (const Status status = ReserveGroup(*group.sequence, group.num_rows); !status) group.Fail(status.error());
    }
  }
}

void EngineImpl::ReleaseBlock() {
  for (const RowGroup& group : groups_) {
    Sequence& sequence = *group.sequence;
    const size_t ceiling = std::max(sequence.floor_bytes, std::min(sequence.ceiling_bytes, sequence.planned_bytes));
    (void)sequence.account->SetLimits(sequence.floor_bytes, ceiling);
  }
  if (!flight_->SetLimits(flight_bytes_, flight_bytes_) && Reclaim(flight_bytes_, nullptr)) {
    (void)flight_->SetLimits(flight_bytes_, flight_bytes_);
  }
}

// Rows of groups that failed before the block began.
void EngineImpl::LeaveOutFailed() {
  if (std::ranges::none_of(groups_, &RowGroup::failed)) return;
  size_t to = 0;
  for (RowGroup& group : groups_) {
    if (group.failed()) continue;
    const auto from = static_cast<size_t>(group.first_row), count = static_cast<size_t>(group.num_rows);
    const auto move = [&](auto& rows) {
      std::copy_n(rows.begin() + static_cast<std::ptrdiff_t>(from), count,
                  rows.begin() + static_cast<std::ptrdiff_t>(to));
    };
    move(tokens_), move(positions_), move(slots_), move(wants_logits_);
    group.first_row = static_cast<int>(to);
    to += count;
  }
  tokens_.resize(to), positions_.resize(to), slots_.resize(to), wants_logits_.resize(to);
}

void EngineImpl::TakeCancels() {
  if (!has_cancels_.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(cancel_mutex_);
  for (RowGroup& group : groups_) {
    if (!group.failed() && cancels_.contains(group.sequence->id))
      group.Fail({ErrorCode::kCancelled, "stopped in the middle of a step"});
  }
}

// Other threads may still be in a layer, so nothing is written here.
bool EngineImpl::ShouldStop() {
  if (!in_block_ || !(has_cancels_.load(std::memory_order_acquire) || groups_.front().failed())) return false;
  const std::lock_guard lock(cancel_mutex_);
  return std::ranges::all_of(
      groups_, [this](const RowGroup& group) { return group.failed() || cancels_.contains(group.sequence->id); });
}

void EngineImpl::RunBlock() {
  const Clock::time_point start = Clock::now();
  StepClock& clock = options_.clock != nullptr ? *options_.clock : SystemStepClock();
  const size_t rows = tokens_.size();
  ThreadGovernor& governor = rows == groups_.size() ? *token_governor_ : *block_governor_;
  context_->SetThreads(governor.threads());
  const double wall = clock.Wall(), cpu = clock.Cpu();
  for (auto& [id, sequence] : sequences_) sequence->output = -1;
  TakeCancels();
  ReserveBlock();
  LeaveOutFailed();
  PlanUndo();
  if (!tokens_.empty()) {
    // libllama wants at least one row's logits.
    if (std::ranges::find(wants_logits_, 1) == wants_logits_.end()) wants_logits_.back() = 1;
    for (RowGroup& group : groups_) {
      if (!group.failed()) BeginGroup(group);
    }
    in_block_ = true;
    Status status = context_->Decode({tokens_, positions_, slots_, wants_logits_, wants_hidden_});
    in_block_ = false;
    TakeCancels();
    if (status) status = CheckHostBytes();
    for (RowGroup& group : groups_) {
      if (!status) group.Fail(status.error());
    }
    if (status) FinishBlock();
    int output = 0;
    for (RowGroup& group : groups_) {
      if (!group.began) continue;
      group.first_output = output;
      output += static_cast<int>(std::count(wants_logits_.begin() + group.first_row,
                                            wants_logits_.begin() + group.first_row + group.num_rows, 1));
      group.failed() ? RollBack(group) : FinishGroup(group);
    }
  }
  ReleaseBlock();
  governor.Step(clock.Wall() - wall, clock.Cpu() - cpu, WorkOf(rows));
  context_->SetThreads(options_.num_threads);
  times_.total += SecondsSince(start);
}

// What libllama took for a block is known when it ran; more than was planned is charged then.
Status EngineImpl::CheckHostBytes() {
  const auto charge = [this](MemoryTag tag, size_t actual, size_t& planned) {
    if (actual <= planned) return true;
    if (!ledger_->TryCharge(tag, actual - planned)) return false;
    planned = actual;
    return true;
  };
  if (charge(MemoryTag::kBlock, context_->block_bytes(), plan_.block_bytes) &&
      charge(MemoryTag::kRecurrent, context_->recurrent_bytes(), plan_.recurrent_bytes)) {
    return {};
  }
  return OutOfBudget(
      "libllama's own memory for a block of this model is larger than planned, and the KV budget does not hold it");
}

void EngineImpl::BeginGroup(RowGroup& group) {
  Sequence& sequence = *group.sequence;
  group.began = true;
  sequence.next_position += group.num_rows;
  // Before a recipe looks at the rows.
  if (group.pins) sequence.pinned.emplace_back(group.start, sequence.next_position);
  sequence.logit_bytes = HeldBytes();
  sequence.restored_logits.clear();
  sequence.repeat.reset();
  if (repeat_policy_ == nullptr) PrepareCascade(group);
}

void EngineImpl::FinishGroup(RowGroup& group) {
  Sequence& sequence = *group.sequence;
  const bool has_last = wants_logits_[static_cast<size_t>(group.first_row + group.num_rows - 1)] != 0;
  const auto wanted =
      std::count(wants_logits_.begin() + group.first_row, wants_logits_.begin() + group.first_row + group.num_rows, 1);
  sequence.output = has_last ? group.first_output + static_cast<int>(wanted) - 1 : -1;
  sequence.entries_seen += static_cast<int64_t>(group.num_rows) * num_global_heads_;
  if (!sequence.setup->reads_again || repeat_policy_ != nullptr) return;
  const auto first = tokens_.begin() + group.first_row;
  sequence.tokens.insert(sequence.tokens.end(), first, first + group.num_rows);
}

void EngineImpl::RollBack(RowGroup& group) {
  Sequence& sequence = *group.sequence;
  // Recurrent state has moved on with the rows.
  bool whole = !group.changed && !model_->info().hybrid;
  for (size_t layer = 0; layer < cache_->layers().size() && whole; ++layer) {
    if (cache_->layers()[layer].num_kv_heads == 0) continue;
    for (HeadCache& head : cache_->heads(sequence.cache_id, static_cast<int>(layer))) {
      whole = whole && head.Truncate(EntriesBefore(head, group.start)).has_value();
    }
  }
  if (group.notes_queries) sequence.ForgetQueriesOf(group.num_rows);
  sequence.next_position = group.start;
  if (group.pins) sequence.pinned.pop_back();
  if (whole && group.undo != nullptr) group.undo->Restore(*cache_, sequence, global_layers_);
  if (whole) return;
  sequence.lost = Error{group.error->code,
                        fmt::format("this sequence is lost, since a step broke off within its layers ({}): free it",
                                    group.error->message)};
  group.error = sequence.lost;
}

Status EngineImpl::RunRows(Sequence& sequence, std::span<const int32_t> tokens, size_t first_logits,
                           int num_sparse_rows) {
  BeginBlock();
  AddGroup(sequence, tokens, first_logits, num_sparse_rows);
  RunBlock();
  return StatusOf(groups_.front());
}

void EngineImpl::CopyRows(const RowGroup& group, std::vector<float>& to) {
  for (int i = 0; i < group.num_outputs; ++i) {
    const std::span<const float> row = context_->logits(group.first_output + i);
    to.insert(to.end(), row.begin(), row.end());
  }
}

Status EngineImpl::CopyHidden(const RowGroup& group, std::vector<float>& to) {
  for (int i = 0; i < group.num_outputs; ++i) {
    const std::span<const float> row = context_->hidden(group.first_output + i);
    if (row.empty()) return Unsupported("this model's graph in libllama has no embeddings");
    to.insert(to.end(), row.begin(), row.end());
  }
  return {};
}

void EngineImpl::Step(std::span<const StepItem> items, std::span<Status> statuses) {
  if (statuses.size() != items.size()) {
    for (Status& status : statuses) status = InvalidArgument("a step gives a status for each of its items");
    return;
  }
  // Where states are recurrent, or rows of sequences cannot share a block, each sequence has a block of its own.
  const bool together = !model_->info().hybrid;
  std::fill(statuses.begin(), statuses.end(), Status());
  std::vector<Status> refused;  // of sequences that could not be made room in
  for (size_t i = 0; i < items.size(); ++i) {
    Sequence* const sequence = Lookup(items[i].sequence);
    if (sequence == nullptr || !sequence->setup->recipe.has_turns() || sequence->lost) continue;
    const Status status = MakeRoomForRows(*sequence, static_cast<int>(items[i].tokens.size()));
    if (status) continue;
    refused.resize(items.size());
    refused[i] = status;
  }
  BeginBlock();
  item_of_group_.clear();
  size_t num_rows = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    const Result<Sequence*> sequence = Find(items[i].sequence);
    statuses[i] = sequence ? CheckItem(**sequence, items[i]) : Status(tl::unexpected<Error>(sequence.error()));
    if (statuses[i] && !refused.empty()) statuses[i] = refused[i];
    if (!statuses[i]) continue;
    num_rows += items[i].tokens.size();
    if (num_rows > static_cast<size_t>(plan_.block_tokens)) {
      statuses[i] = InvalidArgument(fmt::format("a step takes at most {} rows", plan_.block_tokens));
      num_rows -= items[i].tokens.size();
      continue;
    }
    if (std::ranges::any_of(groups_, [&](const RowGroup& group) { return group.sequence == *sequence; }) ||
        std::ranges::any_of(items.first(i),
                            [&](const StepItem& other) { return other.sequence == items[i].sequence; })) {
      statuses[i] = InvalidArgument("a sequence can be in a step only once");
      continue;
    }
    const auto count = static_cast<int>(items[i].tokens.size());
    const bool all = items[i].all_logits != nullptr || items[i].all_hidden != nullptr;
    wants_hidden_ = wants_hidden_ || items[i].all_hidden != nullptr;
    AddGroup(**sequence, items[i].tokens, all ? 0 : items[i].tokens.size() - 1,
             SparseRows(**sequence, count, !(*sequence)->prompt_continues));
    groups_.back().pins = items[i].pin;
    groups_.back().settles = count > 1 && !(*sequence)->prompt_continues;
    item_of_group_.push_back(i);
    if (together) continue;
    RunBlock();
    EndItems(items, statuses);
    KeepLogits();
    BeginBlock();
    item_of_group_.clear();
  }
  if (!groups_.empty()) {
    RunBlock();
    EndItems(items, statuses);
  }
}

void EngineImpl::EndItems(std::span<const StepItem> items, std::span<Status> statuses) {
  for (size_t g = 0; g < groups_.size(); ++g) {
    const RowGroup& group = groups_[g];
    const StepItem& item = items[item_of_group_[g]];
    statuses[item_of_group_[g]] = StatusOf(group);
    if (group.failed()) continue;
    if (item.all_logits != nullptr) CopyRows(group, *item.all_logits);
    if (item.all_hidden != nullptr) statuses[item_of_group_[g]] = CopyHidden(group, *item.all_hidden);
  }
}

Status EngineImpl::Prefill(SequenceId id, std::span<const int32_t> tokens, bool pin, std::vector<float>* all_logits,
                           const Progress& progress) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, Find(id));
  PITH_RETURN_IF_ERROR(CheckItem(*sequence, {.sequence = id, .tokens = tokens, .pin = pin}));
  for (size_t at = 0; at < tokens.size();) {
    if (cancelled()) return Cancelled("stopped while reading the prompt");
    const size_t count = std::min(tokens.size() - at, static_cast<size_t>(RowsAtOnce(*sequence)));
    const bool ends = at + count == tokens.size() && !sequence->prompt_continues;
    PITH_RETURN_IF_ERROR(MakeRoomForRows(*sequence, static_cast<int>(count)));
    BeginBlock();
    AddGroup(*sequence, tokens.subspan(at, count), all_logits != nullptr ? 0 : count - 1,
             SparseRows(*sequence, static_cast<int>(count), ends));
    groups_.front().pins = pin;
    groups_.front().settles = ends && tokens.size() > 1;
    RunBlock();
    PITH_RETURN_IF_ERROR(StatusOf(groups_.front()));
    if (all_logits != nullptr) CopyRows(groups_.front(), *all_logits);
    at += count;
    if (progress && !progress(at, tokens.size())) return Cancelled("stopped while reading the prompt");
  }
  return {};
}

Status EngineImpl::PrefillTogether(std::span<const SequenceId> ids, std::span<const int32_t> tokens, size_t first_row,
                                   std::vector<float>& logits, const Progress& progress) {
  if (tokens.empty() || ids.empty()) return InvalidArgument("there are no tokens to read");
  if (first_row >= tokens.size()) return InvalidArgument("no token is left whose logits are wanted");
  // A recurrent model takes equal lengths of one sequence after the other.
  const size_t together = model_->info().hybrid ? 1 : std::min(ids.size(), static_cast<size_t>(plan_.block_tokens));
  const size_t vocab = static_cast<size_t>(model_->info().num_vocab), rows = tokens.size() - first_row;
  logits.resize(ids.size() * rows * vocab);
  for (size_t from = 0; from < ids.size(); from += together) {
    const std::span<const SequenceId> some = ids.subspan(from, std::min(together, ids.size() - from));
    const size_t step = static_cast<size_t>(plan_.block_tokens) / some.size();
    for (size_t at = 0; at < tokens.size(); at += step) {
      if (cancelled()) return Cancelled("stopped while reading the prompt");
      const size_t count = std::min(step, tokens.size() - at);
      const size_t skipped = first_row > at ? std::min(first_row - at, count) : 0;
      for (const SequenceId id : some) {
        PITH_ASSIGN_OR_RETURN(Sequence* const sequence, Find(id));
        PITH_RETURN_IF_ERROR(MakeRoomForRows(*sequence, static_cast<int>(count)));
      }
      BeginBlock();
      for (const SequenceId id : some) {
        PITH_ASSIGN_OR_RETURN(Sequence* const sequence, Find(id));
        PITH_RETURN_IF_ERROR(CheckItem(*sequence, {.sequence = id, .tokens = tokens.subspan(at, count)}));
        AddGroup(*sequence, tokens.subspan(at, count), skipped, 0);
      }
      RunBlock();
      for (size_t s = 0; s < some.size(); ++s) {
        PITH_RETURN_IF_ERROR(StatusOf(groups_[s]));
        for (size_t i = skipped; i < count; ++i) {
          const std::span<const float> row = context_->logits(groups_[s].first_output + static_cast<int>(i - skipped));
          std::copy_n(row.begin(), vocab,
                      logits.begin() + static_cast<std::ptrdiff_t>(((from + s) * rows + at + i - first_row) * vocab));
        }
      }
      if (progress && !progress(at + count, tokens.size())) return Cancelled("stopped while reading the prompt");
    }
  }
  return {};
}

Status EngineImpl::Decode(SequenceId id, int32_t token) {
  const SequenceId ids[] = {id};
  const int32_t tokens[] = {token};
  return DecodeBatch(ids, tokens);
}

Status EngineImpl::DecodeBatch(std::span<const SequenceId> ids, std::span<const int32_t> tokens) {
  const OwnCode own(true);
  if (ids.size() != tokens.size()) return InvalidArgument("each sequence of a batch takes one token");
  step_items_.clear();
  for (size_t i = 0; i < ids.size(); ++i) step_items_.push_back({.sequence = ids[i], .tokens = tokens.subspan(i, 1)});
  step_statuses_.resize(ids.size());
  for (size_t from = 0; from < ids.size(); from += static_cast<size_t>(plan_.block_tokens)) {
    const size_t count = std::min(ids.size() - from, static_cast<size_t>(plan_.block_tokens));
    if (from > 0) KeepLogits();
    Step(std::span(step_items_).subspan(from, count), std::span(step_statuses_).subspan(from, count));
  }
  const auto failed = std::ranges::find_if(step_statuses_, [](const Status& status) { return !status; });
  return failed == step_statuses_.end() ? Status() : *failed;
}

std::span<const float> EngineImpl::logits(SequenceId id) const {
  const Sequence* const sequence = Lookup(id);
  if (sequence == nullptr) return {};
  if (!sequence->restored_logits.empty()) return sequence->restored_logits;
  return sequence->output >= 0 ? context_->logits(sequence->output) : std::span<const float>();
}

// Logits of the last block outlive the next one.
void EngineImpl::KeepLogits() {
  for (auto& [id, sequence] : sequences_) {
    if (sequence->output < 0) continue;
    const std::span<const float> row = context_->logits(sequence->output);
    // Where the budget has no room for them, they are kept all the same: somebody may be about to read them.
    (void)sequence->logit_bytes.Hold(sequence->account, MemoryTag::kTokens, row.size_bytes());
    sequence->restored_logits.assign(row.begin(), row.end());
    sequence->output = -1;
  }
}

}  // namespace pith
