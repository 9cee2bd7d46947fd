// Records in files that only grow.
//
//   record   header | payload, both filled up with zeros to 4 KiB
//   header   u32 "PKVS"  u16 version  u16 kind (0 an object, 1 one that was removed)
//            u32 header bytes, filled up   u32 CRC-32C of the header without this field
//            u64 number: of two records of one key, the greater one counts
//            32 bytes root of the space, 16 bytes key
//            u64 payload bytes   u32 CRC-32C of the payload
//            u32 tokens  i32 pinned  i32 rewind least, most  u32 has logits
//            f64 seconds that reading took  f64 Unix time
//            u32 bytes of the label, u32 bytes of the configuration, both texts, tokens as i32
//
// The payload is written first, then the header, then the file is brought to the disk: a record whose header is whole
// was given its payload before. What lies behind the first place where no whole record begins is not there.
// Removing an object changes its header in place, within the first 4 KiB.
// Nothing in a file is believed before it was compared with the file's size and the sums.
#ifndef PITH_STORE_SEGMENT_H_
#define PITH_STORE_SEGMENT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "pith/types.h"
#include "store/object.h"

namespace pith::store {

inline constexpr uint64_t kRecordAlignment = 4096;
inline uint64_t AlignRecord(uint64_t bytes) {
  return (bytes + kRecordAlignment - 1) / kRecordAlignment * kRecordAlignment;
}

struct RecordHeader {
  ObjectInfo info;
  uint64_t number = 0;
  bool removed = false;
  uint32_t payload_crc = 0;
  uint64_t header_bytes = 0;    // filled up

  uint64_t record_bytes() const { return header_bytes + AlignRecord(info.payload_bytes); }
};

// Filled up.
std::vector<std::byte> EncodeHeader(const RecordHeader& header);

// Bytes of a header whose first kRecordAlignment bytes these are; 0: none begins here.
uint64_t HeaderBytes(std::span<const std::byte> first);
// CRC-32C of a whole header without the field that holds it.
uint32_t HeaderSum(std::span<const std::byte> header);
// Of a header's first bytes: it says so itself.
bool IsRemoved(std::span<const std::byte> first);
// kCorrupt: no header, or a damaged one, or one whose key is not that of its tokens.
Result<RecordHeader> DecodeHeader(std::span<const std::byte> bytes);

// Bytes of a file from an offset on, all of `to` or an error.
using ReadAt = std::function<Status(uint64_t offset, std::span<std::byte> to)>;

// Calls `visit` for each whole record from offset `from` on, with its offset, and returns where they end.
uint64_t ScanSegment(const ReadAt& read, uint64_t from, uint64_t file_bytes,
                     const std::function<void(uint64_t offset, RecordHeader header)>& visit);

}  // namespace pith::store

#endif  // PITH_STORE_SEGMENT_H_
