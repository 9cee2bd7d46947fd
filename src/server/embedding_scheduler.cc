#include "server/embedding_scheduler.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include <fmt/format.h>

#include "base/stopwatch.h"

namespace pith::server {

Result<std::unique_ptr<EmbeddingScheduler>> EmbeddingScheduler::Create(std::shared_ptr<const HostModel> model,
                                                                       int num_threads, int max_waiting) {
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<EmbeddingContext> context, EmbeddingContext::Create(*model, num_threads));
  return std::unique_ptr<EmbeddingScheduler>(
      new EmbeddingScheduler(std::move(model), std::move(context), max_waiting));
}

EmbeddingScheduler::EmbeddingScheduler(std::shared_ptr<const HostModel> model,
                                       std::unique_ptr<EmbeddingContext> context, int max_waiting)
    : model_(std::move(model)), context_(std::move(context)), max_waiting_(std::max(max_waiting, 1)) {
  thread_ = std::thread([this] { Run(); });
}

EmbeddingScheduler::~EmbeddingScheduler() {
  Drain(0);
  {
    const std::lock_guard lock(mutex_);
    stops_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

Result<RequestId> EmbeddingScheduler::Submit(Request request, std::shared_ptr<RequestSink> sink) {
  if (request.pooling == EmbeddingPooling::kNone)
    return Unsupported("this model gives embeddings alone, and generates no text");
  if (request.prompt.empty()) return InvalidArgument("the prompt is empty");
  auto job = std::make_shared<Job>();
  job->request = std::move(request);
  job->sink = std::move(sink);
  RequestId id = 0;
  {
    const std::lock_guard lock(mutex_);
    if (drains_ || waiting_.size() >= static_cast<size_t>(max_waiting_)) {
      ++stats_.refused;
      return Busy(drains_ ? std::string("the server is shutting down")
                          : fmt::format("{} requests are waiting already; try again later", waiting_.size()));
    }
    ++stats_.requests;
    id = job->id = next_id_++;
    waiting_.push_back(std::move(job));
  }
  wake_.notify_all();
  return id;
}

void EmbeddingScheduler::Cancel(RequestId request) {
  std::shared_ptr<Job> job;
  {
    const std::lock_guard lock(mutex_);
    if (running_ != nullptr && running_->id == request) job = running_;
    const auto found = std::ranges::find_if(waiting_, [&](const auto& other) { return other->id == request; });
    if (found != waiting_.end()) {
      job = *found;
      waiting_.erase(found);
    }
    if (job == nullptr) return;
    ++stats_.cancelled;
  }
  const std::lock_guard lock(job->mutex);
  job->cancelled = true;
}

SchedulerStats EmbeddingScheduler::stats() {
  const std::lock_guard lock(mutex_);
  SchedulerStats now = stats_;
  now.waiting = static_cast<int>(waiting_.size());
  now.live_sequences = running_ != nullptr ? 1 : 0;
  return now;
}

Result<SavedSlot> EmbeddingScheduler::SaveSlot(int, const std::string&) {
  return Unsupported("this model keeps no cache that could be saved");
}
Result<SavedSlot> EmbeddingScheduler::RestoreSlot(int, const std::string&) {
  return Unsupported("this model keeps no cache that could be restored");
}
Result<SlotToken> EmbeddingScheduler::TokenInSlot(int, int, const std::string&) {
  return NotFound("this model keeps no cache");
}
Result<int> EmbeddingScheduler::EraseSlot(int) { return NotFound("this model keeps no cache"); }

void EmbeddingScheduler::Drain(double seconds) {
  std::deque<std::shared_ptr<Job>> left;
  {
    std::unique_lock lock(mutex_);
    drains_ = true;
    const auto patience = std::chrono::duration<double>(std::clamp(seconds, 0.0, 1e8));
    idle_.wait_for(lock, patience, [this] { return waiting_.empty() && running_ == nullptr; });
    left.swap(waiting_);
    stats_.failed += left.size();
  }
  for (const std::shared_ptr<Job>& job : left) {
    const std::lock_guard lock(job->mutex);
    if (!job->cancelled) job->sink->Failed({ErrorCode::kCancelled, "the server is shutting down"});
  }
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return running_ == nullptr; });
}

void EmbeddingScheduler::Run() {
  for (;;) {
    std::shared_ptr<Job> job;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stops_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      job = running_ = std::move(waiting_.front());
      waiting_.pop_front();
    }
    Embed(*job);
    {
      const std::lock_guard lock(mutex_);
      running_ = nullptr;
    }
    idle_.notify_all();
  }
}

void EmbeddingScheduler::Embed(Job& job) {
  const Stopwatch time;
  const Result<std::vector<float>> embedding = context_->Embed(job.request.prompt);
  const double seconds = time.seconds();
  {
    const std::lock_guard lock(mutex_);
    ++(embedding ? stats_.finished : stats_.failed);
    stats_.prompt_tokens += job.request.prompt.size();
    stats_.prompt_seconds += seconds;
  }
  const std::lock_guard lock(job.mutex);
  if (job.cancelled) return;
  if (!embedding) return job.sink->Failed(embedding.error());
  const RequestUsage usage{.prompt_tokens = static_cast<int>(job.request.prompt.size())};
  job.sink->Started(usage, -1);
  job.sink->Embedding(*embedding);
  GenerationResult none;
  none.stop = StopReason::kLength;
  job.sink->Ended(0, std::move(none));
  job.sink->Finished(usage, {.queued = 0, .prompt = seconds, .generation = 0}, {});
}

}  // namespace pith::server
