#include "store/object.h"

#include <sys/mman.h>

#include <algorithm>

namespace pith::store {

size_t Block::ResidentBytes(size_t bytes) {
  constexpr size_t kPage = 4096;
  return (std::max<size_t>(bytes, 1) + kPage - 1) / kPage * kPage;
}

std::shared_ptr<Block> Block::Make(size_t bytes, std::shared_ptr<std::atomic<size_t>> used) {
  const size_t resident = ResidentBytes(bytes);
  void* const data = ::mmap(nullptr, resident, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  used->fetch_add(resident, std::memory_order_relaxed);
  return std::shared_ptr<Block>(new Block(static_cast<std::byte*>(data), bytes, std::move(used)));
}

Block::~Block() {
  const size_t resident = resident_bytes();
  ::munmap(data_, resident);
  used_->fetch_sub(resident, std::memory_order_relaxed);
}

}  // namespace pith::store
