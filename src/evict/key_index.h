// 64-bit keys to dense numbers, in the order of first appearance.
#ifndef PITH_EVICT_KEY_INDEX_H_
#define PITH_EVICT_KEY_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pith::evict {

// Open addressing with linear probing, at most half full. Keys are never removed.
class KeyIndex {
 public:
  explicit KeyIndex(size_t expected_keys = 0) {
    size_t slots = 64;
    while (slots < 2 * expected_keys) slots *= 2;
    slots_.resize(slots);
  }

  size_t size() const { return keys_.size(); }
  // By number.
  const std::vector<uint64_t>& keys() const { return keys_; }

  // The key's number, a new one where it has none. At most 2^32 - 2 keys.
  uint32_t Number(uint64_t key) {
    size_t at = Place(key);
    while (slots_[at].number != kFree) {
      if (slots_[at].key == key) return slots_[at].number;
      at = (at + 1) & (slots_.size() - 1);
    }
    const auto number = static_cast<uint32_t>(keys_.size());
    slots_[at] = {key, number};
    keys_.push_back(key);
    if (2 * keys_.size() > slots_.size()) Grow();
    return number;
  }

 private:
  static constexpr uint32_t kFree = UINT32_MAX;
  struct Slot {
    uint64_t key = 0;
    uint32_t number = kFree;
  };

  // The upper half of a product depends on all bits of the key.
  size_t Place(uint64_t key) const {
    const auto product = static_cast<unsigned __int128>(key ^ 0x9e3779b97f4a7c15u) * 0xd6e8feb86659fd93u;
    return static_cast<size_t>(static_cast<uint64_t>(product >> 64) ^ static_cast<uint64_t>(product)) &
           (slots_.size() - 1);
  }

  void Grow() {
    slots_.assign(2 * slots_.size(), Slot{});
    for (size_t i = 0; i < keys_.size(); ++i) {
      size_t at = Place(keys_[i]);
      while (slots_[at].number != kFree) at = (at + 1) & (slots_.size() - 1);
      slots_[at] = {keys_[i], static_cast<uint32_t>(i)};
    }
  }

  std::vector<Slot> slots_;
  std::vector<uint64_t> keys_;
};

}  // namespace pith::evict

#endif  // PITH_EVICT_KEY_INDEX_H_
