// Requests for embeddings to a model that gives nothing else: one text after the other, on a thread of its own.
#ifndef PITH_SERVER_EMBEDDING_SCHEDULER_H_
#define PITH_SERVER_EMBEDDING_SCHEDULER_H_

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "host/embedding_context.h"
#include "server/scheduler.h"

namespace pith::server {

class EmbeddingScheduler final : public Scheduler {
 public:
  // `model` was loaded for embeddings. max_waiting: requests in the queue; more are refused.
  static Result<std::unique_ptr<EmbeddingScheduler>> Create(std::shared_ptr<const HostModel> model, int num_threads,
                                                            int max_waiting);
  ~EmbeddingScheduler() override;

  int num_ctx() const { return context_->num_ctx(); }

  Result<RequestId> Submit(Request request, std::shared_ptr<RequestSink> sink) override;
  void Cancel(RequestId request) override;
  SchedulerStats stats() override;
  Result<SavedSlot> SaveSlot(int slot, const std::string& file_name) override;
  Result<SavedSlot> RestoreSlot(int slot, const std::string& file_name) override;
  Result<SlotToken> TokenInSlot(int slot, int position, const std::string& tenant) override;
  Result<int> EraseSlot(int slot) override;
  void Drain(double seconds) override;

 private:
  struct Job {
    RequestId id = 0;
    Request request;
    std::shared_ptr<RequestSink> sink;
    std::recursive_mutex mutex;  // held while its sink is called
    bool cancelled = false;
  };

  EmbeddingScheduler(std::shared_ptr<const HostModel> model, std::unique_ptr<EmbeddingContext> context,
                     int max_waiting);
  void Run();
  void Embed(Job& job);

  const std::shared_ptr<const HostModel> model_;
  const std::unique_ptr<EmbeddingContext> context_;
  const int max_waiting_;
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  std::deque<std::shared_ptr<Job>> waiting_;
  std::shared_ptr<Job> running_;
  RequestId next_id_ = 1;
  bool drains_ = false, stops_ = false;
  SchedulerStats stats_;
  std::thread thread_;
};

}  // namespace pith::server

#endif  // PITH_SERVER_EMBEDDING_SCHEDULER_H_
