// One step: who is in it, and what becomes of its logits.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "server/scheduler_impl.h"

namespace pith::server {
namespace {

// Recipes with a counter of their own: clients may name any number of them.
constexpr size_t kMostNamed = 64;
// Of one job.
constexpr int kMostRestarts = 3;

}  // namespace

void SchedulerImpl::StepOnce() {
  SplicePieces();
  PlanStep();
  const JobPtr compressed = compress_rows_ > 0 ? NextToCompress() : nullptr;
  if (items_.empty() && compressed == nullptr) return;
  MakeRoomForStep();
  statuses_.assign(items_.size(), Status());
  int num_decodes = 0, num_prompt_rows = compress_rows_, running = 0;
  bool prompts_wait = false;
  for (size_t i = 0; i < items_.size(); ++i) {
    (rows_[i].of_prompt ? num_prompt_rows : num_decodes) += static_cast<int>(items_[i].tokens.size());
  }
  for (const JobPtr& job : running_) {
    prompts_wait = prompts_wait || !job->generates;
    for (const Choice& choice : job->choices) running += job->generates && choice.sequence >= 0 ? 1 : 0;
  }
  const auto start = SteadyClock::now();
  if (!items_.empty()) engine_->Step(items_, statuses_);
  const double step_seconds = SecondsBetween(start, SteadyClock::now());
  const double share = static_cast<double>(num_prompt_rows - compress_rows_) /
                       std::max(num_prompt_rows - compress_rows_ + num_decodes, 1);
  counters_.prompt_seconds += share * step_seconds;
  counters_.decode_seconds += (1 - share) * step_seconds;
  if (num_decodes > 0) ++counters_.decode_steps;
  EndStep();
  const auto end = SteadyClock::now();
  // It may have been sent back for room, or have ended.
  bool reads_again = false;
  if (compressed != nullptr && compressed->is_compressing && !compressed->is_cancelled()) {
    reads_again = CompressOn(*compressed, compress_rows_);
  }
  const double compress_seconds = compressed == nullptr ? 0 : SecondsBetween(end, SteadyClock::now());
  counters_.compress_seconds += compress_seconds;
  if (reads_again || compressed == nullptr)
    return pacer_.Note(num_decodes, num_prompt_rows, step_seconds + compress_seconds, running, prompts_wait);
  pacer_.Note(num_decodes, num_prompt_rows - compress_rows_, step_seconds, running, prompts_wait);
  pacer_.NoteBeside(compress_seconds, running);
}

void SchedulerImpl::EndStep() {
  // All logits are valid until the engine's next call, so that sampling comes first.
  const std::vector<JobPtr> alive = running_;  // jobs of rows_, some of which end below
  for (size_t i = 0; i < rows_.size(); ++i) {
    Row& row = rows_[i];
    if (!statuses_[i] || row.job->is_cancelled()) continue;
    if (!row.of_prompt) {
      ++row.choice->num_fed;
      Sample(*row.job, *row.choice, engine_->logits(row.choice->sequence));
      continue;
    }
    if (items_[i].all_logits != nullptr || items_[i].all_hidden != nullptr) TakeRows(*row.job, items_[i].tokens);
    row.job->prompt_done += items_[i].tokens.size();
    if (row.job->prompt_done < row.job->text.size()) continue;
    if (row.job->first_logits == SteadyClock::time_point()) row.job->first_logits = SteadyClock::now();
    const SequenceId sequence = row.choice->sequence;
    for (Choice& choice : row.job->choices) Sample(*row.job, choice, engine_->logits(sequence));
  }
  for (size_t i = 0; i < rows_.size(); ++i) {
    Job& job = *rows_[i].job;
    Choice& choice = *rows_[i].choice;
    if (job.is_cancelled() ||
        std::ranges::none_of(running_, [&](const JobPtr& other) { return other.get() == &job; })) {
      continue;
    }
    const bool is_full = !statuses_[i] && statuses_[i].error().code == ErrorCode::kOutOfBudget;
    if (job.failure) {
      Fail(job, *job.failure);
    } else if (!statuses_[i] && !is_full) {
      Fail(job, statuses_[i].error());
    } else if (is_full && rows_[i].of_prompt) {
      if (!Restart(job, statuses_[i].error())) Fail(job, statuses_[i].error());
    } else if (!statuses_[i] && job.choices.size() == 1 && BeginCompression(job)) {
      continue;  // the answer has outgrown what was left for it
    } else if (!statuses_[i] && (Preempt(job) || Restart(job, statuses_[i].error()))) {
      continue;
    } else if (!statuses_[i]) {
      choice.stop_message = statuses_[i].error().message;
      Say(job, choice, choice.generator->Finish(StopReason::kBudget));
      EndChoice(job, choice, false);
    } else if (rows_[i].of_prompt) {
      AfterPiece(job);
    } else if (choice.generator->done()) {
      EndChoice(job, choice, true);
    }
  }
}

// Whoever came last makes room, unless nobody else is there or it would not fit afterwards either.
bool SchedulerImpl::Preempt(Job& job) {
  if ((job.drops && !job.compresses) || running_.size() < 2) return false;
  for (size_t i = running_.size(); i-- > 0;) {
    Job& youngest = *running_[i];
    const bool can = youngest.choices.size() == 1 && !youngest.failure && !youngest.choices.front().generator->done();
    if (can) {
      SendBack(youngest);
      return true;
    }
    if (&youngest == &job) return false;
  }
  return false;
}

bool SchedulerImpl::Restart(Job& job, const Error& error) {
  const bool is_forked = job.generates && job.choices.size() > 1, is_full = job.generates && !job.drops;
  const bool is_alone = running_.size() == 1 && prefixes_.size() == 0;
  if (error.code != ErrorCode::kOutOfBudget || is_forked || is_full) return false;
  if (job.num_restarts >= kMostRestarts || (is_alone && job.num_restarts > 0)) return false;
  ++job.num_restarts;
  SendBack(job);
  return true;
}

// It reads its prompt and what it has generated again, when there is room.
void SchedulerImpl::SendBack(Job& job) {
  Choice& choice = job.choices.front();
  const JobPtr self = *std::ranges::find_if(running_, [&](const JobPtr& other) { return other.get() == &job; });
  DropDonor(job);
  Release(job, std::exchange(choice.sequence, -1));
  for (Choice& one : job.choices) slots_[static_cast<size_t>(std::exchange(one.slot, -1))] = nullptr;
  const std::vector<int32_t>& generated = choice.generator->result().tokens;
  job.text = job.request.prompt;
  job.text.insert(job.text.end(), generated.begin(), generated.end());
  job.num_generated_before = choice.num_fed = generated.size();
  job.generates = job.is_compressing = job.ends_turn = false;
  job.room_rows = 0;
  job.room_tried_at = -1;
  job.num_compressions = 0;
  job.prompt_done = 0;
  job.prompt_logprobs.clear(), job.pooled.clear();
  ++counters_.preempted;
  std::erase(running_, self);
  waiting_.push_front(self);
  room_changed_ = true;
  {
    const std::lock_guard lock(mutex_);
    ++num_waiting_;
  }
  if (PlanJob(job)) return;
  // Alone in the whole budget it would be full now.
  choice.stop_message = "the KV budget is full, and nothing may be dropped";
  Say(job, choice, choice.generator->Finish(StopReason::kBudget));
  EndChoice(job, choice, false);
}

// Up to where a piece may go: what is pinned is a piece of its own, and so is what rests.
size_t SchedulerImpl::PieceEnd(const Job& job) const {
  size_t end = job.text.size();
  for (const size_t border : {job.request.num_pinned, job.checkpoint_at}) {
    if (border > job.prompt_done) end = std::min(end, border);
  }
  if (const size_t turn = NextTurnEnd(job); turn > 0) end = std::min(end, turn);
  if (!job.pieces.empty())
    end = std::min(end, job.pieces.front().at > job.prompt_done ? job.pieces.front().at : job.pieces.front().end());
  if (!options_.deterministic_reuse) return end;
  const auto block = static_cast<size_t>(engine_->block_tokens());
  return std::min(end, (job.prompt_done / block + 1) * block);
}

void SchedulerImpl::PlanStep() {
  rows_.clear(), items_.clear();
  std::vector<Job*> reading;
  int num_decodes = 0;
  for (const JobPtr& job : running_) {
    if (!job->generates && !job->is_compressing && !IsAtPiece(*job)) reading.push_back(job.get());
    if (job->decodes() && job->choices.front().sequence >= 0) (void)BeginRoom(*job, 1);
    for (const Choice& choice : job->choices) num_decodes += job->decodes() && choice.sequence >= 0 ? 1 : 0;
  }
  std::ranges::stable_sort(reading, {}, [&](const Job* job) { return TurnAt(*job); });
  const bool apart = options_.deterministic_reuse;  // a step of one block, or of decodes
  const bool compresses = NextToCompress() != nullptr;
  const int rows = reading.empty() && !compresses ? 0 : pacer_.Rows(num_decodes);
  // Prompts that are read again take turns with those that are read.
  compressed_last_ = compresses && rows > 0 && (reading.empty() || !compressed_last_);
  compress_rows_ = !compressed_last_ ? 0 : apart ? engine_->block_tokens() : rows;
  if (rows == 0 || !apart) {
    for (const JobPtr& job : running_) {
      for (Choice& choice : job->choices) {
        if (!job->decodes() || choice.sequence < 0) continue;
        rows_.push_back({job.get(), &choice, false});
        items_.push_back({.sequence = choice.sequence, .tokens = {&choice.next, 1}});
      }
    }
  }
  // Products of libllama's may round a row differently beside others, and few files have none of them.
  if (apart && items_.size() > 1) {
    const size_t turn = turn_++ % items_.size();
    rows_ = {rows_[turn]}, items_ = {items_[turn]};
  }
  if (rows == 0 || compress_rows_ > 0) return;
  PlanPrompts(reading, rows);
}

void SchedulerImpl::PlanPrompts(std::vector<Job*> reading, int rows) {
  // Rows that are wanted cost memory by the vocabulary: one such prompt at a time, in small pieces, and in steps of its
  // own, so that others are not read in small pieces, too.
  const bool has_others = std::ranges::any_of(reading, [](const Job* job) { return !job->wants_rows(); });
  takes_rows_ = !has_others || !takes_rows_;
  bool is_taken = false;
  const bool has_such = std::ranges::any_of(reading, &Job::wants_rows);
  if (has_such) {
    std::erase_if(reading, [&](const Job* job) {
      return job->wants_rows() != takes_rows_ || (takes_rows_ && std::exchange(is_taken, true));
    });
  }
  const bool apart = options_.deterministic_reuse;
  if (apart) reading.resize(1);
  std::vector<int> wanted;
  for (const Job* job : reading) {
    const int piece = static_cast<int>(PieceEnd(*job) - job->prompt_done);
    wanted.push_back(job->wants_rows() ? std::min(piece, MostWantedRows()) : piece);
  }
  if (is_taken) rows = std::min(rows, MostWantedRows());
  const std::vector<int> got = apart ? wanted : DivideRows(wanted, rows);
  row_logits_.clear(), row_hidden_.clear();
  for (size_t i = 0; i < reading.size(); ++i) {
    Job& job = *reading[i];
    if (got[i] == 0) continue;
    if (BeginRoom(job, got[i])) continue;
    Choice& choice = job.choices.front();
    const size_t end = job.prompt_done + static_cast<size_t>(got[i]);
    engine_->SetPromptContinues(choice.sequence, end < job.text.size());
    rows_.push_back({&job, &choice, true});
    items_.push_back(
        {.sequence = choice.sequence,
         .tokens = std::span(job.text).subspan(job.prompt_done, static_cast<size_t>(got[i])),
         .pin = end <= job.request.num_pinned,
         .all_logits = job.wants_rows() && job.request.prompt_logprobs >= 0 ? &row_logits_ : nullptr,
         .all_hidden = job.wants_rows() && job.request.pooling != EmbeddingPooling::kNone ? &row_hidden_ : nullptr});
  }
}

// Bytes beyond its floor that so many rows may take.
size_t SchedulerImpl::BorrowedBy(const Job& job, SequenceId sequence, size_t num_rows) const {
  const SequenceStats stats = engine_->stats(sequence);
  const auto at = static_cast<size_t>(stats.num_tokens);
  const size_t growth = job.bytes.Of(at + num_rows) - job.bytes.Of(std::max<size_t>(at, 1)) +
                        (at % kPageEntries != 0 ? 0 : job.bytes.page);
  const size_t after = std::min(stats.used_bytes + growth, stats.ceiling_bytes);
  return after - std::min(after, std::max(stats.used_bytes, stats.floor_bytes));
}

// What sequences borrow beyond their floors is theirs before it is a prefix's.
void SchedulerImpl::MakeRoomForStep() {
  if (prefixes_.size() == 0) return;
  size_t needed = 0;
  for (size_t i = 0; i < items_.size(); ++i)
    needed += BorrowedBy(*rows_[i].job, items_[i].sequence, items_[i].tokens.size());
  if (needed > 0) (void)MakeRoom(needed);
}

void SchedulerImpl::AfterPiece(Job& job) {
  if (job.prompt_done > job.progress && job.prompt_done <= job.request.prompt.size()) {
    job.progress = job.prompt_done;
    Tell(job, [&](RequestSink& sink) {
      sink.Progress(static_cast<int>(job.prompt_done), static_cast<int>(job.request.prompt.size()));
    });
  }
  if (job.checkpoint_at > 0 && job.prompt_done == job.checkpoint_at) Checkpoint(job);
  if (IsTurnEnd(job, job.prompt_done)) return BeginTurnEnd(job);
  if (job.prompt_done < job.text.size()) return;
  TellRows(job);
  if (BeginCompression(job)) return;
  if (job.compresses) (void)SettleBudget(job);  // it holds no more than it may
  StartGenerating(job);
}

void SchedulerImpl::StartGenerating(Job& job) {
  job.generates = true;
  if (const Status status = ForkChoices(job); !status) {
    Fail(job, status.error());
    return;
  }
  // Ending the first one last: its sequence rests.
  for (auto choice = job.choices.rbegin(); choice != job.choices.rend(); ++choice) {
    if (choice->generator->done()) EndChoice(job, *choice, true);
  }
}

// The first choice has what was promised to all of them.
Status SchedulerImpl::ForkChoices(Job& job) {
  if (job.choices.size() < 2) return {};
  const SequenceId first = job.choices.front().sequence;
  const size_t ceiling = job.options.ceiling_bytes;
  PITH_RETURN_IF_ERROR(engine_->SetBudget(first, job.bytes.fork_floor, ceiling));
  for (Choice& choice : job.choices) {
    if (choice.index == 0 || choice.generator->done()) continue;
    Result<SequenceId> fork = engine_->Fork(first);
    while (!fork && DropPrefix()) fork = engine_->Fork(first);
    if (!fork) return tl::unexpected<Error>(fork.error());
    choice.sequence = *fork;
    Hold(job, *fork);
  }
  return engine_->SetBudget(first, job.bytes.floor, ceiling);
}

void SchedulerImpl::Say(Job& job, Choice& choice, std::string text) {
  const GenerationResult& result = choice.generator->result();
  std::vector<int32_t> tokens(result.tokens.begin() + static_cast<std::ptrdiff_t>(choice.num_told),
                              result.tokens.end());
  std::vector<TokenLogprobs> logprobs;
  if (!result.logprobs.empty()) {
    logprobs.assign(result.logprobs.begin() + static_cast<std::ptrdiff_t>(choice.num_told), result.logprobs.end());
  }
  choice.num_told = result.tokens.size();
  if (text.empty() && tokens.empty()) return;
  Tell(job, [&](RequestSink& sink) {
    sink.Text(choice.index, std::move(text), std::move(tokens), std::move(logprobs));
  });
}

void SchedulerImpl::Sample(Job& job, Choice& choice, std::span<const float> logits) {
  if (job.failure || choice.generator->done()) return;
  Result<GeneratorStep> step = choice.generator->Next(logits);
  if (!step) {
    job.failure = step.error();
    return;
  }
  const auto now = SteadyClock::now();
  const bool sampled = choice.generator->result().tokens.size() > choice.num_told;
  if (sampled) {
    if (choice.num_told == 0) {
      choice.first_token = now;
      if (choice.index == 0) Observe(counters_.first_token_seconds, SecondsBetween(job.submitted, now));
    } else {
      Observe(counters_.token_gap_seconds, SecondsBetween(choice.last_token, now));
    }
    choice.last_token = now;
    ++counters_.completion_tokens;
    ++job.usage.completion_tokens;
    choice.next = step->token;
  }
  std::string text = std::move(step->text);
  const size_t read = job.text.size() + choice.num_fed - job.num_generated_before;
  if (!step->done && read >= static_cast<size_t>(engine_->options().num_ctx)) {
    text += choice.generator->Finish(StopReason::kContext);
  }
  Say(job, choice, std::move(text));
}

void SchedulerImpl::Observe(Histogram& histogram, double value) {
  const auto bucket = std::ranges::lower_bound(histogram.bounds, value) - histogram.bounds.begin();
  ++histogram.counts[static_cast<size_t>(bucket)];
  histogram.sum += value;
}

void SchedulerImpl::EndChoice(Job& job, Choice& choice, bool rests) {
  if (choice.index == 0) Report(job, choice);
  if (choice.sequence >= 0)
    counters_.longest_tokens = std::max(counters_.longest_tokens, engine_->num_tokens(choice.sequence));
  GenerationResult result = choice.generator->result();
  result.stop_message = choice.stop_message;
  if (choice.num_fed < result.tokens.size()) result.unfed = result.tokens.back();
  if (!result.tokens.empty()) {
    result.first_token_seconds = SecondsBetween(job.started, choice.first_token);
    result.seconds = SecondsBetween(choice.first_token, choice.last_token);
  }
  if (choice.sequence >= 0) {
    if (choice.index == 0 && rests && job.request.reuse_prefix && options_.max_retained > 0) {
      Rest(job, choice);
    } else {
      Release(job, std::exchange(choice.sequence, -1));
    }
  }
  room_changed_ = true;
  choice.ended = true;
  Tell(job, [&](RequestSink& sink) { sink.Ended(choice.index, std::move(result)); });
  if (std::ranges::all_of(job.choices, &Choice::ended)) FinishJob(job);
}

void SchedulerImpl::FinishJob(Job& job) {
  const auto now = SteadyClock::now();
  const RequestTimes times{.queued = SecondsBetween(job.submitted, job.started),
                           .prompt = SecondsBetween(job.started, job.first_logits),
                           .generation = SecondsBetween(job.first_logits, now)};
  ++counters_.finished;
  job.finished = true;
  Publish();  // who asks after the answer finds it finished
  Tell(job, [&](RequestSink& sink) { sink.Finished(job.usage, times, job.cache); });
  Remove(job);
}

// [start, end) of what no layer and head holds.
void SchedulerImpl::Report(Job& job, const Choice& choice) {
  if (choice.sequence < 0) return;
  const SequenceStats stats = engine_->stats(choice.sequence);
  CacheReport& report = job.cache;
  report = {.budget_bytes = stats.ceiling_bytes,
            .used_bytes = stats.used_bytes,
            .kept_fraction = stats.kept_fraction,
            .evicted_spans = {},
            .held_heads = {},
            .layers = {},
            .format = stats.format.Name(),
            .recipe = stats.recipe,
            .compress = job.compresses ? CompressMode::kAfter : CompressMode::kBlock,
            .slot = choice.slot};
  const int64_t dropped = stats.entries_seen - stats.entries;
  if (dropped > job.dropped_before) {
    const bool is_named = evicted_by_recipe_.contains(stats.recipe) || evicted_by_recipe_.size() < kMostNamed;
    evicted_by_recipe_[is_named ? stats.recipe : "others"] += static_cast<uint64_t>(dropped - job.dropped_before);
  }
  if (dropped <= 0 && !job.request.reports_positions) return;
  std::vector<uint16_t> held(static_cast<size_t>(stats.num_tokens), 0);
  int global = 0;
  for (const LayerShape& layer : engine_->model().info().layers) {
    if (layer.kind != LayerKind::kGlobal) continue;
    CacheReport::Layer of_layer{.num_heads = layer.num_kv_heads, .entries = 0, .held = {}};
    if (job.request.reports_layers) of_layer.held.assign(held.size(), 0);
    for (int head = 0; head < layer.num_kv_heads; ++head) {
      for (const int32_t position : engine_->EntryPositions(choice.sequence, global, head)) {
        ++held[static_cast<size_t>(position)];
        ++of_layer.entries;
        if (of_layer.held.empty()) continue;
        uint8_t& count = of_layer.held[static_cast<size_t>(position)];
        if (count < UINT8_MAX) ++count;
      }
    }
    if (job.request.reports_layers) report.layers.push_back(std::move(of_layer));
    report.num_heads += layer.num_kv_heads;
    ++global;
  }
  if (global == 0) return;
  for (int32_t at = 0; at < stats.num_tokens;) {
    int32_t end = at;
    while (end < stats.num_tokens && held[static_cast<size_t>(end)] == 0) ++end;
    if (end > at) {
      report.evicted_spans.emplace_back(at, end);
      report.evicted_tokens += end - at;
    }
    at = end + 1;
  }
  if (job.request.reports_positions) report.held_heads = std::move(held);
}

}  // namespace pith::server
