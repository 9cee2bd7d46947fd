#include "base/crowd.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <thread>

namespace pith {

namespace {

constexpr int kMostInVain = 16;

// Threads of this process that run or could: fields of /proc/PID/task/TID/stat begin behind the name's last bracket.
int RunningHere(const std::string& root) {
  int running = 0;
  std::error_code error;
  for (const auto& task : std::filesystem::directory_iterator(root + "/proc/self/task", error)) {
    std::ifstream file(task.path() / "stat");
    std::string line;
    if (!std::getline(file, line)) continue;
    const size_t end = line.rfind(") ");
    running += end != std::string::npos && line.compare(end + 2, 1, "R") == 0;
  }
  return std::max(running, 1);  // whoever asks runs
}

// -1: not known. /proc/loadavg: "0.20 0.18 0.12 RUNNING/ALL LAST".
int RunningAnywhere(const std::string& root) {
  std::ifstream file(root + "/proc/loadavg");
  std::string word;
  for (int i = 0; i < 4; ++i) file >> word;
  std::istringstream fourth(word);
  int running = 0;
  char slash = 0;
  return file && fourth >> running >> slash && slash == '/' ? running : -1;
}

}  // namespace

int RunningInTheWay(int threads, int num_processors, const std::string& root) {
  constexpr int kLooks = 3;
  int least = INT_MAX;
  for (int i = 0; i < kLooks; ++i) {
    if (i > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const int running = RunningAnywhere(root);
    if (running < 0) return 0;
    least = std::min(least, running - RunningHere(root));
    if (least <= num_processors - threads) return 0;
  }
  return least - (num_processors - threads);
}

Crowd& Crowd::OfProcess() {
  static Crowd crowd(
      [](int threads) { return RunningInTheWay(threads, static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN))); });
  return crowd;
}

Crowd::Advice Crowd::Advise(int most) const {
  {
    const std::lock_guard lock(mutex_);
    if (settled_.vain >= 0 && clock_->Wall() < since_ + kMemory) return settled_;
  }
  return {.fewer = most < 2 ? 0 : std::clamp(look_(most), 0, most / 2)};
}

void Crowd::Settle(int fewer, bool in_vain) {
  const std::lock_guard lock(mutex_);
  settled_ = {.fewer = fewer, .vain = in_vain ? std::min(std::max(settled_.vain, 0) + 1, kMostInVain) : 0};
  since_ = clock_->Wall();
}

}  // namespace pith
