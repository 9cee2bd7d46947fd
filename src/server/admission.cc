// Who may begin, and in which bytes.
//
// - The recipe drops entries. Floor: an equal share, or all that its tokens take, if that is less.
// - The recipe drops nothing. Floor: all that its tokens will take.
// - The recipe compresses a whole prompt. Floor: all that the prompt and its second reading take; then (compress.cc)
// what
//   is left and the answer takes.
//
// The ceiling is whatever is there, or what was asked for: of a prompt that is compressed once that is done.
//
// Requests begin by turns (queue_order.h), what had begun before at once. One begins when its floor can be promised.
// Until then it waits, and those behind it too: whoever needs much is not overtaken for ever. Resting prefixes go
// first, then the engine takes back what running sequences have borrowed.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/resolved.h"
#include "kernels/page_layout.h"
#include "server/queue_order.h"
#include "server/scheduler_impl.h"

namespace pith::server {
namespace {

// Shorter ones are read again as fast as they are forked.
constexpr size_t kLeastCheckpoint = 64;
// Tokens.
constexpr size_t kRoomBesidePins = 64;

// Pinned tokens must stay whatever others claim, and a recipe needs some room beside them.
size_t PinnedBytes(const Job& job) {
  const size_t count = job.request.num_pinned;
  return count == 0 ? 0 : job.bytes.Of(count * 5 / 4 + kRoomBesidePins);
}

size_t PagesOf(size_t num_tokens) { return (num_tokens + kPageEntries - 1) / kPageEntries; }

}  // namespace

size_t JobBytes::Of(size_t num_tokens) const {
  return first_page + page * (std::max<size_t>(PagesOf(num_tokens), 1) - 1);
}

size_t JobBytes::MostTokens() const {
  if (limit < first_page) return 0;
  return page == 0 ? SIZE_MAX : ((limit - first_page) / page + 1) * kPageEntries;
}

size_t SchedulerImpl::UncommittedBytes() const {
  const KvStats stats = engine_->stats();
  return stats.budget_bytes - std::min(stats.budget_bytes, stats.used_bytes + stats.promised_bytes);
}

bool SchedulerImpl::DropPrefix() {
  const std::optional<Prefix> victim = prefixes_.TakeVictim();
  if (!victim) return false;
  KeepInStore(*victim);
  engine_->Free(victim->sequence);
  return true;
}

bool SchedulerImpl::MakeRoom(size_t bytes) {
  while (UncommittedBytes() < bytes) {
    if (!DropPrefix()) return false;
  }
  return true;
}

void SchedulerImpl::Hold(Job& job, SequenceId sequence) {
  const std::lock_guard lock(job.mutex);
  job.live.push_back(sequence);
  if (job.cancelled) engine_->Cancel(sequence);
}

void SchedulerImpl::Release(Job& job, SequenceId sequence) {
  const std::lock_guard lock(job.mutex);
  std::erase(job.live, sequence);
  engine_->Free(sequence);
}

void SchedulerImpl::Intake(const JobPtr& job) {
  waiting_.push_back(job);
  room_changed_ = true;
  ++counters_.requests;
  // Its client left before anybody looked for it here.
  if (job->is_cancelled()) return DropLeft(*job);
  job->text = job->request.prompt;
  if (const Status status = PlanJob(*job); !status) return Fail(*job, status.error());
  job->likely_unread = job->text.size() - LikelySavings(*job);
}

double SchedulerImpl::TurnAt(const Job& job) const {
  const bool is_read = job.choices.front().sequence >= 0;
  const size_t unread = is_read ? job.text.size() - job.prompt_done : job.likely_unread;
  return TurnOf(std::chrono::duration<double>(job.submitted.time_since_epoch()).count(),
                static_cast<double>(unread) * pacer_.RowSeconds(), options_.overtaking_seconds);
}

Status SchedulerImpl::PlanJob(Job& job) {
  const Request& request = job.request;
  const EngineOptions& engine = engine_->options();
  job.options = engine;
  if (request.recipe) job.options.recipe = *request.recipe;
  job.options.compress = request.compress.value_or(
      options_.compress_after || NeedsWholePrompt(job.options.recipe) ? CompressMode::kAfter : CompressMode::kBlock);
  if (job.is_by_blocks || job.options.recipe.turns) job.options.compress = CompressMode::kBlock;
  if (job.options.compress == CompressMode::kAfter && !request.recipe) job.options.recipe = whole_recipe_;
  if (request.refuse_eviction) {
    if (job.options.recipe.format) job.options.format = *job.options.recipe.format;
    PITH_ASSIGN_OR_RETURN(job.options.recipe, ParseRecipe("full"));
  }
  job.options.ceiling_bytes = job.bytes.limit = HeldLimit(job);
  EngineOptions settled = engine;
  static_cast<SequenceOptions&>(settled) = job.options;
  PITH_ASSIGN_OR_RETURN(const ResolvedSequence resolved, Resolve(engine_->model().info(), settled));
  job.drops = !resolved.policy().keeps_everything();
  const bool changes = job.drops || resolved.policy().prune() != nullptr ||
                       resolved.recipe.storage.Converts(resolved.formats.entry);
  job.compresses = job.options.compress == CompressMode::kAfter && changes;
  job.drops = job.drops || job.compresses;
  if (job.compresses) job.options.ceiling_bytes = job.bytes.limit = total_bytes_;
  job.key = {.tenant = request.tenant,
             .recipe = job.options.recipe.text,
             .kv_budget_bytes = request.kv_budget_bytes,
             .compress = CompressKeyOf(job)};
  SequenceOptions unlimited = job.options;
  unlimited.ceiling_bytes = total_bytes_;
  const size_t num_ctx = static_cast<size_t>(engine.num_ctx), second = std::min<size_t>(kPageEntries + 1, num_ctx);
  PITH_ASSIGN_OR_RETURN(const Admission one, engine_->Admit(unlimited, 1));
  PITH_ASSIGN_OR_RETURN(const Admission two, engine_->Admit(unlimited, second));
  job.bytes.first_page = one.steady_bytes;
  job.bytes.page = two.steady_bytes - one.steady_bytes;
  job.key.topic = TopicOf(job);
  const size_t prompt = job.text.size(), room = num_ctx - std::min(num_ctx, prompt);
  if (job.compresses) {
    PITH_ASSIGN_OR_RETURN(const Admission whole, engine_->Admit(unlimited, job.text.size()));
    job.bytes.reread = whole.reread_bytes * static_cast<size_t>(2 + job.num_restarts) / 2;
  }
  const bool is_promised_all = (job.drops && !job.compresses) || options_.deterministic_reuse || job.choices.size() > 1;
  const size_t wanted =
      request.generation.max_tokens < 0
          ? (is_promised_all ? room : std::min(kTokensAhead, room))
          : std::min(static_cast<size_t>(request.generation.max_tokens) - job.num_generated_before, room);
  const size_t all = job.bytes.Of(prompt + wanted);
  if (!job.drops && job.bytes.Of(prompt) > job.bytes.limit) {
    const std::string sentence = fmt::format(
        "the prompt has {} tokens, and {:.2f} MiB of KV budget hold {} of them without dropping any", prompt,
        static_cast<double>(job.bytes.limit) / (1 << 20), std::min(job.bytes.MostTokens(), num_ctx));
    return request.refuse_eviction ? Status(OutOfContext(sentence)) : Status(OutOfBudget(sentence));
  }
  const size_t equal = total_bytes_ / static_cast<size_t>(options_.max_running);
  if (job.compresses) {
    job.bytes.floor = std::min(FloorFor(job, 0, prompt), job.bytes.limit);
    job.bytes.fork_floor = std::min(job.bytes.Of(wanted) + 2 * job.bytes.page, job.bytes.floor);
    return {};
  }
  const size_t share = std::max(std::min(equal << (2 * job.num_restarts), total_bytes_), PinnedBytes(job));
  job.bytes.floor = std::max<size_t>(std::min(job.drops ? std::min(all, share) : all, job.bytes.limit), 1);
  job.bytes.fork_floor = job.drops ? std::min(job.bytes.floor, std::max<size_t>(equal, 1))
                                   : std::min(job.bytes.Of(wanted) + 2 * job.bytes.page, job.bytes.floor);
  // The same bytes whoever else is there, so that the same entries stay.
  if (options_.deterministic_reuse && job.drops) {
    job.options.ceiling_bytes = job.bytes.limit =
        request.kv_budget_bytes > 0 ? job.bytes.limit : std::min(equal, job.bytes.limit);
    job.bytes.floor = job.bytes.fork_floor = job.bytes.limit;
  }
  return {};
}

void SchedulerImpl::AdmitWaiting() {
  if (!room_changed_ && !running_.empty()) return;
  room_changed_ = false;
  std::ranges::stable_sort(waiting_, {},
                           [&](const JobPtr& job) { return std::pair(!job->told, job->told ? 0 : TurnAt(*job)); });
  std::vector<JobPtr> passed;  // bound to slots that are busy: others may go before them
  while (!waiting_.empty()) {
    const JobPtr job = waiting_.front();
    const int slot = job->request.slot;
    if (slot >= 0 && slots_[static_cast<size_t>(slot)] != nullptr) {
      passed.push_back(job);
      waiting_.pop_front();
      continue;
    }
    const Verdict verdict = TryAdmit(job);
    if (verdict == Verdict::kWaits) break;
  }
  waiting_.insert(waiting_.begin(), passed.begin(), passed.end());
}

bool SchedulerImpl::TakeSlots(Job& job) {
  const size_t wanted = job.choices.size();
  std::vector<int> free;
  if (job.request.slot >= 0) free.push_back(job.request.slot);
  // Slots whose prefixes are gone first, so that those that rest stay visible longer.
  for (const bool resting : {false, true}) {
    for (int i = 0; i < options_.max_running; ++i) {
      if (slots_[static_cast<size_t>(i)] != nullptr || i == job.request.slot) continue;
      if ((RestingIn(i) >= 0) == resting) free.push_back(i);
    }
  }
  if (free.size() < wanted) return false;
  for (size_t i = 0; i < wanted; ++i) job.choices[i].slot = free[i];
  return true;
}

SchedulerImpl::Verdict SchedulerImpl::TryAdmit(const JobPtr& job) {
  if (!TakeSlots(*job)) return Verdict::kWaits;
  const auto waits = [&] {
    DropDonor(*job);
    for (Choice& choice : job->choices) choice.slot = -1;
    return Verdict::kWaits;
  };
  if (!job->told) job->started = SteadyClock::now();
  SequenceId sequence = TakePrefix(*job);
  if (sequence < 0 && job->compresses && FloorFor(*job, 0, job->text.size()) > job->bytes.limit) {
    // Where the recipe has an alternative that works by blocks, that does.
    job->is_by_blocks = !NeedsWholePrompt(job->options.recipe);
    const Status planned =
        job->is_by_blocks
            ? PlanJob(*job)
            : Status(OutOfBudget(fmt::format("the prompt has {} tokens, and {:.2f} MiB of KV budget do not hold all of "
                                             "them, and what {} takes to compress them",
                                             job->text.size(), static_cast<double>(job->bytes.limit) / (1 << 20),
                                             job->options.recipe.text)));
    if (!planned) {
      for (Choice& choice : job->choices) choice.slot = -1;
      Fail(*job, planned.error());
      return Verdict::kGone;
    }
    sequence = TakePrefix(*job);
  }
  if (sequence < 0) {
    Result<SequenceId> fresh = SequenceFor(*job);
    if (!fresh && job->donor >= 0) {  // in the room that its donor takes
      DropDonor(*job);
      fresh = SequenceFor(*job);
    }
    if (!fresh && fresh.error().code == ErrorCode::kOutOfBudget && !running_.empty()) return waits();
    if (!fresh) {
      Fail(*job, fresh.error());
      return Verdict::kGone;
    }
    sequence = *fresh;
  }
  const SequenceStats before = engine_->stats(sequence);
  job->dropped_before = before.entries_seen - before.entries;
  job->choices.front().sequence = sequence;
  for (const Choice& choice : job->choices) slots_[static_cast<size_t>(choice.slot)] = job.get();
  if (!job->told) {
    const size_t cached = job->prompt_done + TokensOf(job->pieces);
    job->usage.cached_tokens = static_cast<int>(cached);
    counters_.prompt_tokens += job->text.size() - cached;
    counters_.cached_tokens += cached;
  }
  if (job->follows_turn || IsTurnEnd(*job, job->prompt_done)) BeginTurnEnd(*job);
  PlanCheckpoint(*job);
  Hold(*job, sequence);
  std::erase(waiting_, job);
  running_.push_back(job);
  {
    const std::lock_guard lock(mutex_);
    --num_waiting_;
  }
  if (!std::exchange(job->told, true)) {
    Tell(*job, [&](RequestSink& sink) { sink.Started(job->usage, job->choices.front().slot); });
  }
  return Verdict::kAdmitted;
}

// A new one, which is promised what the job's further choices will take, too.
Result<SequenceId> SchedulerImpl::SequenceFor(Job& job) {
  SequenceOptions options = job.options;
  options.floor_bytes = job.bytes.floor;
  // Not the ceiling, which is lent and not promised.
  options.ceiling_bytes = job.bytes.floor;
  const size_t further = (job.choices.size() - 1) * job.bytes.fork_floor;
  for (;;) {
    PITH_ASSIGN_OR_RETURN(const Admission admission,
                          engine_->Admit(options, std::min(job.text.size(), job.bytes.MostTokens())));
    const bool fits = admission.steady_bytes + further <= admission.free_bytes && admission.missing_bytes == 0;
    if (fits && UncommittedBytes() >= job.bytes.floor + further) break;
    if (DropPrefix()) continue;
    if (fits || running_.empty()) break;
    return OutOfBudget("other requests hold the KV budget");
  }
  options.floor_bytes = std::min(job.bytes.floor + further, job.bytes.limit);
  options.ceiling_bytes = job.options.ceiling_bytes;
  Result<SequenceId> made = engine_->NewSequence(options);
  // Its place or its bytes may be a prefix's.
  while (!made && made.error().code == ErrorCode::kOutOfBudget && DropPrefix()) made = engine_->NewSequence(options);
  if (!made || job.key.topic.empty()) return made;
  if (const Status guided = engine_->SetGuide(*made, job.request.guide); !guided) {
    engine_->Free(*made);
    return tl::unexpected<Error>(guided.error());
  }
  return made;
}

void SchedulerImpl::PlanCheckpoint(Job& job) const {
  job.checkpoint_at = 0;
  const bool cuts = options_.store != nullptr && (options_.store->places() || engine_->model().info().window > 0);
  const bool rewinds = !job.drops && !engine_->model().info().hybrid && !cuts;
  if (rewinds || !job.request.reuse_prefix || options_.max_retained < 2) return;
  size_t at = job.request.num_pinned;
  if (const size_t cut = StoredCut(job); cut > 0) at = cut;
  if (options_.deterministic_reuse) at -= at % static_cast<size_t>(engine_->block_tokens());
  if (at < kLeastCheckpoint || at <= job.prompt_done || at >= job.text.size()) return;
  const std::span<const int32_t> front = std::span(job.text).first(at);
  const bool is_there = std::ranges::any_of(prefixes_.prefixes(), [&](const Prefix& prefix) {
    return prefix.checkpoint && prefix.key == job.key && std::ranges::equal(prefix.tokens, front);
  });
  if (!is_there) job.checkpoint_at = at;
}

}  // namespace pith::server
