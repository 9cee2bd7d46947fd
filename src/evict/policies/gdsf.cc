// GDSF: the smallest L + count * 1e6 / size goes, where L is that value of the last victim and count the requests since
// the object was stored; of equals, the least recently used. As libCacheSim has it (cost 1e6 for every object).
#include <algorithm>
#include <memory>

#include "evict/heap_evictor.h"

namespace pith::evict {
namespace {

struct Key {
  double priority = 0;
  uint64_t last_use = 0;
  uint64_t count = 0;
  bool operator<(const Key& other) const {
    return priority != other.priority ? priority < other.priority : last_use < other.last_use;
  }
};

class Gdsf final : public HeapEvictor<Gdsf, Key> {
 public:
  Gdsf(const Setup& setup, bool admit) : HeapEvictor(setup, admit) {}

  Key KeyFor(const Access& access, bool hit) {
    const uint64_t count = hit ? heap().KeyOf(access.object).count + 1 : 1;
    const auto size = static_cast<double>(std::max<uint64_t>(1, access.size));
    return {age_ + static_cast<double>(count) * 1e6 / size, ++now_, count};
  }
  void Gone(uint32_t, const Key& key, bool evicted) {
    if (evicted) age_ = key.priority;
  }

 private:
  double age_ = 0;    // L
  uint64_t now_ = 0;  // accesses
};

}  // namespace

Result<std::unique_ptr<Evictor>> MakeGdsf(Params&, const Setup& setup) {
  return std::make_unique<Gdsf>(setup, false);
}
Result<std::unique_ptr<Evictor>> MakeGdsfAdmit(Params&, const Setup& setup) {
  return std::make_unique<Gdsf>(setup, true);
}

}  // namespace pith::evict
