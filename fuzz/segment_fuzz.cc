// Any bytes as a segment of the store: whole records or an end, and a record that is read is one that can be written.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>

#include "store/segment.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pith;
  using namespace pith::store;
  // Every fourth kilobyte of a segment is a choice of the input, so that small inputs reach far; the sum of each header
  // is put right where the input asks for it.
  std::vector<std::byte> bytes(AlignRecord(size));
  if (size > 0) std::memcpy(bytes.data(), data, size);
  for (size_t at = 0; at + kRecordAlignment <= bytes.size(); at += kRecordAlignment) {
    const uint64_t header_bytes = HeaderBytes(std::span(bytes).subspan(at, kRecordAlignment));
    if (header_bytes == 0 || header_bytes > bytes.size() - at || bytes[at + 12] != std::byte{0xff}) continue;
    const std::span<std::byte> header = std::span(bytes).subspan(at, header_bytes);
    const uint32_t sum = HeaderSum(header);
    std::memcpy(header.data() + 12, &sum, sizeof sum);
  }
  const auto read = [&](uint64_t offset, std::span<std::byte> to) -> Status {
    if (offset > bytes.size() || to.size() > bytes.size() - offset) return Corrupt("it ends too early");
    std::memcpy(to.data(), bytes.data() + offset, to.size());
    return {};
  };
  uint64_t last = 0;
  const uint64_t end = ScanSegment(read, 0, bytes.size(), [&](uint64_t offset, RecordHeader header) {
    if (offset < last || offset + header.record_bytes() > bytes.size()) std::abort();
    last = offset + header.record_bytes();
    const auto again = DecodeHeader(EncodeHeader(header));
    if (!again || again->info.tokens != header.info.tokens || again->info.key != header.info.key) std::abort();
  });
  if (end != last || end > bytes.size()) std::abort();
  return 0;
}
