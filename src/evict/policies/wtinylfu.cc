// W-TinyLFU (Einziger, Friedman and Manes 2017): a window of 1% as LRU, and a main part as segmented LRU, a fifth on
// probation and the rest protected. What leaves the window enters main only if it was asked for more often, by a sketch
// of recent counts, than all that would have to go for it together (as for objects of different sizes in Einziger et
// al. 2022).
#include <algorithm>
#include <memory>
#include <vector>

#include "evict/object_lists.h"
#include "evict/random.h"
#include "evict/registry.h"

namespace pith::evict {
namespace {

// Counts of up to 15 in four rows, halved after `sample` additions.
class Sketch {
 public:
  explicit Sketch(size_t num_objects) {
    size_t width = 64;
    while (width < num_objects && width < (size_t{1} << 22)) width *= 2;
    mask_ = width - 1;
    counts_.assign(kRows * width, 0);
  }

  void Add(uint32_t object, uint64_t sample) {
    Random places(object);
    for (size_t row = 0; row < kRows; ++row) {
      uint8_t& count = counts_[row * (mask_ + 1) + (places.Next() & mask_)];
      if (count < kMost) ++count;
    }
    if (++added_ < sample) return;
    for (uint8_t& count : counts_) count /= 2;
    added_ /= 2;
  }

  uint32_t Count(uint32_t object) const {
    Random places(object);
    uint32_t least = kMost;
    for (size_t row = 0; row < kRows; ++row) {
      least = std::min<uint32_t>(least, counts_[row * (mask_ + 1) + (places.Next() & mask_)]);
    }
    return least;
  }

 private:
  static constexpr size_t kRows = 4;
  static constexpr uint8_t kMost = 15;
  size_t mask_;
  std::vector<uint8_t> counts_;
  uint64_t added_ = 0;
};

constexpr uint32_t kWindow = 1;
constexpr uint32_t kProbation = 2;
constexpr uint32_t kProtected = 3;
constexpr uint64_t kSamplePerObject = 32;

class WTinyLfu final : public Replayed<WTinyLfu> {
 public:
  explicit WTinyLfu(const Setup& setup)
      : Replayed(setup.capacity), window_bytes_(setup.capacity / 100), main_bytes_(setup.capacity - window_bytes_),
        lists_(setup.num_objects, 3), sketch_(setup.num_objects) {}

  bool Contains(uint32_t object) const override { return lists_.ListOf(object) != 0; }
  uint64_t used_bytes() const override { return lists_.bytes(kWindow) + main_used(); }
  void OnHit(const Access& access) override {
    Count(access.object);
    if (lists_.ListOf(access.object) != kProbation) {
      lists_.MoveToHead(access.object);
      return;
    }
    Move(access.object, kProtected);
    while (lists_.bytes(kProtected) > main_bytes_ / 5 * 4) Move(lists_.tail(kProtected), kProbation);
  }
  void OnMiss(const Access& access) override {
    Count(access.object);
    if (access.size > main_bytes_) return;
    lists_.PushHead(kWindow, access.object, access.size);
    while (lists_.bytes(kWindow) > window_bytes_) LeaveWindow(lists_.tail(kWindow));
  }
  void Erase(uint32_t object) override { lists_.Remove(object); }
  void Prefetch(uint32_t object) const { lists_.Prefetch(object); }
  void Resize(uint64_t capacity_bytes) override {
    capacity_ = capacity_bytes;
    window_bytes_ = capacity_ / 100;
    main_bytes_ = capacity_ - window_bytes_;
    while (main_used() > main_bytes_) LeaveMain();
    while (lists_.bytes(kWindow) > window_bytes_) LeaveWindow(lists_.tail(kWindow));
  }

 private:
  uint64_t main_used() const { return lists_.bytes(kProbation) + lists_.bytes(kProtected); }

  void Count(uint32_t object) {
    const uint64_t stored = lists_.count(kWindow) + lists_.count(kProbation) + lists_.count(kProtected);
    sketch_.Add(object, kSamplePerObject * std::max<uint64_t>(stored, 32));
  }

  void Move(uint32_t object, uint32_t list) {
    const uint64_t size = lists_.SizeOf(object);
    lists_.Remove(object);
    lists_.PushHead(list, object, size);
  }

  // From the tail of probation, then of protected.
  uint32_t NextVictim(uint32_t victim) const {
    if (victim != kNoObject) {
      const uint32_t next = lists_.TowardsHead(victim);
      if (next != kNoObject || lists_.ListOf(victim) == kProtected) return next;
      return lists_.tail(kProtected);
    }
    return lists_.empty(kProbation) ? lists_.tail(kProtected) : lists_.tail(kProbation);
  }

  void LeaveWindow(uint32_t candidate) {
    const uint64_t size = lists_.SizeOf(candidate);
    uint64_t free = main_bytes_ - main_used();
    uint32_t against = 0;
    uint32_t end = kNoObject;  // the last victim
    const uint32_t mine = sketch_.Count(candidate);
    while (free < size && against < mine) {
      end = NextVictim(end);
      free += lists_.SizeOf(end);
      against += sketch_.Count(end);
    }
    if (free < size || (end != kNoObject && against >= mine)) {
      lists_.Remove(candidate);
      Evicted(candidate);
      return;
    }
    while (main_bytes_ - main_used() < size) LeaveMain();
    Move(candidate, kProbation);
  }

  void LeaveMain() {
    const uint32_t victim = NextVictim(kNoObject);
    lists_.Remove(victim);
    Evicted(victim);
  }

  uint64_t window_bytes_;
  uint64_t main_bytes_;
  ObjectLists lists_;
  Sketch sketch_;
};

}  // namespace

Result<std::unique_ptr<Evictor>> MakeWTinyLfu(Params&, const Setup& setup) {
  return std::make_unique<WTinyLfu>(setup);
}

}  // namespace pith::evict
