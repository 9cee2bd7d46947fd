#include "cli/terminal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <utility>

namespace pith::cli {
namespace {

std::atomic<int> g_interrupts{0};
std::atomic<Engine*> g_engine{nullptr};
std::atomic<bool> g_exit_at_once{false};
std::atomic<void (*)()> g_undo{nullptr};
static_assert(std::atomic<Engine*>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

// Only what is allowed in a signal handler: lock-free atomics, write, _exit.
void OnInterrupt(int) {
  if (g_exit_at_once.load() || g_interrupts.fetch_add(1) > 0) {
    constexpr char kNewline = '\n';
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, &kNewline, 1);
    if (auto* undo = g_undo.load()) undo();
    ::_exit(kExitInterrupted);
  }
  if (Engine* engine = g_engine.load()) engine->Cancel();
}

std::string Duration(double seconds) {
  const auto whole = static_cast<long>(seconds + 0.5);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{}:{:02} min", whole / 60, whole % 60);
  return fmt::format("{}:{:02} h", whole / 3600, whole / 60 % 60);
}

}  // namespace

void HoldStandardStreams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(stream, F_GETFD) >= 0) continue;
    // The lowest free number is this one. Opened the wrong way round, so that it goes on refusing what it is there for.
    if (::open("/dev/null", stream == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0) return;
  }
}

void InstallInterruptHandler() {
  struct sigaction action {};
  action.sa_handler = OnInterrupt;
  ::sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

bool Interrupted() { return g_interrupts.load() > 0; }
void ClearInterrupt() { g_interrupts.store(0); }

CancelOnInterrupt::CancelOnInterrupt(Engine& engine) {
  engine.ClearCancel();
  g_engine.store(&engine);
  if (Interrupted()) engine.Cancel();
}
CancelOnInterrupt::~CancelOnInterrupt() { g_engine.store(nullptr); }

void OnExitBySignal(void (*undo)()) { g_undo.store(undo); }

ExitOnInterrupt::ExitOnInterrupt() { g_exit_at_once.store(true); }
ExitOnInterrupt::~ExitOnInterrupt() { g_exit_at_once.store(false); }

ProgressLine::ProgressLine(std::string label, bool forced)
    : label_(std::move(label)), terminal_(::isatty(STDERR_FILENO) != 0) {
  enabled_ = forced || terminal_;
}

ProgressLine::~ProgressLine() {
  if (drawn_ && terminal_) std::fputs("\r\x1b[K", stderr);
}

void ProgressLine::Update(double done, double total, std::string_view note) {
  if (!enabled_ || total <= 0) return;
  const auto now = Clock::now();
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const double since = std::chrono::duration<double>(now - last_).count();
  if (elapsed < 1 || (drawn_ && since < (terminal_ ? 0.1 : 2.0))) return;
  last_ = now;
  drawn_ = true;
  const double share = std::clamp(done / total, 0.0, 1.0);
  std::string line = fmt::format("{} {:3.0f}%", label_, 100 * share);
  if (share > 0) line += fmt::format(", {} left", Duration(elapsed * (1 - share) / share));
  if (!note.empty()) line += fmt::format(", {}", note);
  // Without a terminal (--progress) one line after the other.
  const std::string text = terminal_ ? fmt::format("\r{}\x1b[K", line) : fmt::format("{}\n", line);
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace pith::cli
