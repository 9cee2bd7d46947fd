// SHA-256 (FIPS 180-4): names that no two texts share, whoever chose them.
#ifndef PITH_BASE_SHA256_H_
#define PITH_BASE_SHA256_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace pith {

using Sha256Digest = std::array<std::byte, 32>;

class Sha256 {
 public:
  void Add(std::span<const std::byte> bytes);
  void Add(std::string_view text) { Add(std::as_bytes(std::span(text.data(), text.size()))); }
  // Once; nothing is added afterwards.
  Sha256Digest Finish();

 private:
  void Compress(const std::byte* block);

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::byte, 64> block_{};
  uint64_t num_bytes_ = 0;
};

}  // namespace pith

#endif  // PITH_BASE_SHA256_H_
