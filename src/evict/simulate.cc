#include "evict/simulate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "evict/registry.h"
#include "evict/sidecar.h"

namespace pith::evict {
namespace {

using Clock = std::chrono::steady_clock;

Result<SimulatedRow> Replay(const Trace& trace, const SimulateOptions& options, const std::string& policy,
                            uint64_t capacity) {
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<Evictor> evictor,
                        MakeEvictor(policy, {capacity, trace.num_objects(), &trace}));
  SimulatedRow row;
  row.policy = policy;
  row.capacity = capacity;
  const Clock::time_point start = Clock::now();
  evictor->Replay(trace, options.with_ttl, row.tally);
  const double ns = std::chrono::duration<double, std::nano>(Clock::now() - start).count();
  const auto requests = static_cast<double>(row.tally.requests);
  row.ns_per_request = ns / requests;
  if (const SidecarCounters* const of = evictor->sidecar(); of != nullptr) {
    row.unanswered = of->late + of->wrong + of->absent + of->rested;
    row.asked = of->answered + row.unanswered;
  }
  row.hit_ratio = static_cast<double>(row.tally.hits) / requests;
  row.byte_hit_ratio = trace.total_bytes() == 0
                           ? 0
                           : static_cast<double>(row.tally.hit_bytes) / static_cast<double>(trace.total_bytes());
  return row;
}

// Rows in their places, by whichever thread is free; the first error ends it.
class Jobs {
 public:
  Jobs(const Trace& trace, const SimulateOptions& options)
      : trace_(trace), options_(options), rows_(options.policies.size() * options.capacities.size()) {}

  void Work() {
    for (size_t job = next_++; job < rows_.size() && !failed_; job = next_++) {
      if (options_.stop && options_.stop()) {
        Fail(Error{ErrorCode::kCancelled, "the simulation was stopped"});
        return;
      }
      Result<SimulatedRow> row = Replay(trace_, options_, options_.policies[job / options_.capacities.size()],
                                        options_.capacities[job % options_.capacities.size()]);
      if (row) {
        rows_[job] = std::move(*row);
      } else {
        Fail(std::move(row.error()));
      }
    }
  }

  Result<std::vector<SimulatedRow>> Take() {
    if (error_) return tl::unexpected<Error>(std::move(*error_));
    return std::move(rows_);
  }
  size_t count() const { return rows_.size(); }

 private:
  void Fail(Error error) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);
    failed_ = true;
  }

  const Trace& trace_;
  const SimulateOptions& options_;
  std::vector<SimulatedRow> rows_;
  std::atomic<size_t> next_ = 0;
  std::atomic<bool> failed_ = false;
  std::mutex mutex_;
  std::optional<Error> error_;
};

}  // namespace

Result<std::vector<SimulatedRow>> Simulate(const Trace& trace, const SimulateOptions& options) {
  Jobs jobs(trace, options);
  const size_t workers = std::min<size_t>(jobs.count(), static_cast<size_t>(std::max(1, options.num_threads)));
  std::vector<std::thread> threads;
  for (size_t i = 1; i < workers; ++i) threads.emplace_back([&jobs] { jobs.Work(); });
  jobs.Work();
  for (std::thread& thread : threads) thread.join();
  return jobs.Take();
}

std::vector<uint64_t> CurveCapacities(const Trace& trace, int count) {
  const auto all = static_cast<double>(trace.footprint_bytes());
  std::vector<uint64_t> capacities;
  for (int i = 0; i < count; ++i) {
    const double share = count == 1 ? 1.0 : std::pow(1000.0, static_cast<double>(i) / (count - 1) - 1);
    const auto capacity = static_cast<uint64_t>(std::ceil(all * share));
    if (capacities.empty() || capacities.back() < capacity) capacities.push_back(std::max<uint64_t>(1, capacity));
  }
  return capacities;
}

}  // namespace pith::evict
