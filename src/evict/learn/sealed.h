// Bytes of our own files with their checksum behind them.
#ifndef PITH_EVICT_LEARN_SEALED_H_
#define PITH_EVICT_LEARN_SEALED_H_

#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/byte_io.h"

namespace pith::evict {

inline constexpr size_t kSealBytes = sizeof(uint64_t);

inline std::string Sealed(MemoryWriter& writer) {
  Hash64 hash;
  hash.Add(writer.bytes());
  writer.Number(hash.value());
  return {reinterpret_cast<const char*>(writer.bytes().data()), writer.bytes().size()};
}

// What stands between the first `skip` bytes and the checksum; nothing where that does not fit. At least skip and
// kSealBytes are there.
inline std::optional<MemoryReader> Unsealed(std::string_view bytes, size_t skip) {
  uint64_t sum = 0;
  std::memcpy(&sum, bytes.data() + bytes.size() - kSealBytes, kSealBytes);
  bytes.remove_suffix(kSealBytes);
  Hash64 hash;
  hash.Add(bytes);
  if (hash.value() != sum) return std::nullopt;
  return MemoryReader(std::as_bytes(std::span(bytes.data(), bytes.size()).subspan(skip)));
}

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_SEALED_H_
