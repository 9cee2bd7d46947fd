// Places for sequences in libllama's context, whose rows carry their numbers there.
#ifndef PITH_ENGINE_SLOT_POOL_H_
#define PITH_ENGINE_SLOT_POOL_H_

#include <algorithm>
#include <cstddef>
#include <vector>

namespace pith {

class SlotPool {
 public:
  SlotPool() = default;
  // spare: one more, behind the others, which second readings take first and sequences never.
  SlotPool(int count, bool spare) : used_(static_cast<size_t>(count)), has_spare_(spare) {}

  int count() const { return static_cast<int>(used_.size()); }  // the spare one apart
  // The first that nobody has, which stays free until Take(). -1: there is none.
  int FindFree() const {
    const auto slot = std::find(used_.begin(), used_.end(), false);
    return slot == used_.end() ? -1 : static_cast<int>(slot - used_.begin());
  }
  // The same for a second reading.
  int FindFreeForReading() const { return has_spare_ && !is_spare_used_ ? count() : FindFree(); }
  void Take(int slot) { Set(slot, true); }
  void Give(int slot) { Set(slot, false); }

 private:
  void Set(int slot, bool is_used) {
    if (slot == count()) {
      is_spare_used_ = is_used;
    } else {
      used_[static_cast<size_t>(slot)] = is_used;
    }
  }

  std::vector<bool> used_;
  bool has_spare_ = false, is_spare_used_ = false;
};

}  // namespace pith

#endif  // PITH_ENGINE_SLOT_POOL_H_
