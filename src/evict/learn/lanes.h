// Floats side by side, which compilers turn into what a processor has.
//
// Rows are padded to kLanes floats. A body is compiled for vectors as wide as its target has registers (wider ones go
// through memory), and takes a row in several steps where these are narrower: the bits are the same.
#ifndef PITH_EVICT_LEARN_LANES_H_
#define PITH_EVICT_LEARN_LANES_H_

#include <cstddef>
#include <cstdint>

namespace pith::evict {

inline constexpr size_t kLanes = 16;

// One for each width: templates forget the attributes of types. Rows begin where a float may: Clang forgets that of a
// reference to Floats, too, but not of one to a struct that is packed.
#define PITH_LANES(name, bytes)                                                                     \
  struct name {                                                                                     \
    static constexpr size_t kWidth = bytes / sizeof(float);                                         \
    using Floats = float __attribute__((vector_size(bytes), aligned(alignof(float)), may_alias));   \
    using Bits = uint32_t __attribute__((vector_size(bytes), aligned(alignof(float)), may_alias));  \
    using Signed = int32_t __attribute__((vector_size(bytes), aligned(alignof(float)), may_alias)); \
    struct __attribute__((packed, aligned(alignof(float)), may_alias)) Row {                        \
      Floats values;                                                                                \
    };                                                                                              \
  };
PITH_LANES(Lanes4, 16)
PITH_LANES(Lanes8, 32)
PITH_LANES(Lanes16, 64)
#undef PITH_LANES

template <typename L>
[[gnu::always_inline]] inline void Store(float* to, const typename L::Floats& values) {
  reinterpret_cast<typename L::Row*>(to)->values = values;
}
template <typename L>
[[gnu::always_inline]] inline const typename L::Row& At(const float* from) {
  return *reinterpret_cast<const typename L::Row*>(from);
}

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_LANES_H_
