// What the parts of the extension share: failures, whose turn it is on an engine, and Ctrl-C.
#ifndef PITH_PYTHON_COMMON_H_
#define PITH_PYTHON_COMMON_H_

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
// All of them in every file: a cast that one file does without its header would be another function of the same name.
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>
#include <pith/pith.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace nb = nanobind;

namespace pith_python {

// Becomes pith.Error, or one of its kinds by the status.
class Failure : public std::exception {
 public:
  Failure(pith_status status, std::string message) : status_(status), message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }
  pith_status status() const { return status_; }

 private:
  pith_status status_;
  std::string message_;
};

// Of a call on this thread.
void Check(pith_status status);

// After fork() the threads of whoever used pith before do not exist in the child, where every call must fail and
// nothing can be freed.
void NoteUse();
bool IsForkedChild();
// Throws where nothing may be called: in a forked child, or in the callback of a scorer.
void CheckMayCall();

struct ModelBox {
  explicit ModelBox(pith_model* own) : handle(own) {}
  ~ModelBox() {
    if (!IsForkedChild()) pith_model_free(handle);
  }
  ModelBox(const ModelBox&) = delete;
  ModelBox& operator=(const ModelBox&) = delete;
  pith_model* const handle;
};

// An engine, whose calls take turns. Who has the turn never waits for the GIL holding it, except in callbacks.
class EngineBox {
 public:
  EngineBox(std::shared_ptr<ModelBox> model, pith_engine* handle, bool is_shared)
      : model_(std::move(model)), handle_(handle), is_shared_(is_shared) {}
  ~EngineBox();
  EngineBox(const EngineBox&) = delete;
  EngineBox& operator=(const EngineBox&) = delete;

  void Lock();
  void Unlock();
  // Now if nobody has the turn, else when it ends: destructors must not wait.
  void FreeSoon(std::function<void()> free);
  bool is_busy() const { return busy_.load(std::memory_order_relaxed); }

  pith_engine* handle() const { return handle_; }
  const std::shared_ptr<ModelBox>& model() const { return model_; }
  bool is_shared() const { return is_shared_; }  // by several sequences at once
  // Rises whenever views of this engine's memory end.
  std::atomic<uint64_t> epoch{0};

 private:
  void FreeLeft();

  std::shared_ptr<ModelBox> model_;
  pith_engine* const handle_;
  const bool is_shared_;
  std::mutex mutex_;
  std::condition_variable turn_ended_;
  std::atomic<bool> busy_{false};
  std::vector<std::function<void()>> left_;
};

// The turn on an engine, without the GIL.
class Turn {
 public:
  explicit Turn(EngineBox& box) : box_(box) {
    CheckMayCall();
    released_.emplace();
    box_.Lock();
  }
  ~Turn() {
    box_.Unlock();
    released_.reset();
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  EngineBox& box_;
  std::optional<nb::gil_scoped_release> released_;
};

// While it lives, on the main thread, a SIGINT calls `cancel` on a thread of its own, beside Python's handler.
class InterruptWatch {
 public:
  explicit InterruptWatch(std::function<void()> cancel);
  ~InterruptWatch();
  InterruptWatch(const InterruptWatch&) = delete;
  InterruptWatch& operator=(const InterruptWatch&) = delete;
  bool was_interrupted() const;

 private:
  bool watches_ = false;
};

// Marks a thread that runs a callback.
class InCallback {
 public:
  InCallback();
  ~InCallback();
  InCallback(const InCallback&) = delete;
  InCallback& operator=(const InCallback&) = delete;
};

// An exception that a callback raised on the thread of the call that it ends, or a stage on any thread. With the GIL.
void KeepException(nb::python_error error);
void KeepStageException(const std::string& word, nb::python_error error);  // "score=mine"
bool HasException();
bool HasStageException(const std::string& word);
void ForgetException();
// Throws: what a callback raised, if it was none of Exception's kinds (KeyboardInterrupt); else the failure, caused by
// it.
[[noreturn]] void Raise(pith_status status, const std::string& message);

// A call that may take long, without the GIL, with its turn; Ctrl-C ends it. call: () -> pith_status. cancel: from
// another thread.
template <typename Call>
void RunLong(EngineBox& box, std::function<void()> cancel, const Call& call) {
  pith_status status = PITH_OK;
  std::string message;
  bool interrupted = false;
  {
    const Turn turn(box);
    box.epoch.fetch_add(1);
    InterruptWatch watch([&box, cancel = std::move(cancel)] {
      pith_engine_cancel(box.handle());
      cancel();
    });
    status = call();
    if (status != PITH_OK) message = pith_last_error();
    interrupted = watch.was_interrupted();
  }
  if (interrupted) pith_engine_clear_cancel(box.handle());
  if (interrupted && PyErr_CheckSignals() != 0) {
    ForgetException();
    throw nb::python_error();
  }
  if (status != PITH_OK) Raise(status, message);
}

using FloatView = nb::ndarray<nb::numpy, const float>;
// That are written to.
using FloatRows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatRow = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using TokenArray = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A result with nothing in it.
template <typename T>
T Sized() {
  T value{};
  value.struct_size = sizeof value;
  return value;
}

// Pointers to texts that live elsewhere.
inline std::vector<const char*> Pointers(const std::vector<std::string>& texts) {
  std::vector<const char*> pointers;
  for (const std::string& text : texts) pointers.push_back(text.c_str());
  return pointers;
}
inline const char* OrNull(const std::optional<std::string>& text) { return text ? text->c_str() : nullptr; }

// The parts.
void AddModel(nb::module_& module);
void AddEngine(nb::module_& module);
void AddText(nb::module_& module);
void AddConversation(nb::module_& module);
void AddScorers(nb::module_& module);
void AddStages(nb::module_& module);

}  // namespace pith_python

#endif  // PITH_PYTHON_COMMON_H_
