// FWA0, flush on zeros (evict/one_bit.h): the least recently used object whose bit is 1 goes; where there is none, all.
#include <memory>
#include <utility>

#include "evict/object_lists.h"
#include "evict/one_bit.h"

namespace pith::evict {
namespace {

constexpr uint32_t kZeros = 1;
constexpr uint32_t kOnes = 2;

class Fwa0 final : public Replayed<Fwa0> {
 public:
  Fwa0(const Setup& setup, std::vector<uint8_t> bits)
      : Replayed(setup.capacity), bits_(std::move(bits)), lists_(setup.num_objects, 2) {}

  bool Contains(uint32_t object) const override { return lists_.ListOf(object) != 0; }
  uint64_t used_bytes() const override { return lists_.bytes(kZeros) + lists_.bytes(kOnes); }
  void OnHit(const Access& access) override {
    const uint64_t size = lists_.SizeOf(access.object);
    lists_.Remove(access.object);
    lists_.PushHead(bits_[access.position] != 0 ? kOnes : kZeros, access.object, size);
  }
  void OnMiss(const Access& access) override {
    if (access.size > capacity_) return;
    if (used_bytes() + access.size > capacity_ && lists_.empty(kOnes)) {
      while (!lists_.empty(kZeros)) Evict(lists_.tail(kZeros));
    }
    while (used_bytes() + access.size > capacity_) Evict(lists_.tail(lists_.empty(kOnes) ? kZeros : kOnes));
    lists_.PushHead(bits_[access.position] != 0 ? kOnes : kZeros, access.object, access.size);
  }
  void Erase(uint32_t object) override { lists_.Remove(object); }

 private:
  void Evict(uint32_t object) {
    lists_.Remove(object);
    Evicted(object);
  }

  const std::vector<uint8_t> bits_;  // by access
  ObjectLists lists_;
};

}  // namespace

std::unique_ptr<Evictor> MakeFwa0WithBits(const Setup& setup, std::vector<uint8_t> bits) {
  return std::make_unique<Fwa0>(setup, std::move(bits));
}

Result<std::unique_ptr<Evictor>> MakeFwa0(Params& params, const Setup& setup) {
  PITH_ASSIGN_OR_RETURN(OneBitParams read, ReadOneBitParams(params, setup, /*phase_bits=*/false));
  return WithGuard(MakeFwa0WithBits(setup, std::move(read.bits)), read, setup);
}

}  // namespace pith::evict
