#include "engine/thread_governor.h"

#include <algorithm>

#include "kernels/attention.h"

namespace pith {

// One thread does at most kMaxMembers threads' parts of attention.
ThreadGovernor::ThreadGovernor(int most, bool enabled)
    : most_(most), least_(enabled ? std::max(1, (most + kernels::kMaxMembers - 1) / kernels::kMaxMembers) : most), threads_(most) {}

// A quarter of one thread's time is missing.
bool ThreadGovernor::crowded() const { return cpu_ < wall_ * (threads_ - 0.25); }

void ThreadGovernor::Try(int threads) {
  before_ = threads_;
  time_before_ = wall_ / steps_;
  threads_ = threads;
}

void ThreadGovernor::EndTry() {
  const bool fewer = threads_ < before_;
  const bool better = wall_ / steps_ < kGain * time_before_;
  quiet_until_ = fewer && !better ? pause_down_ : 0;
  if (fewer) {
    pause_down_ = better ? kWindow : std::min(2 * pause_down_, kLongestPause);
    drop_ = better ? 1 : std::min(2 * drop_, most_);
  } else {
    pause_up_ = better ? kFirstPause : std::min(2 * pause_up_, kLongestPause);
  }
  if (!better) threads_ = before_;
  before_ = 0;
  since_ = 0;
}

void ThreadGovernor::Step(double wall_seconds, double cpu_seconds) {
  if (least_ == most_) return;
  wall_ += wall_seconds;
  cpu_ += cpu_seconds;
  ++steps_;
  ++since_;
  const bool more = before_ > 0 && threads_ > before_;
  // A try of one more that has already taken the time of a whole window is over.
  const bool hopeless = more && wall_ > kWindow * time_before_;
  if (steps_ < (more ? kShortWindow : kWindow) && !hopeless) return;
  if (before_ > 0) {
    EndTry();
  } else if (threads_ < most_ && since_ >= pause_up_) {
    Try(threads_ + 1);
  } else if (threads_ > least_ && since_ >= quiet_until_ && crowded()) {
    Try(std::max(threads_ - drop_, least_));
  }
  steps_ = 0;
  wall_ = cpu_ = 0;
}

}  // namespace pith
