// Sequences of one model under one KV budget.
#ifndef PITH_CPP_ENGINE_HPP_
#define PITH_CPP_ENGINE_HPP_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <pith/cpp/model.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace pith {
inline namespace api {

struct EngineOptions {
  uint64_t budget_bytes = 0;    // hard limit of all sequences; 0: what their f16 caches take
  int num_ctx = 0;              // positions that a sequence may reach; 0: the model's trained context
  int num_threads = 0;          // 0: physical cores
  int max_sequences = 1;        // at once, forks included
  int block_tokens = 0;         // rows of a step at most; 0: chosen from the budget
  std::string recipe = "full";  // of sequences that name none
  uint64_t seed = 0;            // of sampling and of recipes that draw
  bool fixed_threads = false;   // never fewer while other processes take cores
  std::string save_format = {};  // of saved sequences: "exact" (empty), or "comp:ek=0.06,ev=0.06" in fewer bytes
};

struct SequenceOptions {
  std::string recipe = {};  // which entries stay (`pith recipes`); empty: the engine's
  int num_ctx = 0;          // 0: the engine's
  int keep_entries = 0;     // per kv head, in place of what its bytes would hold
  uint64_t floor_bytes = 0;
  uint64_t ceiling_bytes = 0;
  uint64_t seed = 0;
  bool compress_after = false;
  std::vector<std::string> later_recipes = {};  // that Compress() will be called with
};

namespace internal {

// Calls use with the options as C takes them.
template <typename Use>
auto WithOptions(const SequenceOptions& options, const Use& use) {
  const std::vector<const char*> later = Pointers(options.later_recipes);
  auto own = PITH_INIT(pith_sequence_options);
  own.recipe = OrNull(options.recipe);
  own.num_ctx = options.num_ctx;
  own.keep_entries = options.keep_entries;
  own.floor_bytes = options.floor_bytes;
  own.ceiling_bytes = options.ceiling_bytes;
  own.seed = options.seed;
  own.compress_after = options.compress_after;
  own.later_recipes = later.data();
  own.num_later_recipes = later.size();
  return use(&own);
}

inline bool OnProgress(void* user, uint64_t done, uint64_t total) noexcept {
  return (*static_cast<const ProgressCallback*>(user))(done, total);
}
inline pith_progress_fn ProgressOf(const ProgressCallback& progress) { return progress ? OnProgress : nullptr; }
// C's user pointer is not const.
inline void* UserOf(const ProgressCallback& progress) { return const_cast<ProgressCallback*>(&progress); }

}  // namespace internal

class Engine;

class Sequence {
 public:
  static Result<Sequence> Create(const Engine& engine, const SequenceOptions& options = {});
  // From what Save() wrote: it goes on with the same bits.
  static Result<Sequence> Restore(const Engine& engine, const std::string& path, const SequenceOptions& options = {});
  static Result<Sequence> Restore(const Engine& engine, std::span<const std::byte> saved,
                                  const SequenceOptions& options = {});

  // A copy that shares its entries until one of the two changes them.
  Result<Sequence> Fork() const {
    pith_sequence* fork = nullptr;
    PITH_RETURN_IF_ERROR(internal::ToStatus(pith_sequence_fork(get(), &fork)));
    return Sequence(fork);
  }
  // pin: no recipe drops these tokens.
  Status Prefill(std::span<const int32_t> tokens, bool pin = false, const ProgressCallback& progress = {}) {
    return internal::ToStatus(pith_sequence_prefill(get(), tokens.data(), tokens.size(), pin,
                                                    internal::ProgressOf(progress), internal::UserOf(progress)));
  }
  Status Decode(int32_t token) { return internal::ToStatus(pith_sequence_decode(get(), token)); }
  // [vocab], of the last token read. Valid until the next call about this engine or anything made with it.
  std::span<const float> logits() const {
    size_t count = 0;
    const float* logits = pith_sequence_logits(get(), &count);
    return {logits, count};
  }
  int num_tokens() const { return pith_sequence_num_tokens(get()); }
  std::string recipe() const { return pith_sequence_recipe(get()); }
  pith_sequence_stats stats() const {
    auto stats = PITH_INIT(pith_sequence_stats);
    (void)pith_sequence_get_stats(get(), &stats);
    return stats;
  }

  // To a share of its entries, once or again; returns the share that stayed. recipe: empty: its own.
  Result<double> Compress(double keep_fraction, const std::string& recipe = {}) {
    double kept = 0;
    PITH_RETURN_IF_ERROR(
        internal::ToStatus(pith_sequence_compress(get(), internal::OrNull(recipe), keep_fraction, &kept)));
    return kept;
  }
  // Of positions from `from` to before `to`.
  Result<double> CompressPart(double keep_fraction, int32_t from, int32_t to, const std::string& recipe = {}) {
    double kept = 0;
    PITH_RETURN_IF_ERROR(internal::ToStatus(
        pith_sequence_compress_part(get(), internal::OrNull(recipe), keep_fraction, from, to, &kept)));
    return kept;
  }
  // A turn of a conversation is over: a recipe with turns= compresses it. Conversations do so themselves.
  Status EndTurn() { return internal::ToStatus(pith_sequence_end_turn(get())); }
  Status SetBudget(uint64_t floor_bytes, uint64_t ceiling_bytes) {
    return internal::ToStatus(pith_sequence_set_budget(get(), floor_bytes, ceiling_bytes));
  }
  // Back to the first num_tokens tokens that it has read; 0 empties any sequence. kUnsupported, and nothing has
  // changed: its recipe has dropped or changed since then what it would have to have back.
  Status Rewind(int num_tokens) { return internal::ToStatus(pith_sequence_rewind(get(), num_tokens)); }
  // Where to go back to before a text is read whose first num_tokens tokens it has read already.
  int RewindTarget(int num_tokens) const { return pith_sequence_rewind_target(get(), num_tokens); }
  // From any thread: the running step gives it up.
  void Cancel() { pith_sequence_cancel(get()); }

  Status Save(const std::string& path) const { return internal::ToStatus(pith_sequence_save(get(), path.c_str())); }
  Result<std::vector<std::byte>> SaveToMemory() const {
    std::vector<std::byte> bytes;
    PITH_RETURN_IF_ERROR(internal::ToStatus(pith_sequence_save_to(get(), internal::Append, &bytes)));
    return bytes;
  }

  pith_sequence* get() const { return handle_.get(); }

 private:
  explicit Sequence(pith_sequence* handle) : handle_(handle) {}
  std::unique_ptr<pith_sequence, internal::Deleter<pith_sequence_free>> handle_;
};

struct StepItem {
  Sequence* sequence = nullptr;
  std::span<const int32_t> tokens = {};
  bool pin = false;
  std::vector<float>* all_logits = nullptr;      // becomes [tokens, vocab], of every token
  std::vector<float>* all_embeddings = nullptr;  // becomes [tokens, ModelInfo::num_embd], of every token
};

class Engine {
 public:
  static Result<Engine> Create(const Model& model, const EngineOptions& options = {}) {
    auto own = PITH_INIT(pith_engine_options);
    own.budget_bytes = options.budget_bytes;
    own.num_ctx = options.num_ctx;
    own.num_threads = options.num_threads;
    own.max_sequences = options.max_sequences;
    own.block_tokens = options.block_tokens;
    own.recipe = options.recipe.c_str();
    own.seed = options.seed;
    own.fixed_threads = options.fixed_threads;
    own.save_format = internal::OrNull(options.save_format);
    pith_engine* engine = nullptr;
    PITH_RETURN_IF_ERROR(internal::ToStatus(pith_engine_new(model.get(), &own, &engine)));
    return Engine(model, engine);
  }

  const Model& model() const { return model_; }
  pith_engine_stats stats() const {
    auto stats = PITH_INIT(pith_engine_stats);
    (void)pith_engine_get_stats(get(), &stats);
    return stats;
  }
  int block_tokens() const { return pith_engine_block_tokens(get()); }
  // What a sequence with these options takes that reads so many tokens.
  Result<pith_admission> Admit(const SequenceOptions& options, size_t num_tokens) const {
    auto admission = PITH_INIT(pith_admission);
    PITH_RETURN_IF_ERROR(internal::WithOptions(options, [&](const pith_sequence_options* own) {
      return internal::ToStatus(pith_engine_admit(get(), own, num_tokens, &admission));
    }));
    return admission;
  }

  // One pass over the weights for rows of any sequences, block_tokens() at most. [items]; a failure concerns its own
  // sequence alone.
  std::vector<Status> Step(std::span<const StepItem> items) {
    const auto num_vocab = static_cast<size_t>(model_.info().num_vocab);
    const auto num_embd = static_cast<size_t>(model_.info().num_embd);
    std::vector<pith_step_item> own;
    for (const StepItem& item : items) {
      if (item.all_logits != nullptr) item.all_logits->resize(item.tokens.size() * num_vocab);
      if (item.all_embeddings != nullptr) item.all_embeddings->resize(item.tokens.size() * num_embd);
      own.push_back({sizeof(pith_step_item), item.sequence != nullptr ? item.sequence->get() : nullptr,
                     item.tokens.data(), item.tokens.size(), item.pin,
                     item.all_logits != nullptr ? item.all_logits->data() : nullptr,
                     item.all_embeddings != nullptr ? item.all_embeddings->data() : nullptr});
    }
    std::vector<pith_status> codes(items.size());
    const pith_status result = pith_step(get(), own.data(), own.size(), codes.data());
    std::vector<Status> statuses;
    for (size_t i = 0; i < codes.size(); ++i) {
      std::string message = pith_step_message(get(), i);
      if (codes[i] != PITH_OK && message.empty()) message = internal::LastError(result).message;
      statuses.push_back(codes[i] == PITH_OK ? Status()
                                             : MakeError(static_cast<ErrorCode>(codes[i] - 1), std::move(message)));
    }
    return statuses;
  }

  // From any thread: everything that reads ends with kCancelled, until ClearCancel().
  void Cancel() { pith_engine_cancel(get()); }
  void ClearCancel() { pith_engine_clear_cancel(get()); }

  pith_engine* get() const { return handle_.get(); }

 private:
  Engine(Model model, pith_engine* handle) : model_(std::move(model)), handle_(handle, pith_engine_free) {}
  Model model_;
  std::shared_ptr<pith_engine> handle_;
};

inline Result<Sequence> Sequence::Create(const Engine& engine, const SequenceOptions& options) {
  pith_sequence* made = nullptr;
  PITH_RETURN_IF_ERROR(internal::WithOptions(options, [&](const pith_sequence_options* own) {
    return internal::ToStatus(pith_sequence_new(engine.get(), own, &made));
  }));
  return Sequence(made);
}

inline Result<Sequence> Sequence::Restore(const Engine& engine, const std::string& path,
                                          const SequenceOptions& options) {
  pith_sequence* made = nullptr;
  PITH_RETURN_IF_ERROR(internal::WithOptions(options, [&](const pith_sequence_options* own) {
    return internal::ToStatus(pith_sequence_restore(engine.get(), own, path.c_str(), &made));
  }));
  return Sequence(made);
}

inline Result<Sequence> Sequence::Restore(const Engine& engine, std::span<const std::byte> saved,
                                          const SequenceOptions& options) {
  pith_sequence* made = nullptr;
  PITH_RETURN_IF_ERROR(internal::WithOptions(options, [&](const pith_sequence_options* own) {
    return internal::ToStatus(pith_sequence_restore_from(engine.get(), own, internal::TakeFront, &saved, &made));
  }));
  return Sequence(made);
}

}  // namespace api
}  // namespace pith

#endif  // PITH_CPP_ENGINE_HPP_
