#include "common.h"

#include <semaphore.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <map>
#include <thread>

namespace pith_python {
namespace {

std::atomic<pid_t> first_user{0};
thread_local int callback_depth = 0;

// ---- Ctrl-C

// A handler may do next to nothing, so that it wakes a thread that cancels.
struct Watched {
  std::mutex mutex;
  std::function<void()> cancel;  // empty: nothing runs on the main thread
  std::atomic<bool> interrupted{false};
  sem_t wake;
  struct sigaction before {};
  bool has_thread = false;
};

Watched& TheWatched() {
  static Watched* const watched = [] {
    auto* made = new Watched;  // lives as long as its thread: until the process ends
    sem_init(&made->wake, 0, 0);
    return made;
  }();
  return *watched;
}

void OnInterrupt(int signal, siginfo_t* info, void* context) {
  Watched& watched = TheWatched();
  const int kept_errno = errno;
  watched.interrupted.store(true);
  sem_post(&watched.wake);
  const struct sigaction& before = watched.before;
  if ((before.sa_flags & SA_SIGINFO) != 0) {
    before.sa_sigaction(signal, info, context);
  } else {
    before.sa_handler(signal);
  }
  errno = kept_errno;
}

void WatchForever() {
  Watched& watched = TheWatched();
  while (true) {
    if (sem_wait(&watched.wake) != 0) continue;
    const std::lock_guard lock(watched.mutex);
    if (watched.cancel) watched.cancel();
  }
}

bool IsMainThread() { return syscall(SYS_gettid) == getpid(); }

// ---- Exceptions of callbacks

// Of this thread's callbacks. Taken before the call returns.
thread_local std::optional<nb::python_error> kept;

// Of stages, by word; guarded by the GIL.
std::map<std::string, nb::python_error>& KeptOfStages() {
  static auto* const all = new std::map<std::string, nb::python_error>;
  return *all;
}

// What ended a call with this message, if a callback did.
std::optional<nb::python_error> TakeException(const std::string& message) {
  if (kept) return std::exchange(kept, std::nullopt);
  for (auto& [word, error] : KeptOfStages()) {
    if (message.find(word + " ") == std::string::npos) continue;
    std::optional<nb::python_error> found(std::move(error));
    KeptOfStages().erase(word);
    return found;
  }
  return std::nullopt;
}

nb::object KindOf(pith_status status) {
  const nb::object kinds = nb::module_::import_("pith._errors").attr("KINDS");
  return kinds.attr("get")(pith_status_name(status), nb::module_::import_("pith._errors").attr("Error"));
}

}  // namespace

void Check(pith_status status) {
  if (status != PITH_OK) throw Failure(status, pith_last_error());
}

void NoteUse() {
  pid_t nobody = 0;
  first_user.compare_exchange_strong(nobody, getpid());
}

bool IsForkedChild() {
  const pid_t user = first_user.load();
  return user != 0 && user != getpid();
}

void CheckMayCall() {
  if (IsForkedChild()) {
    throw Failure(PITH_ERROR_UNSUPPORTED,
                  "pith was in use before this process was forked, and its threads do not exist here: start workers "
                  "with multiprocessing's \"spawn\", or load models in the child alone");
  }
  if (callback_depth > 0) {
    throw Failure(PITH_ERROR_INVALID_ARGUMENT,
                  "a scorer or another callback must not call models, engines or what was made with them");
  }
}

EngineBox::~EngineBox() {
  if (IsForkedChild()) return;
  FreeLeft();
  pith_engine_free(handle_);
}

void EngineBox::Lock() {
  std::unique_lock lock(mutex_);
  turn_ended_.wait(lock, [this] { return !busy_.load(); });
  busy_.store(true);
}

void EngineBox::Unlock() {
  {
    const std::lock_guard lock(mutex_);
    FreeLeft();
    busy_.store(false);
  }
  turn_ended_.notify_one();
}

void EngineBox::FreeSoon(std::function<void()> free) {
  if (IsForkedChild()) return;
  epoch.fetch_add(1);
  const std::lock_guard lock(mutex_);
  left_.push_back(std::move(free));
  if (!busy_.load()) FreeLeft();
}

void EngineBox::FreeLeft() {
  for (const std::function<void()>& free : left_) free();
  left_.clear();
}

InterruptWatch::InterruptWatch(std::function<void()> cancel) {
  if (!IsMainThread()) return;
  Watched& watched = TheWatched();
  {
    const std::lock_guard lock(watched.mutex);
    if (watched.cancel) return;  // a call within a call
    sigaction(SIGINT, nullptr, &watched.before);
    const bool has_handler = (watched.before.sa_flags & SA_SIGINFO) != 0 ||
                             (watched.before.sa_handler != SIG_DFL && watched.before.sa_handler != SIG_IGN);
    if (!has_handler) return;
    watched.cancel = std::move(cancel);
    watched.interrupted.store(false);
    if (!std::exchange(watched.has_thread, true)) {
      // All signals stay with the other threads.
      sigset_t all, kept;
      sigfillset(&all);
      pthread_sigmask(SIG_SETMASK, &all, &kept);
      std::thread(WatchForever).detach();
      pthread_sigmask(SIG_SETMASK, &kept, nullptr);
    }
  }
  struct sigaction own {};
  own.sa_sigaction = OnInterrupt;
  own.sa_flags = SA_SIGINFO | (watched.before.sa_flags & (SA_RESTART | SA_ONSTACK));
  own.sa_mask = watched.before.sa_mask;
  sigaction(SIGINT, &own, nullptr);
  watches_ = true;
}

InterruptWatch::~InterruptWatch() {
  if (!watches_) return;
  Watched& watched = TheWatched();
  sigaction(SIGINT, &watched.before, nullptr);
  const std::lock_guard lock(watched.mutex);
  watched.cancel = nullptr;
}

bool InterruptWatch::was_interrupted() const { return watches_ && TheWatched().interrupted.load(); }

InCallback::InCallback() { ++callback_depth; }
InCallback::~InCallback() { --callback_depth; }

void KeepException(nb::python_error error) {
  if (!kept) kept.emplace(std::move(error));
}
void KeepStageException(const std::string& word, nb::python_error error) {
  KeptOfStages().try_emplace(word, std::move(error));
}
bool HasException() { return kept.has_value(); }
bool HasStageException(const std::string& word) { return KeptOfStages().contains(word); }
void ForgetException() { kept.reset(); }

void Raise(pith_status status, const std::string& message) {
  std::optional<nb::python_error> by = TakeException(message);
  if (!by) throw Failure(status, message);
  if (!PyErr_GivenExceptionMatches(by->type().ptr(), PyExc_Exception)) throw std::move(*by);
  // One sentence: of a longer text its first line.
  const auto text = nb::cast<std::string>(nb::str(by->value()));
  const std::string said = message + ": " + nb::cast<std::string>(nb::str(by->type().attr("__name__"))) + ": " +
                           text.substr(0, text.find('\n'));
  nb::object error = KindOf(status)(said, pith_status_name(status));
  error.attr("__cause__") = by->value();
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
  throw nb::python_error();
}

}  // namespace pith_python

NB_MODULE(_pith, module) {
  using namespace pith_python;
  // Registered scorers, and what they hold, live as long as the process.
  nb::set_leak_warnings(false);
  module.doc() = "pith's library; import pith instead.";
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const Failure& failure) {
      const nb::object kind = KindOf(failure.status());
      const nb::object error = kind(failure.what(), pith_status_name(failure.status()));
      PyErr_SetObject(kind.ptr(), error.ptr());
    }
  });
  module.def(
      "version", [] { return pith_version(); }, "Version of the library, such as \"0.1.0\".");
  AddModel(module);
  AddEngine(module);
  AddText(module);
  AddConversation(module);
  AddScorers(module);
  AddStages(module);
}
