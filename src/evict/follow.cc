#include "evict/follow.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "evict/object_lists.h"

namespace pith::evict {
namespace {

// Stored objects that the followed expert stores, too, and those that it does not.
constexpr uint32_t kShared = 1;
constexpr uint32_t kLeftOver = 2;

class Follow final : public Replayed<Follow> {
 public:
  Follow(const Setup& setup, std::vector<std::unique_ptr<Evictor>> experts, const FollowOptions& options)
      : Replayed(setup.capacity), options_(options), lists_(setup.num_objects, 2), num_objects_(setup.num_objects),
        growth_(options.half_life > 0 ? std::exp2(1 / options.half_life) : 1), misses_(experts.size(), 0),
        experts_(std::move(experts)) {
    victims_.reserve(setup.num_objects);
    experts_[0]->RecordVictims(&victims_);
  }

  bool Contains(uint32_t object) const override { return lists_.ListOf(object) != 0; }
  uint64_t used_bytes() const override { return lists_.bytes(kShared) + lists_.bytes(kLeftOver); }
  void OnHit(const Access& access) override { Serve(access); }
  void OnMiss(const Access& access) override { Serve(access); }
  void Erase(uint32_t object) override {
    lists_.Remove(object);
    for (const auto& expert : experts_) {
      if (expert->Contains(object)) expert->Erase(object);
    }
  }
  const SidecarCounters* sidecar() const override { return experts_[0]->sidecar(); }
  void Forget(uint32_t object) override {
    for (const auto& expert : experts_) {
      if (expert->Contains(object)) expert->Erase(object);
      expert->Forget(object);
    }
  }

 private:
  void Serve(const Access& access) {
    weight_ *= growth_;
    if (weight_ > 1e100) Rescale();
    const bool of_prompt = access.blocks != nullptr;
    if (of_prompt && access.depth + 1 == access.chain) CountMissesOfPrompt(access);
    for (size_t e = 0; e < experts_.size(); ++e) {
      if (experts_[e]->Contains(access.object)) {
        experts_[e]->OnHit(access);
      } else {
        experts_[e]->OnMiss(access);
        if (!of_prompt) misses_[e] += weight_;
      }
    }
    for (const uint32_t victim : victims_) {
      if (lists_.ListOf(victim) == kShared) Move(victim, kLeftOver);
    }
    victims_.clear();
    Choose();
    Store(access);
  }

  // A block is a hit where all that lead to it are.
  void CountMissesOfPrompt(const Access& access) {
    for (size_t e = 0; e < experts_.size(); ++e) {
      uint32_t hits = 0;
      while (hits < access.chain && experts_[e]->Contains(access.blocks[access.chain - 1 - hits])) ++hits;
      misses_[e] += weight_ * (access.chain - hits);
    }
  }

  void Store(const Access& access) {
    const uint32_t object = access.object;
    const bool wanted = experts_[followed_]->Contains(object);
    const uint32_t list = lists_.ListOf(object);
    if (list != 0) {
      if ((list == kShared) != wanted) Move(object, wanted ? kShared : kLeftOver);
      return;
    }
    if (!wanted) return;
    // All that is shared fits beside the object, since the followed one stores it so.
    while (used_bytes() + access.size > capacity_) {
      const uint32_t victim = lists_.tail(kLeftOver);
      lists_.Remove(victim);
      Evicted(victim);
    }
    lists_.PushHead(kShared, object, access.size);
  }

  void Choose() {
    const size_t best = static_cast<size_t>(std::min_element(misses_.begin(), misses_.end()) - misses_.begin());
    if (best == followed_) return;
    const double slack = options_.slack > 0 ? options_.slack
                                            : static_cast<double>(lists_.count(kShared) + lists_.count(kLeftOver));
    if (misses_[followed_] <= options_.factor * misses_[best] ||
        misses_[followed_] - misses_[best] <= slack * weight_) {
      return;
    }
    experts_[followed_]->RecordVictims(nullptr);
    followed_ = best;
    experts_[followed_]->RecordVictims(&victims_);
    for (uint32_t object = 0; object < num_objects_; ++object) {
      if (lists_.ListOf(object) != 0) Move(object, experts_[followed_]->Contains(object) ? kShared : kLeftOver);
    }
  }

  void Move(uint32_t object, uint32_t list) {
    const uint64_t size = lists_.SizeOf(object);
    lists_.Remove(object);
    lists_.PushHead(list, object, size);
  }

  void Rescale() {
    for (double& misses : misses_) misses /= weight_;
    weight_ = 1;
  }

  const FollowOptions options_;
  ObjectLists lists_;
  const size_t num_objects_;
  const double growth_;          // of weight_, with every access
  double weight_ = 1;            // of a miss now
  std::vector<double> misses_;   // by expert, in units of weight_ / misses_ then
  std::vector<std::unique_ptr<Evictor>> experts_;
  size_t followed_ = 0;
  std::vector<uint32_t> victims_;  // of the followed one, in this access
};

}  // namespace

Result<std::unique_ptr<Evictor>> Guarded(std::unique_ptr<Evictor> evictor, const Setup& setup) {
  std::vector<std::unique_ptr<Evictor>> experts;
  experts.push_back(std::move(evictor));
  for (const std::string_view other : {"gdsf", "lru"}) {
    PITH_ASSIGN_OR_RETURN(std::unique_ptr<Evictor> expert, MakeEvictor(other, setup));
    experts.push_back(std::move(expert));
  }
  // Half a percent of the misses is less than half a percent of the requests.
  return MakeFollow(setup, std::move(experts), {.factor = 1.005, .slack = 64});
}

std::unique_ptr<Evictor> MakeFollow(const Setup& setup, std::vector<std::unique_ptr<Evictor>> experts,
                                    const FollowOptions& options) {
  return std::make_unique<Follow>(setup, std::move(experts), options);
}

}  // namespace pith::evict
