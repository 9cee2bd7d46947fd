// The program's manners: Ctrl-C, progress on standard error, the machine's figures.
#ifndef PITH_CLI_TERMINAL_H_
#define PITH_CLI_TERMINAL_H_

#include <fmt/format.h>

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>

#include "base/cores.h"
#include "engine/engine.h"

namespace pith::cli {

inline constexpr int kExitInterrupted = 130;

// Before anything is opened: a standard stream that the caller has closed stays closed for reading or writing, but its
// number is taken, so that no file gets what is said on standard error.
void HoldStandardStreams();

// Said on standard error. What that doesn't take is lost: a command that did its work has not failed.
template <typename... Args>
void Note(fmt::format_string<Args...> format, Args&&... args) {
  const std::string text = fmt::format(format, std::forward<Args>(args)...);
  (void)std::fwrite(text.data(), 1, text.size(), stderr);
}

// From here on the first Ctrl-C (or SIGTERM) makes Interrupted() true and
// cancels the engine under a CancelOnInterrupt, the second ends the program.
void InstallInterruptHandler();
bool Interrupted();
void ClearInterrupt();

// While alive, an interrupt also calls engine.Cancel(). One at a time.
class CancelOnInterrupt {
 public:
  explicit CancelOnInterrupt(Engine& engine);
  ~CancelOnInterrupt();
  CancelOnInterrupt(const CancelOnInterrupt&) = delete;
  CancelOnInterrupt& operator=(const CancelOnInterrupt&) = delete;
};

// While alive, the first interrupt ends the program (waiting for input).
class ExitOnInterrupt {
 public:
  ExitOnInterrupt();
  ~ExitOnInterrupt();
  ExitOnInterrupt(const ExitOnInterrupt&) = delete;
  ExitOnInterrupt& operator=(const ExitOnInterrupt&) = delete;
};

// `undo` runs in the signal handler before an interrupt ends the program, and so may only do what is allowed there.
void OnExitBySignal(void (*undo)());

// One line on standard error, redrawn at most ten times a second and not before
// a second has passed; gone when the object is.
class ProgressLine {
 public:
  // Shown when standard error is a terminal, or if forced.
  ProgressLine(std::string label, bool forced);
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void Update(double done, double total, std::string_view note = {});

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  bool enabled_;
  bool terminal_;
  bool drawn_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_{};
};

}  // namespace pith::cli

#endif  // PITH_CLI_TERMINAL_H_
