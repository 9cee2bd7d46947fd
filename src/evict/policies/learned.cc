// The object goes whose bytes will earn the fewest requests (evict/learn/survival.h): with each request a network says
// when the next one will come, and what follows from it for an object that has waited for so long is looked at again
// whenever it has waited half an octave longer. The new object may be the victim. Prompts are judged by themselves
// (learned_prompts.h).
#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "evict/follow.h"
#include "evict/learn/online_survival.h"
#include "evict/learn/survival.h"
#include "evict/object_heap.h"
#include "evict/policies/learned_prompts.h"
#include "evict/registry.h"

namespace pith::evict {
namespace {

struct Score {
  float rate = 0;  // requests per moment and byte
  uint32_t last_use = 0;
  bool operator<(const Score& other) const {
    return rate != other.rate ? rate < other.rate : last_use < other.last_use;
  }
};

class Learned final : public Replayed<Learned> {
 public:
  Learned(const Setup& setup, Model model, const OnlineOptions& online)
      : Replayed(setup.capacity), model_(std::move(model)), buffers_(model_.net, 1), history_(setup.num_objects),
        objects_(setup.num_objects), scores_(setup.num_objects), due_(setup.num_objects) {
    if (online.rate > 0) learner_.emplace(model_.net, setup.num_objects, online);
  }

  bool Contains(uint32_t object) const override { return scores_.Contains(object); }
  uint64_t used_bytes() const override { return used_; }
  void OnHit(const Access& access) override { Foresee(access); }
  void OnMiss(const Access& access) override {
    if (access.size > capacity_) {
      Watch(access);
      return;
    }
    objects_[access.object].size = access.size;
    used_ += access.size;
    Foresee(access);
    MakeRoom();
  }
  void Erase(uint32_t object) override {
    scores_.Remove(object);
    due_.Remove(object);
    used_ -= objects_[object].size;
  }
  void Forget(uint32_t object) override {
    history_.Forget(object);
    if (learner_) learner_->Forget(object);
  }

 private:
  // Features and what is to be learned of every request, also of what cannot be stored.
  void Watch(const Access& access) {
    history_.Record(access, features_);
    model_.Normalize(features_, inputs_);
    if (learner_) learner_->Watch(access.object, access.moment, inputs_, model_.net);
  }

  struct Object {
    uint64_t size = 0;
    uint32_t last_use = 0;  // access
    uint32_t moment = 0;    // of it
    Survival::Curve curve;
  };

  void Foresee(const Access& access) {
    Watch(access);
    Object& object = objects_[access.object];
    object.curve = Survival::CurveOf(Forward(model_.net, inputs_, 1, buffers_));
    object.last_use = ++accesses_;
    object.moment = now_ = access.moment;
    Look(access.object);
  }

  void Look(uint32_t which) {
    const Object& object = objects_[which];
    const uint32_t age = std::max(1u, now_ - object.moment);
    const auto size = static_cast<float>(std::max<uint64_t>(1, object.size));
    scores_.Set(which, {Survival::HitRate(object.curve, age, turnover_.Horizon(now_)) / size, object.last_use});
    due_.Set(which, uint64_t{object.moment} + Turnover::NextLook(age));
  }

  void MakeRoom() {
    while (used_ > capacity_) {
      turnover_.CountEviction(scores_.size(), now_);
      while (due_.top_key() <= now_) Look(due_.top());
      const uint32_t victim = scores_.top();
      Erase(victim);
      Evicted(victim);
    }
  }

  Model model_;
  std::optional<OnlineSurvival> learner_;
  NetBuffers buffers_;
  History history_;
  std::vector<Object> objects_;
  ObjectHeap<Score> scores_;
  ObjectHeap<uint64_t> due_;  // moment at which to look again
  float features_[History::kFeatures];
  float inputs_[History::kFeatures];
  uint64_t used_ = 0;
  uint32_t accesses_ = 0;
  uint32_t now_ = 0;  // moment
  Turnover turnover_;
};

}  // namespace

Result<std::unique_ptr<Evictor>> MakeLearned(Params& params, const Setup& setup) {
  static constexpr std::array<std::string_view, 2> kGuards = {"on", "off"};
  PITH_ASSIGN_OR_RETURN(const std::string path, params.Text("model", ""));
  PITH_ASSIGN_OR_RETURN(const std::string guard, params.Word("guard", "on", kGuards));
  std::unique_ptr<Evictor> learned;
  if (setup.trace != nullptr && setup.trace->has_prompts()) {
    if (!path.empty()) return Unsupported("learned takes no model for prompts: of them it learns as they pass");
    PromptLearnerOptions options;
    PITH_ASSIGN_OR_RETURN(const double rate, params.Number("rate", options.rate, 0, 0.1));
    options.rate = static_cast<float>(rate);
    learned = MakeLearnedPrompts(setup, options);
  } else {
    OnlineOptions online;
    PITH_ASSIGN_OR_RETURN(const double rate, params.Number("rate", online.rate, 0, 0.1));
    online.rate = static_cast<float>(rate);
    PITH_ASSIGN_OR_RETURN(online.share, params.Number("share", online.share, 0.001, 1));
    PITH_ASSIGN_OR_RETURN(Model model, LoadModel(path, ModelKind::kSurvival));
    learned = std::make_unique<Learned>(setup, std::move(model), online);
  }
  if (guard == "off") return learned;
  return Guarded(std::move(learned), setup);
}

}  // namespace pith::evict
