#include "store/object.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>

namespace pith::store {

size_t Block::ResidentBytes(size_t bytes) {
  constexpr size_t kPage = 4096;
  return (std::max<size_t>(bytes, 1) + kPage - 1) / kPage * kPage;
}

namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// Where huge pages fit, they begin at a multiple of their size, so that memory comes in few steps; the rest of a
// mapping stays in small ones. Null: there is none.
std::byte* MapBytes(size_t bytes) {
  const size_t spare = bytes >= kHugePage ? kHugePage : 0;
  void* const mapped = ::mmap(nullptr, bytes + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto* data = static_cast<std::byte*>(mapped);
  if (spare == 0) return data;
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(data) % kHugePage) % kHugePage;
  if (before > 0) ::munmap(data, before);
  data += before;
  ::munmap(data + bytes, spare - before);
  (void)::madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
  return data;
}

}  // namespace

std::shared_ptr<Block> Block::Make(size_t bytes, std::shared_ptr<std::atomic<size_t>> used) {
  const size_t resident = ResidentBytes(bytes);
  std::byte* const data = MapBytes(resident);
  if (data == nullptr) return nullptr;
  used->fetch_add(resident, std::memory_order_relaxed);
  return std::shared_ptr<Block>(new Block(data, bytes, std::move(used)));
}

Block::~Block() {
  const size_t resident = resident_bytes();
  ::munmap(data_, resident);
  used_->fetch_sub(resident, std::memory_order_relaxed);
}

}  // namespace pith::store
