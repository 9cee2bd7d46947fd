#ifndef PITH_BASE_STOPWATCH_H_
#define PITH_BASE_STOPWATCH_H_

#include <chrono>

namespace pith {

// Seconds since construction.
class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace pith

#endif  // PITH_BASE_STOPWATCH_H_
