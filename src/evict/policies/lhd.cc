// LHD (Beckmann, Chen and Cidon, NSDI 2018): the object of a sample goes that earns the fewest hits per byte and time.
// What an object will earn follows from its age since it was last used and its class, which is how far apart its last
// two uses were; hits and evictions by age and class are counted and weighed anew after every 2^15 requests (theirs:
// 2^20, longer than many traces). Ages are in units that grow until old ages fit.
#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "evict/object_lists.h"
#include "evict/random.h"
#include "evict/registry.h"

namespace pith::evict {
namespace {

constexpr size_t kClasses = 16;
constexpr size_t kAges = 512;
constexpr uint64_t kInterval = 1 << 15;  // accesses between reconfigurations
constexpr size_t kSample = 32;
constexpr size_t kRecent = 8;  // newly stored objects are candidates, too
constexpr double kDecay = 0.9;
constexpr double kExplore = 0.01;  // share of objects that stay by lot, so that old ages are seen

class Lhd final : public Replayed<Lhd> {
 public:
  Lhd(const Setup& setup, uint64_t seed)
      : Replayed(setup.capacity), random_(seed), objects_(setup.num_objects), classes_(kClasses) {
    stored_.reserve(setup.num_objects);
    recent_.fill(kNoObject);
    for (size_t c = 0; c < kClasses; ++c) {
      for (size_t age = 0; age < kAges; ++age) {
        classes_[c].density[age] = static_cast<double>(c + 1) / static_cast<double>(age + 1);
      }
    }
  }

  bool Contains(uint32_t object) const override { return objects_[object].place != kNoObject; }
  uint64_t used_bytes() const override { return used_; }
  void OnHit(const Access& access) override {
    Tick();
    Object& object = objects_[access.object];
    const uint64_t age = now_ - object.last_use;
    classes_[ClassOf(object)].hits[Coarse(age)] += 1;
    object.previous_age = object.last_age;
    object.last_age = age;
    object.last_use = now_;
    object.explores = random_.Uniform() < kExplore;
  }
  void OnMiss(const Access& access) override {
    Tick();
    if (access.size > capacity_) return;
    while (used_ + access.size > capacity_) {
      const uint32_t victim = Worst();
      const Object& gone = objects_[victim];
      classes_[ClassOf(gone)].evictions[Coarse(now_ - gone.last_use)] += 1;
      Erase(victim);
      Evicted(victim);
    }
    Object& object = objects_[access.object];
    object = {access.size, now_, 0, kOldest, static_cast<uint32_t>(stored_.size()), random_.Uniform() < kExplore};
    stored_.push_back(access.object);
    used_ += access.size;
    recent_[now_ % kRecent] = access.object;
  }
  void Erase(uint32_t object) override {
    Object& gone = objects_[object];
    used_ -= gone.size;
    objects_[stored_.back()].place = gone.place;
    stored_[gone.place] = stored_.back();
    stored_.pop_back();
    gone.place = kNoObject;
  }

 private:
  static constexpr uint64_t kOldest = uint64_t{1} << 40;
  struct Object {
    uint64_t size = 0;
    uint64_t last_use = 0;
    uint64_t last_age = 0;      // between its last two uses
    uint64_t previous_age = 0;  // and the two before
    uint32_t place = kNoObject;  // in stored_
    bool explores = false;
  };
  struct Class {
    std::array<double, kAges> hits{};
    std::array<double, kAges> evictions{};
    std::array<double, kAges> density{};
  };

  size_t Coarse(uint64_t age) {
    const uint64_t coarse = age >> shift_;
    if (coarse < kAges) return static_cast<size_t>(coarse);
    ++too_old_;
    return kAges - 1;
  }

  size_t ClassOf(const Object& object) const {
    const uint64_t age = (object.last_age + object.previous_age) >> shift_;
    size_t log = 0;
    for (uint64_t a = std::max<uint64_t>(age, 1); a < kAges && log < kClasses - 1; a *= 2) ++log;
    return log;
  }

  double Density(uint32_t which) {
    const Object& object = objects_[which];
    const uint64_t age = std::min<uint64_t>((now_ - object.last_use) >> shift_, kAges - 1);
    if (age == kAges - 1) return -1;
    double density = classes_[ClassOf(object)].density[age] / static_cast<double>(std::max<uint64_t>(1, object.size));
    return object.explores ? density + 1 : density;
  }

  uint32_t Worst() {
    uint32_t worst = stored_[0];
    double least = Density(worst);
    const auto look = [&](uint32_t candidate) {
      const double density = Density(candidate);
      if (density < least) {
        least = density;
        worst = candidate;
      }
    };
    for (size_t i = 0; i < kSample; ++i) look(stored_[random_.Below(stored_.size())]);
    for (const uint32_t candidate : recent_) {
      if (candidate != kNoObject && Contains(candidate)) look(candidate);
    }
    return worst;
  }

  void Tick() {
    if (++now_ % kInterval != 0) return;
    for (Class& of : classes_) Reconfigure(of);
    if (too_old_ > kInterval / 100) ++shift_;
    too_old_ = 0;
  }

  void Reconfigure(Class& of) {
    double events = 0;
    double hits = 0;
    double lifetime = 0;
    for (size_t age = kAges; age-- > 0;) {
      of.hits[age] *= kDecay;
      of.evictions[age] *= kDecay;
      hits += of.hits[age];
      events += of.hits[age] + of.evictions[age];
      lifetime += events;
      of.density[age] = events > 1e-5 ? hits / lifetime : 0;
    }
  }

  Random random_;
  std::vector<Object> objects_;
  std::vector<uint32_t> stored_;
  std::array<uint32_t, kRecent> recent_;
  std::vector<Class> classes_;
  uint64_t used_ = 0;
  uint64_t now_ = 0;  // accesses
  uint64_t too_old_ = 0;
  uint32_t shift_ = 4;  // ages in units of 2^shift_ accesses
};

}  // namespace

Result<std::unique_ptr<Evictor>> MakeLhd(Params& params, const Setup& setup) {
  PITH_ASSIGN_OR_RETURN(const double seed, params.Number("seed", 1, 0, 1e9));
  return std::make_unique<Lhd>(setup, static_cast<uint64_t>(seed));
}

}  // namespace pith::evict
