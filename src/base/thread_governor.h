// How many threads compute the next step, a token or a block of them, where other processes want the cores too.
//
// ggml's threads wait for each other at every node of a graph, so that one thread that loses its core stops them all:
// with one busy process on two cores, two threads are slower by far than one. Nothing tells how the machine will be
// shared, so the governor tries:
//
//   steady   -- a window of steps got less CPU time than its threads would take --> try fewer threads
//   try      -- a window later: the faster of the two goes on; what was tried in vain is tried again later and later
//   reduced  -- every so many steps --> try one thread more, a short window
//
// Undisturbed threads get all of their time, so that nothing is tried and nothing lost. Steps of unequal size are
// compared by their time per unit of work. What is computed must not depend on the number of threads
// (kernels::AttentionTask::num_parts).
#ifndef PITH_BASE_THREAD_GOVERNOR_H_
#define PITH_BASE_THREAD_GOVERNOR_H_

#include <cstddef>

namespace pith {

// Seconds, from any start.
class StepClock {
 public:
  virtual ~StepClock() = default;
  virtual double Wall() = 0;
  virtual double Cpu() = 0;  // of all threads of the process
};

// Of the process: the system's clocks.
StepClock& SystemStepClock();

// Steps until something is decided: few where each is long.
struct GovernorPace {
  int window = 8;         // that are judged together
  int short_window = 3;   // of a try of one thread more, which is slow where it is in vain
  int first_pause = 32;   // until one more is tried, doubled each time that it was in vain
  int longest_pause = 512;
};
inline constexpr GovernorPace kTokenPace{};
inline constexpr GovernorPace kBlockPace{.window = 2, .short_window = 1, .first_pause = 8, .longest_pause = 128};

// Of a block of rows, in rows: reading the weights takes about as long as so many of them.
inline double WorkOf(size_t rows) { return 24 + static_cast<double>(rows); }

class ThreadGovernor {
 public:
  // most, least: threads while nothing disturbs, and below which it never goes. least = most: it is off.
  ThreadGovernor(int most, int least, const GovernorPace& pace);

  int threads() const { return threads_; }
  // After a step on threads() threads.
  void Step(double wall_seconds, double cpu_seconds, double work = 1);

 private:
  static constexpr double kGain = 0.92;  // of the time per unit of work that a change must promise

  bool crowded() const;
  double time_per_work() const { return wall_ / work_; }
  void Try(int threads);
  void EndTry();

  const int most_;
  const int least_;
  const GovernorPace pace_;
  int threads_;
  int before_ = 0;         // threads that a try is compared with; 0: nothing is being tried
  double time_before_ = 0;
  int pause_up_, pause_down_;  // steps before the next try
  int drop_ = 1;           // threads fewer that it takes: doubled where that was in vain, for several busy processes
  int since_ = 0;          // steps since the last try
  int quiet_until_ = 0;    // since_ from which one fewer may be tried
  int steps_ = 0;          // of the window
  double wall_ = 0, cpu_ = 0, work_ = 0;
};

}  // namespace pith

#endif  // PITH_BASE_THREAD_GOVERNOR_H_
