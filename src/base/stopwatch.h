#ifndef PITH_BASE_STOPWATCH_H_
#define PITH_BASE_STOPWATCH_H_

#include <chrono>

namespace pith {

using SteadyClock = std::chrono::steady_clock;
inline double SecondsBetween(SteadyClock::time_point from, SteadyClock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// Seconds since construction.
class Stopwatch {
 public:
  double seconds() const { return SecondsBetween(start_, SteadyClock::now()); }

 private:
  SteadyClock::time_point start_ = SteadyClock::now();
};

}  // namespace pith

#endif  // PITH_BASE_STOPWATCH_H_
