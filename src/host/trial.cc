#include "host/trial.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "ggml.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PITH_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define PITH_SANITIZED 1
#endif
#endif

namespace pith {
namespace {

constexpr char kSucceeded = 0;
constexpr char kAborted = 1;  // by ggml, with its reason
constexpr char kFailed = 2;   // with an Error: its code is added to this
constexpr size_t kMostReport = 8192;
constexpr int kPollMs = 50;

int report_fd = -1;  // in the child

void Report(char kind, std::string_view text) {
  char buffer[kMostReport];
  buffer[0] = kind;
  const size_t length = text.copy(buffer + 1, sizeof buffer - 1);  // of an empty view too, whose data may be null
  // Smaller than a pipe's buffer, so that it is written at once; if the parent is gone, nobody wants it.
  [[maybe_unused]] const ssize_t written = ::write(report_fd, buffer, length + 1);
}

// "/src/ggml/ggml.c:12: GGML_ASSERT(x) failed" without folders and line ends.
std::string_view WithoutFolders(std::string_view message) {
  message = message.substr(0, message.find('\n'));
  const size_t space = message.find(": ");
  const size_t slash = message.substr(0, space).rfind('/');
  return slash == std::string_view::npos ? message : message.substr(slash + 1);
}

void OnAbortInChild(const char* message) {
  Report(kAborted, WithoutFolders(message));
  _exit(1);
}

void Limit(int resource, rlim_t most) {
  rlimit limit{};
  if (getrlimit(static_cast<__rlimit_resource_t>(resource), &limit) != 0) return;
  limit.rlim_cur = std::min(limit.rlim_cur, most);
  setrlimit(static_cast<__rlimit_resource_t>(resource), &limit);
}

#ifndef PITH_SANITIZED
// Private writable memory of this process, as RLIMIT_DATA counts it; 0 if unknown.
size_t DataBytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) return 0;
  size_t pages = 0;
  const int read = std::fscanf(file, "%*s %*s %*s %*s %*s %zu", &pages);
  std::fclose(file);
  return read == 1 ? pages * static_cast<size_t>(sysconf(_SC_PAGESIZE)) : 0;
}
#endif

[[noreturn]] void RunChild(const TrialLimits& limits, const std::function<Status()>& work) {
#ifdef __linux__
  prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
  const int null = ::open("/dev/null", O_WRONLY);
  if (null >= 0) {
    ::dup2(null, STDOUT_FILENO);
    ::dup2(null, STDERR_FILENO);
  }
  Limit(RLIMIT_CORE, 0);
  Limit(RLIMIT_CPU, static_cast<rlim_t>(limits.cpu_seconds));
#ifndef PITH_SANITIZED  // a sanitizer's own memory would be counted
  if (const size_t now = DataBytes(); now > 0) Limit(RLIMIT_DATA, now + limits.memory_bytes);
#endif
  ggml_set_abort_callback(OnAbortInChild);
  const Status status = work();
  if (status) {
    Report(kSucceeded, {});
  } else {
    Report(static_cast<char>(kFailed + static_cast<char>(status.error().code)), status.error().message);
  }
  _exit(0);
}

enum class Waited : uint8_t { kToTheEnd, kNotWanted, kTooLong };

// Reads until the child closes its end.
Waited Collect(int fd, const TrialLimits& limits, const std::function<bool()>& keep_waiting, std::string& report) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(limits.wall_seconds);
  for (;;) {
    pollfd ready{.fd = fd, .events = POLLIN, .revents = 0};
    const int count = ::poll(&ready, 1, kPollMs);
    if (keep_waiting && !keep_waiting()) return Waited::kNotWanted;
    if (count == 0 && limits.wall_seconds > 0 && std::chrono::steady_clock::now() > end) return Waited::kTooLong;
    if (count == 0 || (count < 0 && errno == EINTR)) continue;
    char buffer[kMostReport];
    const ssize_t length = ::read(fd, buffer, sizeof buffer);
    if (length < 0 && errno == EINTR) continue;
    if (length <= 0) return Waited::kToTheEnd;
    report.append(buffer, static_cast<size_t>(length));
  }
}

std::string Death(int status, const TrialLimits& limits) {
  if (!WIFSIGNALED(status)) return fmt::format("libllama ended the process with exit code {}", WEXITSTATUS(status));
  const int signal = WTERMSIG(status);
  if (signal == SIGXCPU || signal == SIGKILL) {
    return fmt::format("libllama takes more than {} s of processor time or all memory", limits.cpu_seconds);
  }
  return fmt::format("libllama crashes ({})", strsignal(signal));
}

}  // namespace

TrialLimits LimitsForFile(size_t file_bytes) {
  constexpr size_t kAroundAnyModel = size_t{512} << 20;
  constexpr size_t kBytesPerSecond = size_t{50} << 20;
  const int seconds = 5 + static_cast<int>(file_bytes / kBytesPerSecond);
  return {.memory_bytes = 2 * file_bytes + kAroundAnyModel, .cpu_seconds = seconds, .wall_seconds = 30 + 5 * seconds};
}

Status TryInChild(const std::string& what, const TrialLimits& limits, const std::function<Status()>& work,
                  const std::function<bool()>& keep_waiting) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0)
    return IoError(fmt::format("{}: the system gives no pipe: {}", what, std::strerror(errno)));
  std::fflush(nullptr);
  const pid_t pid = ::fork();
  if (pid < 0) {
    ::close(ends[0]);
    ::close(ends[1]);
    return IoError(fmt::format("{}: the system gives no process to try it in: {}", what, std::strerror(errno)));
  }
  if (pid == 0) {
    ::close(ends[0]);
    report_fd = ends[1];
    RunChild(limits, work);
  }
  ::close(ends[1]);
  std::string report;
  const Waited waited = Collect(ends[0], limits, keep_waiting, report);
  ::close(ends[0]);
  if (waited != Waited::kToTheEnd) ::kill(pid, SIGKILL);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (waited == Waited::kNotWanted) return Cancelled(what + ": stopped");
  if (waited == Waited::kTooLong) {
    return IoError(
        fmt::format("{}: nothing came of it within {} s, as where the disk hangs or another thread held a lock "
                    "when the trial began",
                    what, limits.wall_seconds));
  }
  if (report.empty()) return Corrupt(fmt::format("{}: {}", what, Death(status, limits)));
  if (report[0] == kSucceeded) return {};
  if (report[0] == kAborted) return Corrupt(fmt::format("{}: libllama aborts ({})", what, report.substr(1)));
  return MakeError(static_cast<ErrorCode>(report[0] - kFailed), report.substr(1));
}

void ExitOnGgmlAbort() {
  ggml_set_abort_callback([](const char* message) {
    const std::string_view reason = WithoutFolders(message);
    std::fprintf(stderr, "pith: libllama has failed a check of its own and cannot go on (%.*s).\n",
                 static_cast<int>(reason.size()), reason.data());
    std::fflush(nullptr);
    _exit(1);
  });
}

}  // namespace pith
