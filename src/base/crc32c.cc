#include "base/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

namespace pith {
namespace {

constexpr size_t kSlices = 8;
using Tables = std::array<std::array<uint32_t, 256>, kSlices>;

constexpr Tables MakeTables() {
  constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected
  Tables tables{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ ((value & 1) != 0 ? kPolynomial : 0);
    tables[0][i] = value;
  }
  for (size_t slice = 1; slice < kSlices; ++slice) {
    for (size_t i = 0; i < 256; ++i) {
      const uint32_t value = tables[slice - 1][i];
      tables[slice][i] = value >> 8 ^ tables[0][value & 0xff];
    }
  }
  return tables;
}
constexpr Tables kTables = MakeTables();

uint64_t Load(const std::byte* at) {
  uint64_t word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

// The register, without the inversions at both ends.
uint32_t ByTable(uint32_t crc, const std::byte* at, size_t count) {
  for (; count >= sizeof(uint64_t); count -= sizeof(uint64_t), at += sizeof(uint64_t)) {
    const uint64_t word = Load(at) ^ crc;
    crc = 0;
    for (size_t i = 0; i < kSlices; ++i) crc ^= kTables[kSlices - 1 - i][word >> 8 * i & 0xff];
  }
  for (; count > 0; --count, ++at) crc = crc >> 8 ^ kTables[0][(crc ^ std::to_integer<uint32_t>(*at)) & 0xff];
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t ByInstruction(uint32_t crc, const std::byte* at, size_t count) {
  uint64_t wide = crc;
  for (; count >= sizeof(uint64_t); count -= sizeof(uint64_t), at += sizeof(uint64_t)) {
    wide = _mm_crc32_u64(wide, Load(at));
  }
  crc = static_cast<uint32_t>(wide);
  for (; count > 0; --count, ++at) crc = _mm_crc32_u8(crc, std::to_integer<uint8_t>(*at));
  return crc;
}
bool HasInstruction() { return __builtin_cpu_supports("sse4.2") != 0; }
#elif defined(__ARM_FEATURE_CRC32)
uint32_t ByInstruction(uint32_t crc, const std::byte* at, size_t count) {
  for (; count >= sizeof(uint64_t); count -= sizeof(uint64_t), at += sizeof(uint64_t)) crc = __crc32cd(crc, Load(at));
  for (; count > 0; --count, ++at) crc = __crc32cb(crc, std::to_integer<uint8_t>(*at));
  return crc;
}
bool HasInstruction() { return true; }
#else
uint32_t ByInstruction(uint32_t crc, const std::byte* at, size_t count) { return ByTable(crc, at, count); }
bool HasInstruction() { return false; }
#endif

}  // namespace

uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t before) {
  static const bool has_instruction = HasInstruction();
  return ~(has_instruction ? ByInstruction : ByTable)(~before, bytes.data(), bytes.size());
}

uint32_t Crc32cByTable(std::span<const std::byte> bytes, uint32_t before) {
  return ~ByTable(~before, bytes.data(), bytes.size());
}

}  // namespace pith
