// How many threads decode the next token where other processes want the cores too.
//
// ggml's threads wait for each other at every node of a graph, so that one thread that loses its core stops them all:
// with one busy process on two cores, two threads are slower by far than one. Nothing tells how the machine will be
// shared, so the governor tries:
//
//   steady   -- a window of steps got less CPU time than its threads would take --> try fewer threads
//   try      -- a window later: the faster of the two goes on; what was tried in vain is tried again later and later
//   reduced  -- every so many steps --> try one thread more, a short window
//
// Undisturbed threads get all of their time, so that nothing is tried and nothing lost. What is computed does not
// depend on the number (kernels::AttentionTask::num_parts).
#ifndef PITH_ENGINE_THREAD_GOVERNOR_H_
#define PITH_ENGINE_THREAD_GOVERNOR_H_

namespace pith {

// Seconds, from any start.
class StepClock {
 public:
  virtual ~StepClock() = default;
  virtual double Wall() = 0;
  virtual double Cpu() = 0;  // of all threads of the process
};

class ThreadGovernor {
 public:
  // most: threads while nothing disturbs. enabled: false: always so many.
  explicit ThreadGovernor(int most, bool enabled = true);

  int threads() const { return threads_; }
  // After a step on threads() threads.
  void Step(double wall_seconds, double cpu_seconds);

 private:
  static constexpr int kWindow = 8;        // steps that are judged together
  static constexpr int kShortWindow = 3;   // of a try of one thread more, which is slow where it is in vain
  static constexpr int kFirstPause = 32;   // steps until one more is tried, doubled each time that it was in vain
  static constexpr int kLongestPause = 512;
  static constexpr double kGain = 0.92;    // of the time per step that a change must promise

  bool crowded() const;
  void Try(int threads);
  void EndTry();

  const int most_;
  const int least_;
  int threads_;
  int before_ = 0;         // threads that a try is compared with; 0: nothing is being tried
  double time_before_ = 0;
  int pause_up_ = kFirstPause, pause_down_ = kWindow;  // steps before the next try
  int drop_ = 1;           // threads fewer that it takes: doubled where that was in vain, for several busy processes
  int since_ = 0;          // steps since the last try
  int quiet_until_ = 0;    // since_ from which one fewer may be tried
  int steps_ = 0;          // of the window
  double wall_ = 0, cpu_ = 0;
};

}  // namespace pith

#endif  // PITH_ENGINE_THREAD_GOVERNOR_H_
