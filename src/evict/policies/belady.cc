// Belady's rule: the object whose next use is farthest goes; of equals, the largest id. The optimum for objects of one
// size, and a reference for prompts, where a block counts only with all blocks before it.
#include <memory>

#include "evict/heap_evictor.h"

namespace pith::evict {
namespace {

struct Key {
  uint32_t next = 0;
  uint64_t id = 0;
  bool operator<(const Key& other) const { return next != other.next ? next > other.next : id > other.id; }
};

class Belady final : public HeapEvictor<Belady, Key> {
 public:
  explicit Belady(const Setup& setup) : HeapEvictor(setup, false), trace_(*setup.trace) {}

  Key KeyFor(const Access& access, bool) { return {access.next, trace_.ids[access.object]}; }
  void Gone(uint32_t, const Key&, bool) {}

 private:
  const Trace& trace_;
};

}  // namespace

Result<std::unique_ptr<Evictor>> MakeBelady(Params&, const Setup& setup) {
  PITH_RETURN_IF_ERROR(CheckHasTrace("belady", setup));
  if (!setup.trace->uniform()) {
    return Unsupported("belady knows objects of one size only, and this trace has several; take belady-size");
  }
  return std::make_unique<Belady>(setup);
}

}  // namespace pith::evict
