// The object with the smallest key, among many whose keys change.
#ifndef PITH_EVICT_OBJECT_HEAP_H_
#define PITH_EVICT_OBJECT_HEAP_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "evict/object_lists.h"

namespace pith::evict {

// A heap of four children a node that knows where each object stands. Key needs operator<, with ties broken by itself.
template <typename Key>
class ObjectHeap {
 public:
  explicit ObjectHeap(size_t num_objects) : place_(num_objects, kNoObject) { entries_.reserve(num_objects); }

  bool empty() const { return entries_.empty(); }
  size_t size() const { return entries_.size(); }
  bool Contains(uint32_t object) const { return place_[object] != kNoObject; }
  uint32_t top() const { return entries_[0].object; }
  const Key& top_key() const { return entries_[0].key; }
  const Key& KeyOf(uint32_t object) const { return entries_[place_[object]].key; }

  // Adds the object or gives it another key.
  void Set(uint32_t object, const Key& key) {
    if (place_[object] == kNoObject) {
      place_[object] = static_cast<uint32_t>(entries_.size());
      entries_.push_back({key, object});
      Up(entries_.size() - 1);
    } else {
      const size_t at = place_[object];
      const bool smaller = key < entries_[at].key;
      entries_[at].key = key;
      smaller ? Up(at) : Down(at);
    }
  }

  void Remove(uint32_t object) {
    const size_t at = place_[object];
    place_[object] = kNoObject;
    const Entry last = entries_.back();
    entries_.pop_back();
    if (at == entries_.size()) return;
    const bool smaller = last.key < entries_[at].key;
    entries_[at] = last;
    place_[last.object] = static_cast<uint32_t>(at);
    smaller ? Up(at) : Down(at);
  }

 private:
  static constexpr size_t kChildren = 4;
  struct Entry {
    Key key;
    uint32_t object;
  };

  void Put(size_t at, const Entry& entry) {
    entries_[at] = entry;
    place_[entry.object] = static_cast<uint32_t>(at);
  }

  void Up(size_t at) {
    const Entry entry = entries_[at];
    while (at > 0) {
      const size_t parent = (at - 1) / kChildren;
      if (!(entry.key < entries_[parent].key)) break;
      Put(at, entries_[parent]);
      at = parent;
    }
    Put(at, entry);
  }

  void Down(size_t at) {
    const Entry entry = entries_[at];
    for (;;) {
      const size_t first = kChildren * at + 1;
      if (first >= entries_.size()) break;
      size_t least = first;
      const size_t end = std::min(first + kChildren, entries_.size());
      for (size_t child = first + 1; child < end; ++child) {
        if (entries_[child].key < entries_[least].key) least = child;
      }
      if (!(entries_[least].key < entry.key)) break;
      Put(at, entries_[least]);
      at = least;
    }
    Put(at, entry);
  }

  std::vector<Entry> entries_;
  std::vector<uint32_t> place_;  // by object: its index in entries_
};

}  // namespace pith::evict

#endif  // PITH_EVICT_OBJECT_HEAP_H_
