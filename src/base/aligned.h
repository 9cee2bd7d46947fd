// Memory that begins where a cache line does, as kernels want it.
#ifndef PITH_BASE_ALIGNED_H_
#define PITH_BASE_ALIGNED_H_

#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>

namespace pith {

inline constexpr size_t kLineBytes = 64;

struct FreeAligned {
  void operator()(void* at) const { ::operator delete[](at, std::align_val_t{kLineBytes}); }
};
template <typename T>
using AlignedArray = std::unique_ptr<T[], FreeAligned>;

// So many numbers, undefined.
template <typename T>
AlignedArray<T> AllocateAligned(size_t count) {
  static_assert(std::is_trivial_v<T>);
  return AlignedArray<T>(static_cast<T*>(::operator new[](count * sizeof(T), std::align_val_t{kLineBytes})));
}

// Such memory that grows to its largest use and stays. Growing loses the contents.
class Scratch {
 public:
  std::byte* Bytes(size_t bytes) {
    if (bytes > size_) {
      size_ = bytes + bytes / 4;
      data_.reset();  // not both at once
      data_ = AllocateAligned<std::byte>(size_);
    }
    return data_.get();
  }
  float* Floats(size_t count) { return reinterpret_cast<float*>(Bytes(count * sizeof(float))); }

 private:
  AlignedArray<std::byte> data_;
  size_t size_ = 0;
};

}  // namespace pith

#endif  // PITH_BASE_ALIGNED_H_
