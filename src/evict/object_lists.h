// Doubly linked lists of objects in one flat array: an object is in one list or in none.
#ifndef PITH_EVICT_OBJECT_LISTS_H_
#define PITH_EVICT_OBJECT_LISTS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/check.h"

namespace pith::evict {

inline constexpr uint32_t kNoObject = UINT32_MAX;

// Lists are numbered from 1 to num_lists. The head is where new objects come by custom, the tail the oldest.
class ObjectLists {
 public:
  ObjectLists(size_t num_objects, size_t num_lists) : nodes_(num_objects), lists_(num_lists + 1) {}

  // 0: in none.
  uint32_t ListOf(uint32_t object) const { return nodes_[object].list; }
  uint64_t SizeOf(uint32_t object) const { return nodes_[object].size; }
  uint32_t head(uint32_t list) const { return lists_[list].head; }
  uint32_t tail(uint32_t list) const { return lists_[list].tail; }
  bool empty(uint32_t list) const { return lists_[list].tail == kNoObject; }
  // Sums of the objects' sizes, and their number.
  uint64_t bytes(uint32_t list) const { return lists_[list].bytes; }
  uint64_t count(uint32_t list) const { return lists_[list].count; }
  // Neighbour on the side of the head; kNoObject behind it.
  uint32_t TowardsHead(uint32_t object) const { return nodes_[object].prev; }
  uint32_t TowardsTail(uint32_t object) const { return nodes_[object].next; }

  void PushHead(uint32_t list, uint32_t object, uint64_t size) {
    List& to = lists_[list];
    nodes_[object] = {kNoObject, to.head, size, list};
    (to.head == kNoObject ? to.tail : nodes_[to.head].prev) = object;
    to.head = object;
    to.bytes += size;
    ++to.count;
  }

  // Out of the list that it is in.
  void Remove(uint32_t object) {
    Node& node = nodes_[object];
    PITH_DCHECK(node.list != 0);
    List& from = lists_[node.list];
    Unlink(from, node);
    from.bytes -= node.size;
    --from.count;
    node.list = 0;
  }

  void MoveToHead(uint32_t object) {
    Node& node = nodes_[object];
    List& list = lists_[node.list];
    if (list.head == object) return;
    Unlink(list, node);
    node.prev = kNoObject;
    node.next = list.head;
    nodes_[list.head].prev = object;
    list.head = object;
  }

  void Prefetch(uint32_t object) const { __builtin_prefetch(&nodes_[object], 1); }

 private:
  struct Node {
    uint32_t prev = kNoObject;
    uint32_t next = kNoObject;
    uint64_t size = 0;
    uint32_t list = 0;
  };
  struct List {
    uint32_t head = kNoObject;
    uint32_t tail = kNoObject;
    uint64_t bytes = 0;
    uint64_t count = 0;
  };

  void Unlink(List& list, const Node& node) {
    (node.prev == kNoObject ? list.head : nodes_[node.prev].next) = node.next;
    (node.next == kNoObject ? list.tail : nodes_[node.next].prev) = node.prev;
  }

  std::vector<Node> nodes_;
  std::vector<List> lists_;
};

}  // namespace pith::evict

#endif  // PITH_EVICT_OBJECT_LISTS_H_
