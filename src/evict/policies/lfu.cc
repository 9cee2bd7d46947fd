// LFU: the object with the fewest requests since it was stored goes; of equals, the least recently used.
#include <memory>

#include "evict/heap_evictor.h"

namespace pith::evict {
namespace {

struct Key {
  uint64_t count = 0;
  uint64_t last_use = 0;
  bool operator<(const Key& other) const {
    return count != other.count ? count < other.count : last_use < other.last_use;
  }
};

class Lfu final : public HeapEvictor<Lfu, Key> {
 public:
  explicit Lfu(const Setup& setup) : HeapEvictor(setup, false) {}

  Key KeyFor(const Access& access, bool hit) {
    return {hit ? heap().KeyOf(access.object).count + 1 : 1, ++now_};
  }
  void Gone(uint32_t, const Key&, bool) {}

 private:
  uint64_t now_ = 0;  // accesses
};

}  // namespace

Result<std::unique_ptr<Evictor>> MakeLfu(Params&, const Setup& setup) { return std::make_unique<Lfu>(setup); }

}  // namespace pith::evict
