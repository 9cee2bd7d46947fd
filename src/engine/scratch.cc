#include "engine/scratch.h"

namespace pith {

std::byte* Scratch::Bytes(size_t bytes) {
  if (bytes > size_) {
    size_ = bytes + bytes / 4;
    data_.reset();
    data_.reset(new (std::align_val_t{64}) std::byte[size_]);
  }
  return data_.get();
}

}  // namespace pith
