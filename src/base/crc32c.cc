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

#if defined(__x86_64__) || defined(__ARM_FEATURE_CRC32)
// An instruction's answer comes three cycles after it was begun, and another one may begin in each: three pieces pass
// at once. A register moves on by a piece of zeros as a linear map, which is four look-ups.
constexpr size_t kPiece = 2048;

using Columns = std::array<uint32_t, 32>;  // of a map of registers: what becomes of each bit

constexpr uint32_t Apply(const Columns& map, uint32_t value) {
  uint32_t sum = 0;
  for (size_t i = 0; i < 32; ++i) sum ^= (value >> i & 1) != 0 ? map[i] : 0;
  return sum;
}

// Past `bytes` zeros, a power of two.
constexpr Columns PastZeros(size_t bytes) {
  Columns map{};
  for (size_t i = 0; i < 32; ++i) {
    const uint32_t value = uint32_t{1} << i;
    map[i] = value >> 8 ^ kTables[0][value & 0xff];
  }
  for (; bytes > 1; bytes /= 2) {
    Columns twice{};
    for (size_t i = 0; i < 32; ++i) twice[i] = Apply(map, map[i]);
    map = twice;
  }
  return map;
}

using Shift = std::array<std::array<uint32_t, 256>, 4>;  // by byte of the register

constexpr Shift MakeShift(const Columns& map) {
  Shift shift{};
  for (size_t byte = 0; byte < 4; ++byte) {
    for (uint32_t value = 0; value < 256; ++value) shift[byte][value] = Apply(map, value << 8 * byte);
  }
  return shift;
}
constexpr Shift kPastOne = MakeShift(PastZeros(kPiece));
constexpr Shift kPastTwo = MakeShift(PastZeros(2 * kPiece));

uint32_t Move(const Shift& shift, uint32_t crc) {
  return shift[0][crc & 0xff] ^ shift[1][crc >> 8 & 0xff] ^ shift[2][crc >> 16 & 0xff] ^ shift[3][crc >> 24];
}
#endif

#if defined(__x86_64__)
#define PITH_CRC_TARGET __attribute__((target("sse4.2")))
PITH_CRC_TARGET inline uint32_t Word(uint32_t crc, const std::byte* at) {
  return static_cast<uint32_t>(_mm_crc32_u64(crc, Load(at)));
}
PITH_CRC_TARGET inline uint32_t Byte(uint32_t crc, std::byte byte) {
  return _mm_crc32_u8(crc, std::to_integer<uint8_t>(byte));
}
bool HasInstruction() { return __builtin_cpu_supports("sse4.2") != 0; }
#elif defined(__ARM_FEATURE_CRC32)
#define PITH_CRC_TARGET
inline uint32_t Word(uint32_t crc, const std::byte* at) { return __crc32cd(crc, Load(at)); }
inline uint32_t Byte(uint32_t crc, std::byte byte) { return __crc32cb(crc, std::to_integer<uint8_t>(byte)); }
bool HasInstruction() { return true; }
#endif

#if defined(PITH_CRC_TARGET)
PITH_CRC_TARGET uint32_t ByInstruction(uint32_t crc, const std::byte* at, size_t count) {
  for (; count >= 3 * kPiece; count -= 3 * kPiece, at += 3 * kPiece) {
    uint32_t second = 0, third = 0;
    for (size_t i = 0; i < kPiece; i += sizeof(uint64_t)) {
      crc = Word(crc, at + i);
      second = Word(second, at + kPiece + i);
      third = Word(third, at + 2 * kPiece + i);
    }
    crc = Move(kPastTwo, crc) ^ Move(kPastOne, second) ^ third;
  }
  for (; count >= sizeof(uint64_t); count -= sizeof(uint64_t), at += sizeof(uint64_t)) crc = Word(crc, at);
  for (; count > 0; --count, ++at) crc = Byte(crc, *at);
  return crc;
}
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
