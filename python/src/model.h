// What other parts take.
#ifndef PITH_PYTHON_MODEL_H_
#define PITH_PYTHON_MODEL_H_

#include <memory>
#include <mutex>

#include "common.h"

namespace pith_python {

struct Model {
  std::shared_ptr<ModelBox> box;
};

struct Engine {
  std::shared_ptr<EngineBox> box;
};

// A sequence or conversation of an engine. It is freed by close() or with the object.
template <typename T, void (*kFree)(T*)>
class Part {
 public:
  Part(std::shared_ptr<EngineBox> box, T* handle) : box_(std::move(box)), handle_(handle) {}
  ~Part() {
    if (handle_ == nullptr) return;
    box_->FreeSoon([handle = handle_] { kFree(handle); });
  }
  Part(const Part&) = delete;
  Part& operator=(const Part&) = delete;

  // With the turn.
  T* Get() const {
    if (handle_ == nullptr) throw Failure(PITH_ERROR_INVALID_ARGUMENT, "it was closed");
    return handle_;
  }
  void Close() {
    const Turn turn(*box_);
    const std::lock_guard lock(cancel_mutex_);
    box_->epoch.fetch_add(1);
    if (handle_ != nullptr) kFree(handle_);
    handle_ = nullptr;
  }
  bool is_closed() const { return handle_ == nullptr; }
  // From any thread. Nothing where nothing runs.
  template <typename Cancel>
  void IfRunning(const Cancel& cancel) {
    const std::lock_guard lock(cancel_mutex_);
    if (handle_ != nullptr && box_->is_busy()) cancel(handle_);
  }
  EngineBox& box() const { return *box_; }
  // Logits that the engine no longer has, since it read something else meanwhile. With the turn.
  std::vector<float> kept_logits;
  const std::shared_ptr<EngineBox>& shared_box() const { return box_; }

 private:
  std::shared_ptr<EngineBox> box_;
  T* handle_;
  std::mutex cancel_mutex_;
};

using Sequence = Part<pith_sequence, pith_sequence_free>;
// Of the last token read: the engine's, or those that were kept. With the turn.
const float* LogitsOf(const Sequence& sequence, size_t& count);
// After it has read: where other sequences may read next, its logits are kept.
void KeepLogits(Sequence& sequence);
using Talk = Part<pith_conversation, pith_conversation_free>;

struct SequenceSpec {
  std::optional<std::string> recipe;
  int num_ctx = 0;
  int keep_entries = 0;
  uint64_t floor_bytes = 0;
  uint64_t ceiling_bytes = 0;
  uint64_t seed = 0;
  bool compress_after = false;
  std::vector<std::string> later_recipes;
};
// From a dictionary of these names.
SequenceSpec SequenceSpecOf(const nb::dict& given);

// Calls use with the options as C takes them.
template <typename Use>
auto WithSequenceOptions(const SequenceSpec& spec, const Use& use) {
  const std::vector<const char*> later = Pointers(spec.later_recipes);
  auto own = Sized<pith_sequence_options>();
  own.recipe = OrNull(spec.recipe);
  own.num_ctx = spec.num_ctx;
  own.keep_entries = spec.keep_entries;
  own.floor_bytes = spec.floor_bytes;
  own.ceiling_bytes = spec.ceiling_bytes;
  own.seed = spec.seed;
  own.compress_after = spec.compress_after;
  own.later_recipes = later.data();
  own.num_later_recipes = later.size();
  return use(&own);
}

nb::dict StatsOf(const pith_sequence_stats& stats);

// Sampler options with what they point to.
class SamplerSpec {
 public:
  // Over what the model recommends. given: names of pith_sampler_options, "bias": {token: number}.
  SamplerSpec(const ModelBox& model, const nb::dict& given);
  const pith_sampler_options* get() const { return &options_; }

 private:
  pith_sampler_options options_;
  std::string order_, grammar_, json_schema_;
  std::vector<int32_t> bias_tokens_;
  std::vector<float> biases_;
};

nb::dict GenerationOf(const pith_generation& generation);

// Bytes to and from C's callbacks.
bool AppendBytes(void* user, const void* data, size_t size);
struct Rest {
  const char* data;
  size_t size;
};
int64_t TakeBytes(void* user, void* data, size_t size);

}  // namespace pith_python

#endif  // PITH_PYTHON_MODEL_H_
