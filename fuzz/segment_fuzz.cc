// Any bytes as a segment of the store: whole records or an end, and a record that is read is one that can be written.
// An input is a list of records and of damage to them (fuzz/records.h); one that begins with an odd byte stands for
// itself.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "fuzz/records.h"
#include "store/segment.h"

namespace {

using pith::fuzz::Input;
using pith::store::AlignRecord;
using pith::store::kRecordAlignment;

void Append(std::vector<std::byte>& to, std::span<const std::byte> bytes) {
  to.insert(to.end(), bytes.begin(), bytes.end());
}

std::vector<std::byte> MakeSegment(Input& input) {
  std::vector<std::byte> file;
  if ((input.Byte() & 1) != 0) {
    Append(file, input.Some(4 * kRecordAlignment));
    file.resize(AlignRecord(file.size()));
    return file;
  }
  for (int records = 0; records < 6 && !input.done(); ++records) {
    const uint8_t kind = input.Byte();
    const std::vector<std::byte> header = pith::fuzz::MakeHeader(input);
    Append(file, header);
    // The payload as the header says before it was damaged, or a page more or less.
    uint64_t payload_bytes = 0;
    std::memcpy(&payload_bytes, header.data() + 72, sizeof payload_bytes);
    const uint64_t pages = AlignRecord(payload_bytes % 9000) / kRecordAlignment + (kind & 1);
    file.resize(file.size() + (pages - ((kind & 2) != 0 && pages > 0 ? 1 : 0)) * kRecordAlignment);
    if ((kind & 0xf0) == 0xf0) file.resize(file.size() - input.Short() % file.size());  // a torn end
  }
  return file;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pith;
  using namespace pith::store;
  Input input(data, size);
  const std::vector<std::byte> bytes = MakeSegment(input);
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
