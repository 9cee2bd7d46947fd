#include "base/thread_governor.h"

#include <algorithm>
#include <ctime>

#include "base/crowd.h"

namespace pith {

namespace {

class SystemClock final : public StepClock {
 public:
  double Wall() override { return Read(CLOCK_MONOTONIC); }
  double Cpu() override { return Read(CLOCK_PROCESS_CPUTIME_ID); }

 private:
  static double Read(clockid_t id) {
    timespec now = {};
    clock_gettime(id, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }
};

}  // namespace

StepClock& SystemStepClock() {
  static SystemClock clock;
  return clock;
}

ThreadGovernor::ThreadGovernor(int most, int least, const GovernorPace& pace)
    : most_(most), least_(least), pace_(pace), threads_(most), pause_up_(pace.first_pause), pause_down_(pace.window) {
  if (least == most) return;
  const Crowd::Advice advice = Crowd::OfProcess().Advise(most);
  threads_ = std::max(least, most - advice.fewer);
  for (int i = 0; i < advice.vain; ++i) pause_up_ = std::min(2 * pause_up_, pace.longest_pause);
  // What nobody has tried may be wrong: that is soon found out.
  if (advice.vain < 0) since_ = pause_up_ - pace.window;
}

// A quarter of one thread's time is missing.
bool ThreadGovernor::crowded() const { return cpu_ < wall_ * (threads_ - 0.25); }

void ThreadGovernor::Try(int threads) {
  before_ = threads_;
  time_before_ = time_per_work();
  threads_ = threads;
}

void ThreadGovernor::EndTry() {
  const bool fewer = threads_ < before_;
  const bool better = time_per_work() < kGain * time_before_;
  quiet_until_ = fewer && !better ? pause_down_ : 0;
  if (fewer) {
    pause_down_ = better ? pace_.window : std::min(2 * pause_down_, pace_.longest_pause);
    drop_ = better ? 1 : std::min(2 * drop_, most_);
  } else {
    pause_up_ = better ? pace_.first_pause : std::min(2 * pause_up_, pace_.longest_pause);
  }
  if (!better) threads_ = before_;
  // That fewer are no better says nothing of one more.
  if (!fewer || better) Crowd::OfProcess().Settle(most_ - threads_, !fewer && !better);
  before_ = 0;
  since_ = 0;
}

void ThreadGovernor::Step(double wall_seconds, double cpu_seconds, double work) {
  if (least_ == most_) return;
  wall_ += wall_seconds;
  cpu_ += cpu_seconds;
  work_ += work;
  ++steps_;
  ++since_;
  const bool more = before_ > 0 && threads_ > before_;
  // A try of one more that has already taken the time of a whole window is over.
  const bool hopeless = more && wall_ * steps_ > pace_.window * time_before_ * work_;
  if (steps_ < (more ? pace_.short_window : pace_.window) && !hopeless) return;
  if (before_ > 0) {
    EndTry();
  } else if (threads_ < most_ && since_ >= pause_up_) {
    Try(threads_ + 1);
  } else if (threads_ > least_ && since_ >= quiet_until_ && crowded()) {
    Try(std::max(threads_ - drop_, least_));
  }
  steps_ = 0;
  wall_ = cpu_ = work_ = 0;
}

}  // namespace pith
