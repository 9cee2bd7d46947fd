#include "host/log.h"

#include <mutex>

namespace pith {
namespace {

constexpr int kContinues = 5;  // GGML_LOG_LEVEL_CONT: of the line before

struct Listener {
  std::mutex mutex;
  HostLog log = nullptr;
  void* user = nullptr;
  int level = 1;  // of the last line
};

Listener& TheListener() {
  static auto* listener = new Listener;  // libllama may speak while the process ends
  return *listener;
}

}  // namespace

void SetHostLog(HostLog log, void* user) {
  Listener& listener = TheListener();
  const std::lock_guard lock(listener.mutex);
  listener.log = log;
  listener.user = user;
}

void WriteHostLog(int level, const char* text) {
  Listener& listener = TheListener();
  const std::lock_guard lock(listener.mutex);
  if (level != kContinues) listener.level = level;
  if (listener.log != nullptr && listener.level > 0) listener.log(listener.user, listener.level, text);
}

}  // namespace pith
