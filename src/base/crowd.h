// What thread governors of one process tell each other.
//
// An engine, libllama beside it and the next engine each would learn anew that other processes take cores, at the price
// of steps that take several times as long: a short prompt is one block, and over before anything is learnt. So a
// governor begins where the last one that tried has settled, and as rarely tries one thread more; the first of a
// process begins with the processors that nobody else is running on.
#ifndef PITH_BASE_CROWD_H_
#define PITH_BASE_CROWD_H_

#include <functional>
#include <mutex>
#include <string>
#include <utility>

#include "base/thread_governor.h"

namespace pith {

class Crowd {
 public:
  // Processors that other processes run on beyond those that `threads` of ours leave free.
  using Look = std::function<int(int threads)>;
  explicit Crowd(Look look, StepClock& clock = SystemStepClock()) : look_(std::move(look)), clock_(&clock) {}

  // The process's own, which looks at the system.
  static Crowd& OfProcess();

  // How a governor of `most` threads begins.
  struct Advice {
    int fewer = 0;  // threads than `most`
    int vain = -1;  // tries of one thread more that were in vain, in a row; -1: nobody has tried
  };
  // By what was settled within the last kMemory seconds, else by a look, which counts for no more than half of the
  // threads, as it may have come at a bad moment.
  Advice Advise(int most) const;

  // A try has ended: so many threads fewer than asked for are best. Any thread.
  void Settle(int fewer, bool in_vain);

  static constexpr double kMemory = 10;

 private:
  const Look look_;
  StepClock* const clock_;
  mutable std::mutex mutex_;
  Advice settled_;    // by mutex_
  double since_ = 0;  // by mutex_
};

// What `threads` threads would wait for: threads of other processes that are running or could, by /proc below `root`,
// beyond the processors that `threads` leave free. The least of a few looks; 0 where there is no such file.
int RunningInTheWay(int threads, int num_processors, const std::string& root = "");

}  // namespace pith

#endif  // PITH_BASE_CROWD_H_
