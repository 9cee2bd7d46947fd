// CRC-32C (Castagnoli): finds damage, at the speed of memory where the processor has an instruction for it.
#ifndef PITH_BASE_CRC32C_H_
#define PITH_BASE_CRC32C_H_

#include <cstddef>
#include <cstdint>
#include <span>

namespace pith {

// `before`: of the bytes that go before these; 0: none do.
uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t before = 0);

// The same by tables alone, on every processor.
uint32_t Crc32cByTable(std::span<const std::byte> bytes, uint32_t before = 0);

}  // namespace pith

#endif  // PITH_BASE_CRC32C_H_
