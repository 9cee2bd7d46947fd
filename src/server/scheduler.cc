// The scheduler's thread, and how others talk to it.
#include "server/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <future>
#include <utility>

#include "server/scheduler_impl.h"

namespace pith::server {
namespace {

// Upper bounds in seconds.
const std::vector<double> kFirstTokenBounds = {0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100};
const std::vector<double> kGapBounds = {0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5};

// Statistics are asked for by people; making them for each token of a small model would take a hundredth of its time.
constexpr double kPublishSeconds = 0.02;

Histogram MakeHistogram(const std::vector<double>& bounds) {
  return {.bounds = bounds, .counts = std::vector<uint64_t>(bounds.size() + 1, 0)};
}

}  // namespace

void ReserveSequences(const SchedulerOptions& options, EngineOptions* engine) {
  engine->max_sequences = options.max_running;
  // What is taken over is held beside what takes it: a server of one slot could do none of it in one context's bytes.
  if (options.cache_reuse > 0 && engine->budget_bytes == 0) ++engine->max_sequences;
  // One more: a fork of a prefix is there before the prefix goes.
  engine->resting_sequences = options.max_retained > 0 ? options.max_retained + 1 : 0;
}

Result<std::unique_ptr<Scheduler>> Scheduler::Create(std::shared_ptr<Engine> engine,
                                                     std::shared_ptr<const TextModel> text,
                                                     const SchedulerOptions& options) {
  if (options.max_running < 1) return InvalidArgument("a server runs at least one sequence at a time");
  if (options.max_waiting < 1) return InvalidArgument("the queue of a server holds at least one request");
  if (!(options.prompt_share > 0 && options.prompt_share <= 1)) {
    return InvalidArgument("the share of prompts is above 0 and at most 1");
  }
  if (!(options.overtaking_seconds >= 0)) return InvalidArgument("seconds of overtaking are at least 0");
  if (engine->options().max_sequences < options.max_running) {
    return InvalidArgument(fmt::format("the engine runs {} sequences, fewer than the {} of the server",
                                       engine->options().max_sequences, options.max_running));
  }
  if (engine->block_tokens() < options.max_running) {
    return InvalidArgument(fmt::format("a step of the engine has {} rows, fewer than the {} sequences of the server",
                                       engine->block_tokens(), options.max_running));
  }
  auto scheduler = std::make_unique<SchedulerImpl>(std::move(engine), std::move(text), options);
  scheduler->Start();
  return std::unique_ptr<Scheduler>(std::move(scheduler));
}

SchedulerImpl::SchedulerImpl(std::shared_ptr<Engine> engine, std::shared_ptr<const TextModel> text,
                             const SchedulerOptions& options)
    : engine_(std::move(engine)),
      text_(std::move(text)),
      options_(options),
      slots_(static_cast<size_t>(options.max_running), nullptr),
      pacer_(options.prompt_share, engine_->block_tokens()) {
  total_bytes_ = UncommittedBytes();
  whole_recipe_ = ParseRecipe(engine_->options().recipe.text).value_or(engine_->options().recipe);
  counters_.first_token_seconds = MakeHistogram(kFirstTokenBounds);
  counters_.token_gap_seconds = MakeHistogram(kGapBounds);
  Publish();
}

void SchedulerImpl::Start() {
  thread_ = std::thread([this] { Run(); });
}

SchedulerImpl::~SchedulerImpl() {
  std::vector<JobPtr> jobs;
  {
    const std::lock_guard lock(mutex_);
    stops_ = drains_ = true;
    for (auto& [id, job] : jobs_) jobs.push_back(job);
  }
  for (const JobPtr& job : jobs) StopSteps(*job);
  wake_.notify_all();
  thread_.join();
}

void SchedulerImpl::StopSteps(Job& job) {
  const std::lock_guard lock(job.mutex);
  for (const SequenceId sequence : job.live) engine_->Cancel(sequence);
}

Result<RequestId> SchedulerImpl::Submit(Request request, std::shared_ptr<RequestSink> sink) {
  const size_t num_ctx = static_cast<size_t>(engine_->options().num_ctx);
  if (request.prompt.empty()) return InvalidArgument("the prompt is empty");
  if (request.num_pinned > request.prompt.size()) return InvalidArgument("more tokens are pinned than the prompt has");
  if (request.num_choices < 1 || request.num_choices > options_.max_running) {
    return InvalidArgument(fmt::format("{} choices were asked for; between 1 and {} are possible", request.num_choices,
                                       options_.max_running));
  }
  if (request.slot >= options_.max_running) return InvalidArgument(fmt::format("there is no slot {}", request.slot));
  for (const int32_t token : request.prompt) {
    if (token < 0 || token >= engine_->model().info().num_vocab)
      return InvalidArgument(fmt::format("there is no token {}", token));
  }
  if (request.prompt.size() > num_ctx) {
    return OutOfContext(
        fmt::format("the prompt has {} tokens, more than the context of {}", request.prompt.size(), num_ctx));
  }
  auto job = std::make_shared<Job>();
  for (int i = 0; i < request.num_choices; ++i) {
    SamplerOptions sampling = request.sampling;
    sampling.seed += static_cast<uint32_t>(i);
    Choice& choice = job->choices.emplace_back();
    choice.index = i;
    PITH_ASSIGN_OR_RETURN(choice.sampler, HostSampler::Create(engine_->model(), sampling));
    GeneratorOptions generation = request.generation;
    Sampler sampler = request.tells_sampled && generation.num_logprobs >= 0
                          ? SampleAndTellBy(*choice.sampler, generation)
                          : SampleBy(*choice.sampler);
    choice.generator.emplace(*text_, std::move(sampler), std::move(generation));
  }
  job->request = std::move(request);
  job->sink = std::move(sink);
  job->submitted = SteadyClock::now();
  job->usage.prompt_tokens = static_cast<int>(job->request.prompt.size());
  {
    const std::lock_guard lock(mutex_);
    const bool full = num_waiting_ >= static_cast<size_t>(options_.max_waiting);
    if (drains_ || full) {
      ++num_refused_;
      return Busy(drains_ ? std::string("the server is shutting down")
                          : fmt::format("{} requests are waiting already; try again later", num_waiting_));
    }
    job->id = next_id_++;
    ++num_waiting_;
    jobs_.emplace(job->id, job);
    inbox_.push_back(job);
  }
  wake_.notify_all();
  return job->id;
}

void SchedulerImpl::Cancel(RequestId request) {
  JobPtr job;
  {
    const std::lock_guard lock(mutex_);
    const auto found = jobs_.find(request);
    if (found == jobs_.end()) return;
    job = found->second;
  }
  {
    const std::lock_guard lock(job->mutex);
    job->cancelled = true;
    StopSteps(*job);
  }
  {
    const std::lock_guard lock(mutex_);
    has_cancels_ = true;
  }
  wake_.notify_all();
}

SchedulerStats SchedulerImpl::stats() {
  const std::lock_guard lock(mutex_);
  SchedulerStats stats = published_;
  stats.waiting = static_cast<int>(num_waiting_);
  stats.refused = num_refused_;
  stats.cancelled = num_cancelled_;
  if (options_.store != nullptr) stats.store = options_.store->store().stats();
  return stats;
}

void SchedulerImpl::Drain(double seconds) {
  std::unique_lock lock(mutex_);
  drains_ = true;
  const auto all_gone = [this] { return jobs_.empty(); };
  // Beyond this the sum of times would overflow.
  const auto patience = std::chrono::duration<double>(std::clamp(seconds, 0.0, 1e8));
  if (idle_.wait_for(lock, patience, all_gone)) return;
  std::vector<JobPtr> jobs;
  for (auto& [id, job] : jobs_) jobs.push_back(job);
  lock.unlock();  // a sink that is being called may want it
  for (const JobPtr& job : jobs) StopSteps(*job);
  lock.lock();
  commands_.push_back([this] { FailAll({ErrorCode::kCancelled, "the server is shutting down"}); });
  wake_.notify_all();
  idle_.wait(lock, all_gone);
}

void SchedulerImpl::Run() {
  while (TakeInbox()) {
    DropCancelled();
    AdmitWaiting();
    StepOnce();
    const bool is_over = running_.empty() && waiting_.empty();
    if (is_over || SecondsBetween(published_at_, SteadyClock::now()) > kPublishSeconds) Publish();
  }
  FailAll({ErrorCode::kCancelled, "the server is shutting down"});
  while (DropPrefix()) {
  }
  Publish();
}

bool SchedulerImpl::IsIdle() {
  const std::lock_guard lock(mutex_);
  return !stops_ && !has_cancels_ && inbox_.empty() && commands_.empty() && waiting_.empty() && running_.empty();
}

bool SchedulerImpl::TakeInbox() {
  std::vector<JobPtr> fresh;
  for (;;) {
    std::function<void()> command;
    while (IsIdle() && KeepOneInStore()) {
    }
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] {
        return stops_ || has_cancels_ || !inbox_.empty() || !commands_.empty() || !waiting_.empty() ||
               !running_.empty();
      });
      fresh.swap(inbox_);
      if (!commands_.empty()) {
        command = std::move(commands_.front());
        commands_.pop_front();
      } else if (stops_) {
        for (JobPtr& job : fresh) waiting_.push_back(std::move(job));
        return false;
      }
    }
    for (const JobPtr& job : fresh) Intake(job);
    fresh.clear();
    if (!command) return true;
    command();
    Publish();
    // One for each step: who asks again and again does not hold up those who write.
    if (!running_.empty()) return true;
  }
}

void SchedulerImpl::DropCancelled() {
  {
    const std::lock_guard lock(mutex_);
    if (!has_cancels_) return;
    has_cancels_ = false;
  }
  std::vector<JobPtr> gone;
  const auto collect = [&](const auto& jobs) {
    for (const JobPtr& job : jobs) {
      if (job->is_cancelled()) gone.push_back(job);
    }
  };
  collect(waiting_);
  collect(running_);
  for (const JobPtr& job : gone) DropLeft(*job);
}

void SchedulerImpl::DropLeft(Job& job) {
  {
    const std::lock_guard lock(mutex_);
    ++num_cancelled_;
  }
  Remove(job);
}

void SchedulerImpl::FailAll(const Error& error) {
  std::vector<JobPtr> all(waiting_.begin(), waiting_.end());
  all.insert(all.end(), running_.begin(), running_.end());
  for (const JobPtr& job : all) Fail(*job, error);
}

void SchedulerImpl::Fail(Job& job, const Error& error) {
  Tell(job, [&](RequestSink& sink) { sink.Failed(error); });
  ++counters_.failed;
  Remove(job);
}

void SchedulerImpl::Remove(Job& job) {
  DropDonor(job);
  for (Choice& choice : job.choices) {
    if (choice.sequence >= 0) Release(job, choice.sequence);
    choice.sequence = -1;
    if (choice.slot >= 0) slots_[static_cast<size_t>(choice.slot)] = nullptr;
    choice.slot = -1;
  }
  room_changed_ = true;
  const auto is_it = [&](const JobPtr& other) { return other.get() == &job; };
  const RequestId id = job.id;
  JobPtr last;  // outlives what follows
  {
    const std::lock_guard lock(mutex_);
    const auto found = jobs_.find(id);
    if (found != jobs_.end()) last = found->second;
    jobs_.erase(id);
    if (std::erase_if(waiting_, is_it) > 0) --num_waiting_;
    if (jobs_.empty()) idle_.notify_all();
  }
  std::erase_if(running_, is_it);
}

void SchedulerImpl::Publish() {
  SchedulerStats now = counters_;
  now.kv = engine_->stats();
  for (size_t i = 0; i < slots_.size(); ++i) now.slots.push_back({.id = static_cast<int>(i)});
  for (const JobPtr& job : running_) {
    if (job->finished) continue;
    for (const Choice& choice : job->choices) {
      if (choice.slot < 0) continue;
      SlotState& slot = now.slots[static_cast<size_t>(choice.slot)];
      slot.processing = true;
      slot.request = job->id;
      slot.prompt_tokens = job->usage.prompt_tokens;
      slot.prompt_done = std::min(static_cast<int>(job->prompt_done), slot.prompt_tokens);
      slot.completion_tokens = static_cast<int>(choice.generator->result().tokens.size());
      if (choice.sequence < 0) continue;
      slot.kv_bytes = engine_->stats(choice.sequence).used_bytes;
      now.live_bytes += slot.kv_bytes;
      ++now.live_sequences;
    }
  }
  for (const Prefix& prefix : prefixes_.prefixes()) {
    now.retained_bytes += prefix.bytes;
    if (prefix.slot < 0 || prefix.checkpoint) continue;
    SlotState& slot = now.slots[static_cast<size_t>(prefix.slot)];
    slot.retained = true;
    slot.retained_tokens = static_cast<int>(prefix.tokens.size());
    if (!slot.processing) slot.kv_bytes = prefix.bytes;
  }
  now.retained_sequences = static_cast<int>(prefixes_.size());
  now.evicted_entries.assign(evicted_by_recipe_.begin(), evicted_by_recipe_.end());
  published_at_ = SteadyClock::now();
  const std::lock_guard lock(mutex_);
  published_ = std::move(now);
}

}  // namespace pith::server
