#include "engine/block_runner.h"

#include <fmt/format.h>

#include <utility>

#include "engine/entry_counts.h"

namespace pith {

void BlockRunner::Init() {
  // One thread does at most kMaxMembers threads' parts of attention.
  const int most = core_.options.num_threads;
  const int least =
      core_.options.adapt_threads ? std::max(1, (most + kernels::kMaxMembers - 1) / kernels::kMaxMembers) : most;
  token_governor_.emplace(most, least, kTokenPace);
  block_governor_.emplace(most, least, kBlockPace);
}

void BlockRunner::Begin() {
  wants_hidden_ = false;
  tokens_.clear(), positions_.clear(), slots_.clear(), wants_logits_.clear(), groups_.clear();
}

RowGroup& BlockRunner::Add(Sequence& sequence, std::span<const int32_t> tokens, size_t first_logits,
                           int num_sparse_rows) {
  sequence.EndPieces();
  groups_.push_back(RowGroup{.sequence = &sequence,
                             .first_row = static_cast<int>(num_rows()),
                             .num_rows = static_cast<int>(tokens.size()),
                             .num_sparse_rows = num_sparse_rows,
                             .start = sequence.next_position,
                             .num_outputs = static_cast<int>(tokens.size() - std::min(tokens.size(), first_logits)),
                             .limit_bytes = table_.LimitBytes(sequence)});
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens_.push_back(tokens[i]);
    positions_.push_back(sequence.next_position + static_cast<int32_t>(i));
    slots_.push_back(sequence.slot);
    wants_logits_.push_back(i >= first_logits);
  }
  return groups_.back();
}

// Statistics may be taken back with a step that fails: each sequence has room for their copy from step to step.
void BlockRunner::PlanUndo() {
  undos_.resize(std::max(undos_.size(), groups_.size()));
  if (observer_ != nullptr || core_.info->hybrid) return;
  for (size_t i = 0; i < groups_.size(); ++i) {
    Sequence& sequence = *groups_[i].sequence;
    if (groups_[i].failed() || (sequence.setup->observed_needs == 0 && !sequence.setup->counts_moments)) continue;
    const size_t count = undos_[i].Plan(*core_.cache, sequence, core_.layers.layers());
    float* const memory = sequence.UndoMemory(count);
    if (count > 0 && memory == nullptr) continue;
    undos_[i].SetMemory(memory);
    groups_[i].undo = &undos_[i];
  }
}

// The rows' bytes become part of what their sequences are guaranteed until the block ends.
Status BlockRunner::ReserveGroup(const RowGroup& group) {
  Sequence& sequence = *group.sequence;
  const SequenceSetup& setup = *sequence.setup;
  const auto full = [&] { return tl::unexpected<Error>(group.FullError()); };
  MemoryAccount& account = *sequence.account;
  if (sequence.in_passing) {
    // Whether there is room shows on the way; nothing is lost where there is none.
    (void)account.SetLimits(0, sequence.ceiling_bytes);
    return {};
  }
  const size_t used = account.used_bytes(), flight = setup.flight.Bytes(group.num_rows, 1);
  size_t most = BytesToExtend(core_, sequence, group.num_rows), ceiling = sequence.ceiling_bytes;
  const bool evicts = sequence.evicts_while_running();
  if (evicts) {
    sequence.step_bytes = flight;
    // What is there and not evicted yet, and the rows of the layers in flight.
    ceiling += flight;
    most = std::min(most, std::max(ceiling, used) - used);
  } else if (setup.formats.converted && setup.style.schedule->FinishesLayers()) {
    // Each layer converts its full pages before the next one takes its rows.
    const size_t kept = BytesToKeep(core_, sequence, group.num_rows);
    if (used + kept > ceiling) return full();
    most = std::min(most, kept + flight);
    ceiling = std::max(ceiling, used + most);
  } else if (used + most > ceiling) {
    return full();
  }
  const auto limit = [&] { return account.SetLimits(std::max(sequence.floor_bytes, used + most), ceiling); };
  if (limit()) return {};
  const size_t missing = used + most - std::min(used + most, std::max(used, sequence.floor_bytes));
  if (table_.Reclaim(missing, &sequence) && limit()) return {};
  if (!evicts) return full();
  // What it had borrowed is not there any more; others may have what it is guaranteed.
  table_.PlanShareOf(sequence, sequence.floor_bytes);
  (void)sequence.HoldScratch();
  PITH_RETURN_IF_ERROR(evictor_.EvictToShare(sequence));
  const size_t guaranteed = sequence.floor_bytes + flight;
  if (account.SetLimits(guaranteed, guaranteed)) return {};
  const size_t lacks = guaranteed - std::min(guaranteed, std::max(account.used_bytes(), sequence.floor_bytes));
  if (table_.Reclaim(lacks, &sequence) && account.SetLimits(guaranteed, guaranteed)) return {};
  return full();
}

void BlockRunner::Reserve() {
  core_.flight.LetGo();
  // Who drops has been promised its flight, and comes first.
  for (const bool evicts : {true, false}) {
    for (RowGroup& group : groups_) {
      if (group.failed() || group.sequence->evicts_while_running() != evicts) continue;
      if (const Status status = ReserveGroup(group); !status) group.Fail(status.error());
    }
  }
}

void BlockRunner::Release() {
  for (const RowGroup& group : groups_) {
    Sequence& sequence = *group.sequence;
    sequence.step_bytes = 0;
    const size_t ceiling = std::max(sequence.floor_bytes, std::min(sequence.ceiling_bytes, sequence.planned_bytes));
    (void)sequence.account->SetLimits(sequence.floor_bytes, ceiling);
    if (sequence.in_passing) return;  // whoever reads it holds them again
  }
  if (!core_.flight.HoldAgain() && table_.Reclaim(core_.flight.bytes(), nullptr)) (void)core_.flight.HoldAgain();
}

// Rows of groups that failed before the block began.
void BlockRunner::LeaveOutFailed() {
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

void BlockRunner::TakeCancels() {
  if (!cancels_.any()) return;
  for (RowGroup& group : groups_) {
    if (!group.failed() && cancels_.Contains(group.sequence->id)) {
      group.Fail({ErrorCode::kCancelled, "stopped in the middle of a step"});
    }
  }
}

// Other threads may still be in a layer, so nothing is written here.
bool BlockRunner::ShouldStop() {
  if (!in_graph_ || !(cancels_.any() || groups_.front().failed())) return false;
  return std::ranges::all_of(
      groups_, [this](const RowGroup& group) { return group.failed() || cancels_.Contains(group.sequence->id); });
}

void BlockRunner::Run() {
  const Clock::time_point start = Clock::now();
  StepClock& clock = core_.options.clock != nullptr ? *core_.options.clock : SystemStepClock();
  const size_t rows = num_rows();
  ThreadGovernor& governor = rows == groups_.size() ? *token_governor_ : *block_governor_;
  core_.context->SetThreads(governor.threads());
  const double wall = clock.Wall(), cpu = clock.Cpu();
  // Somebody may have cancelled what was just being freed.
  cancels_.RemoveGone([this](SequenceId id) { return table_.Lookup(id) != nullptr; });
  table_.ForEach([](Sequence& sequence) { sequence.logits_row = -1; });
  TakeCancels();
  Reserve();
  LeaveOutFailed();
  PlanUndo();
  if (num_rows() > 0) RunGraph();
  Release();
  governor.Step(clock.Wall() - wall, clock.Cpu() - cpu, WorkOf(rows));
  core_.context->SetThreads(core_.options.num_threads);
  core_.times.total += SecondsSince(start);
}

void BlockRunner::RunGraph() {
  // libllama wants at least one row's logits.
  if (std::ranges::find(wants_logits_, 1) == wants_logits_.end()) wants_logits_.back() = 1;
  for (size_t i = 0; i < groups_.size(); ++i) {
    if (!groups_[i].failed()) BeginGroup(groups_[i], i);
  }
  in_graph_ = true;
  Status status = core_.context->Decode({tokens_, positions_, slots_, wants_logits_, wants_hidden_});
  in_graph_ = false;
  TakeCancels();
  if (status) status = CheckHostBytes();
  for (RowGroup& group : groups_) {
    if (!status) group.Fail(status.error());
    if (!group.failed()) evictor_.FinishGroup(group);
  }
  int output = 0;
  for (RowGroup& group : groups_) {
    if (!group.began) continue;
    group.first_output = output;
    output += static_cast<int>(std::ranges::count(WantsOf(group), 1));
    group.failed() ? RollBack(group) : FinishGroup(group);
  }
}

// What libllama took for a block is known when it ran; more than was planned is charged then.
Status BlockRunner::CheckHostBytes() {
  const auto charge = [this](MemoryTag tag, size_t actual, size_t& planned) {
    if (actual <= planned) return true;
    if (!core_.ledger->TryCharge(tag, actual - planned)) return false;
    planned = actual;
    return true;
  };
  if (charge(MemoryTag::kBlock, core_.context->block_bytes(), core_.plan.block_bytes) &&
      charge(MemoryTag::kRecurrent, core_.context->recurrent_bytes(), core_.plan.recurrent_bytes)) {
    return {};
  }
  return OutOfBudget(
      "libllama's own memory for a block of this model is larger than planned, and the KV budget does not hold it");
}

void BlockRunner::BeginGroup(RowGroup& group, size_t index) {
  Sequence& sequence = *group.sequence;
  group.began = true;
  sequence.next_position += group.num_rows;
  // Before a recipe looks at the rows.
  if (group.pins) sequence.pinned.emplace_back(group.start, sequence.next_position);
  sequence.logit_bytes = HeldBytes();
  sequence.kept_logits.clear();
  sequence.repeat.reset();
  if (observer_ == nullptr) evictor_.BeginGroup(group, index);
}

void BlockRunner::FinishGroup(RowGroup& group) {
  Sequence& sequence = *group.sequence;
  const std::span<const uint8_t> wants = WantsOf(group);
  const bool has_last = wants.back() != 0;
  sequence.logits_row = has_last ? group.first_output + static_cast<int>(std::ranges::count(wants, 1)) - 1 : -1;
  sequence.entries_seen += static_cast<int64_t>(group.num_rows) * core_.layers.num_heads();
  if (!sequence.setup->reads_again || observer_ != nullptr) return;
  const auto first = tokens_.begin() + group.first_row;
  sequence.tokens.insert(sequence.tokens.end(), first, first + group.num_rows);
}

void BlockRunner::RollBack(RowGroup& group) {
  Sequence& sequence = *group.sequence;
  // Recurrent state has moved on with the rows.
  bool whole = !group.changed && !core_.info->hybrid;
  for (HeadCache& head : core_.cache->heads(sequence.cache_id)) {
    whole = whole && head.Truncate(EntriesBefore(head, group.start)).has_value();
  }
  if (group.notes_queries) sequence.ForgetQueriesOf(group.num_rows);
  sequence.next_position = group.start;
  if (group.pins) sequence.pinned.pop_back();
  if (whole && group.undo != nullptr) group.undo->Restore(*core_.cache, sequence, core_.layers.layers());
  if (whole) return;
  sequence.lost = Error{group.error->code,
                        fmt::format("this sequence is lost, since a step broke off within its layers ({}): free it",
                                    group.error->message)};
  group.error = sequence.lost;
}

Status BlockRunner::RunPass(Sequence& fork, std::span<const int32_t> tokens, const RepeatObserver& observer) {
  observer_ = &observer;
  Begin();
  Add(fork, tokens, tokens.size() - 1, 0);
  Run();
  const Status status = groups_.front().status();
  observer_ = nullptr;
  Begin();
  return status;
}

void BlockRunner::CopyLogits(const RowGroup& group, std::vector<float>& to) const {
  for (int i = 0; i < group.num_outputs; ++i) {
    const std::span<const float> row = logits(group, i);
    to.insert(to.end(), row.begin(), row.end());
  }
}

Status BlockRunner::CopyHidden(const RowGroup& group, std::vector<float>& to) const {
  for (int i = 0; i < group.num_outputs; ++i) {
    const std::span<const float> row = core_.context->hidden(group.first_output + i);
    if (row.empty()) return Unsupported("this model's graph in libllama has no embeddings");
    to.insert(to.end(), row.begin(), row.end());
  }
  return {};
}

void BlockRunner::KeepLogits() {
  table_.ForEach([this](Sequence& sequence) {
    if (sequence.logits_row < 0) return;
    const std::span<const float> row = core_.context->logits(sequence.logits_row);
    // Where the budget has no room for them, they are kept all the same: somebody may be about to read them.
    (void)sequence.logit_bytes.Hold(sequence.account, MemoryTag::kTokens, row.size_bytes());
    sequence.kept_logits.assign(row.begin(), row.end());
    sequence.logits_row = -1;
  });
}

}  // namespace pith
