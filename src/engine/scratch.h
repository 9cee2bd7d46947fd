#ifndef PITH_ENGINE_SCRATCH_H_
#define PITH_ENGINE_SCRATCH_H_

#include <cstddef>
#include <memory>
#include <new>

namespace pith {

// 64-byte aligned memory that grows to its largest use and stays. Growing loses the contents.
class Scratch {
 public:
  std::byte* Bytes(size_t bytes);
  float* Floats(size_t count) { return reinterpret_cast<float*>(Bytes(count * sizeof(float))); }

 private:
  struct Free {
    void operator()(std::byte* pointer) const { ::operator delete[](pointer, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte[], Free> data_;
  size_t size_ = 0;
};

}  // namespace pith

#endif  // PITH_ENGINE_SCRATCH_H_
