// Sets of objects from which one is drawn by lot in constant time.
#ifndef PITH_EVICT_OBJECT_GROUPS_H_
#define PITH_EVICT_OBJECT_GROUPS_H_

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "evict/object_lists.h"
#include "evict/random.h"

namespace pith::evict {

// Each object is in one of kGroups sets or in none.
template <size_t kGroups>
class ObjectGroups {
 public:
  explicit ObjectGroups(size_t num_objects) : place_(num_objects) {
    for (std::vector<uint32_t>& group : groups_) group.reserve(num_objects);
  }

  static constexpr size_t kNone = kGroups;
  size_t GroupOf(uint32_t object) const {
    return place_[object].index == kNoObject ? kNone : name_[place_[object].group];
  }
  bool empty(size_t group) const { return groups_[named_[group]].empty(); }
  const std::vector<uint32_t>& members(size_t group) const { return groups_[named_[group]]; }
  uint32_t Draw(size_t group, Random& random) const { return members(group)[random.Below(members(group).size())]; }

  void Put(uint32_t object, size_t group) {
    if (place_[object].index != kNoObject) Remove(object);
    std::vector<uint32_t>& to = groups_[named_[group]];
    place_[object] = {static_cast<uint32_t>(to.size()), static_cast<uint32_t>(named_[group])};
    to.push_back(object);
  }

  void Remove(uint32_t object) {
    std::vector<uint32_t>& from = groups_[place_[object].group];
    const uint32_t at = place_[object].index;
    from[at] = from.back();
    place_[from[at]].index = at;
    from.pop_back();
    place_[object].index = kNoObject;
  }

  // All of a are in b and the other way round.
  void Swap(size_t a, size_t b) {
    std::swap(named_[a], named_[b]);
    std::swap(name_[named_[a]], name_[named_[b]]);
  }

 private:
  static constexpr std::array<size_t, kGroups> Identity() {
    std::array<size_t, kGroups> identity{};
    for (size_t i = 0; i < kGroups; ++i) identity[i] = i;
    return identity;
  }

  struct Place {
    uint32_t index = kNoObject;
    uint32_t group = 0;  // index into groups_
  };
  std::array<std::vector<uint32_t>, kGroups> groups_;
  std::array<size_t, kGroups> named_ = Identity();  // from the caller's group to groups_
  std::array<size_t, kGroups> name_ = Identity();   // and back
  std::vector<Place> place_;
};

}  // namespace pith::evict

#endif  // PITH_EVICT_OBJECT_GROUPS_H_
