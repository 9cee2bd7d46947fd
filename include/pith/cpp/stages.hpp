// Aggregators, modifiers and allocators of one's own, beside the scorers of scorer.hpp.
#ifndef PITH_CPP_STAGES_HPP_
#define PITH_CPP_STAGES_HPP_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <pith/cpp/base.hpp>
#include <pith/cpp/scorer.hpp>
#include <string>
#include <utility>
#include <vector>

namespace pith {
inline namespace api {

using WindowRows = pith_window_rows;
using HeadRanking = pith_head_ranking;
using ScoredLayer = pith_scored_layer;
using Division = pith_division;

// The comments of <pith/policy.h> say what each is given and what must come back; false fails what was being read or
// compressed. Methods are called from several threads, for different layers or heads at once.
class Aggregator {
 public:
  virtual ~Aggregator() = default;
  virtual bool Aggregate(const WindowRows& rows, float* numbers) const = 0;
};

class Modifier {
 public:
  virtual ~Modifier() = default;
  virtual bool Modify(const LayerInput& layer, float* const* scores) const = 0;
  // With ModifierOptions::reranks.
  virtual bool Rerank(const HeadRanking& head, float* scores) const { return (void)head, (void)scores, true; }
};

class Allocator {
 public:
  virtual ~Allocator() = default;
  virtual bool Allocate(const Division& division, int32_t* const* keep) const = 0;
  // With AllocatorOptions::num_notes.
  virtual bool Prepare(const LayerInput& layer, double* const* notes) const { return (void)layer, (void)notes, true; }
};

using StageParam = ScorerParam;

struct AggregatorOptions {
  std::string summary = {};
  std::string paper = {};
  std::vector<StageParam> params = {};
  bool pools = false;
};

struct ModifierOptions {
  std::string summary = {};
  std::string paper = {};
  uint32_t needs = PITH_NEED_KEYS | PITH_NEED_VALUES;
  int window = 0;
  std::vector<StageParam> params = {};
  bool reranks = false;
  bool remembers = false;
};

struct AllocatorOptions {
  std::string summary = {};
  std::string paper = {};
  uint32_t needs = 0;
  int window = 0;
  std::vector<StageParam> params = {};
  bool across_layers = false;
  int num_notes = 0;
};

namespace internal {

// What all options have.
template <typename T, typename Options>
T StageOptions(const Options& options, const std::vector<pith_param>& params) {
  auto own = PITH_INIT(T);
  own.summary = options.summary.c_str();
  own.paper = options.paper.c_str();
  own.params = params.data();
  own.num_params = params.size();
  return own;
}

// What C gets as `user`: recipes hold it until the process ends.
template <typename T>
class Kept {
 public:
  explicit Kept(std::shared_ptr<const T> stage) : held_(new std::shared_ptr<const T>(std::move(stage))) {}
  void* user() const { return held_.get(); }
  // After it was registered.
  void Leave() { (void)held_.release(); }
  static const T& Of(void* user) { return **static_cast<std::shared_ptr<const T>*>(user); }

 private:
  std::unique_ptr<std::shared_ptr<const T>> held_;
};

template <typename T>
Status Leave(pith_status status, Kept<T>& kept) {
  if (status == PITH_OK) kept.Leave();
  return ToStatus(status);
}

}  // namespace internal

// From now on agg=NAME works in every recipe. The aggregator lives as long as the process. kInvalidArgument: the name
// is taken, or the options make no sense.
inline Status RegisterAggregator(const std::string& name, std::shared_ptr<const Aggregator> aggregator,
                                 const AggregatorOptions& options = {}) {
  if (aggregator == nullptr) return InvalidArgument("there is no aggregator");
  const std::vector<pith_param> params = internal::ParamsOf(options.params);
  auto own = internal::StageOptions<pith_aggregator_options>(options, params);
  own.pools = options.pools;
  internal::Kept<Aggregator> kept(std::move(aggregator));
  const pith_aggregate_fn aggregate = [](void* user, const pith_window_rows* rows, float* numbers) noexcept {
    return internal::Kept<Aggregator>::Of(user).Aggregate(*rows, numbers);
  };
  return internal::Leave(pith_register_aggregator(name.c_str(), aggregate, kept.user(), &own), kept);
}

// mod=NAME, as RegisterAggregator().
inline Status RegisterModifier(const std::string& name, std::shared_ptr<const Modifier> modifier,
                               const ModifierOptions& options = {}) {
  if (modifier == nullptr) return InvalidArgument("there is no modifier");
  const std::vector<pith_param> params = internal::ParamsOf(options.params);
  auto own = internal::StageOptions<pith_modifier_options>(options, params);
  own.needs = options.needs;
  own.window = options.window;
  own.remembers = options.remembers;
  if (options.reranks) {
    own.rerank = [](void* user, const pith_head_ranking* head, float* scores) noexcept {
      return internal::Kept<Modifier>::Of(user).Rerank(*head, scores);
    };
  }
  internal::Kept<Modifier> kept(std::move(modifier));
  const pith_modify_fn modify = [](void* user, const pith_layer_input* layer, float* const* scores) noexcept {
    return internal::Kept<Modifier>::Of(user).Modify(*layer, scores);
  };
  return internal::Leave(pith_register_modifier(name.c_str(), modify, kept.user(), &own), kept);
}

// alloc=NAME, as RegisterAggregator().
inline Status RegisterAllocator(const std::string& name, std::shared_ptr<const Allocator> allocator,
                                const AllocatorOptions& options = {}) {
  if (allocator == nullptr) return InvalidArgument("there is no allocator");
  const std::vector<pith_param> params = internal::ParamsOf(options.params);
  auto own = internal::StageOptions<pith_allocator_options>(options, params);
  own.needs = options.needs;
  own.window = options.window;
  own.across_layers = options.across_layers;
  own.num_notes = options.num_notes;
  if (options.num_notes > 0) {
    own.prepare = [](void* user, const pith_layer_input* layer, double* const* notes) noexcept {
      return internal::Kept<Allocator>::Of(user).Prepare(*layer, notes);
    };
  }
  internal::Kept<Allocator> kept(std::move(allocator));
  const pith_allocate_fn allocate = [](void* user, const pith_division* division, int32_t* const* keep) noexcept {
    return internal::Kept<Allocator>::Of(user).Allocate(*division, keep);
  };
  return internal::Leave(pith_register_allocator(name.c_str(), allocate, kept.user(), &own), kept);
}

}  // namespace api
}  // namespace pith

#endif  // PITH_CPP_STAGES_HPP_
