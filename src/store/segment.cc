#include "store/segment.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/byte_io.h"
#include "base/crc32c.h"

namespace pith::store {
namespace {

constexpr uint32_t kMagic = 0x53564b50;  // "PKVS"
constexpr uint16_t kVersion = 1;
constexpr size_t kCrcOffset = 12;
// A header says what it is in fewer bytes: 2 million tokens.
constexpr uint64_t kMostHeaderBytes = uint64_t{16} << 20;
constexpr uint64_t kMostPayloadBytes = uint64_t{1} << 40;

bool ReadText(ByteReader& reader, uint32_t length, std::string& text) { return reader.Fill(length, text); }

bool ReadBody(ByteReader& reader, RecordHeader& header) {
  ObjectInfo& info = header.info;
  uint32_t num_tokens = 0, has_logits = 0, label_bytes = 0, config_bytes = 0;
  return reader.Number(header.number) && reader.Array(std::span(info.root)) &&
         reader.Array(std::span(info.key.bytes)) && reader.Number(info.payload_bytes) &&
         reader.Number(header.payload_crc) && reader.Number(num_tokens) && reader.Number(info.num_pinned) &&
         reader.Number(info.rewind_least) && reader.Number(info.rewind_most) && reader.Number(has_logits) &&
         reader.Number(info.compute_seconds) && reader.Number(info.written_at) && reader.Number(label_bytes) &&
         reader.Number(config_bytes) && ReadText(reader, label_bytes, info.label) &&
         ReadText(reader, config_bytes, info.config) && reader.Fill(num_tokens, info.tokens) &&
         (info.has_logits = has_logits != 0, has_logits <= 1);
}

bool IsSane(const ObjectInfo& info) {
  const auto count = static_cast<int64_t>(info.tokens.size());
  return info.num_pinned >= 0 && info.num_pinned <= count && info.rewind_least >= 0 &&
         info.rewind_least <= info.rewind_most && info.rewind_most <= count && std::isfinite(info.compute_seconds) &&
         info.compute_seconds >= 0 && std::isfinite(info.written_at) && info.payload_bytes <= kMostPayloadBytes;
}

}  // namespace

uint32_t HeaderSum(std::span<const std::byte> header) {
  return Crc32c(header.subspan(kCrcOffset + sizeof(uint32_t)), Crc32c(header.first(kCrcOffset)));
}

std::vector<std::byte> EncodeHeader(const RecordHeader& header) {
  const ObjectInfo& info = header.info;
  MemoryWriter writer;
  writer.Number(kMagic);
  writer.Number(kVersion);
  writer.Number(static_cast<uint16_t>(header.removed ? 1 : 0));
  writer.Number(uint32_t{0});  // bytes
  writer.Number(uint32_t{0});  // sum
  writer.Number(header.number);
  writer.Array(std::span(info.root));
  writer.Array(std::span(info.key.bytes));
  writer.Number(info.payload_bytes);
  writer.Number(header.payload_crc);
  writer.Number(static_cast<uint32_t>(info.tokens.size()));
  writer.Number(info.num_pinned);
  writer.Number(info.rewind_least);
  writer.Number(info.rewind_most);
  writer.Number(static_cast<uint32_t>(info.has_logits ? 1 : 0));
  writer.Number(info.compute_seconds);
  writer.Number(info.written_at);
  writer.Number(static_cast<uint32_t>(info.label.size()));
  writer.Number(static_cast<uint32_t>(info.config.size()));
  writer.Array(std::span(info.label.data(), info.label.size()));
  writer.Array(std::span(info.config.data(), info.config.size()));
  writer.Array(std::span(info.tokens.data(), info.tokens.size()));
  std::vector<std::byte> bytes = std::move(writer.bytes());
  bytes.resize(AlignRecord(bytes.size()));
  const auto size = static_cast<uint32_t>(bytes.size());
  std::memcpy(bytes.data() + 8, &size, sizeof size);
  const uint32_t crc = HeaderSum(bytes);
  std::memcpy(bytes.data() + kCrcOffset, &crc, sizeof crc);
  return bytes;
}

uint64_t HeaderBytes(std::span<const std::byte> first) {
  MemoryReader reader(first);
  uint32_t magic = 0, size = 0;
  uint16_t version = 0, kind = 0;
  if (!reader.Number(magic) || !reader.Number(version) || !reader.Number(kind) || !reader.Number(size)) return 0;
  if (magic != kMagic || version != kVersion || kind > 1) return 0;
  return size > 0 && size % kRecordAlignment == 0 && size <= kMostHeaderBytes ? size : 0;
}

bool IsRemoved(std::span<const std::byte> first) { return first.size() > 6 && first[6] != std::byte{0}; }

Result<RecordHeader> DecodeHeader(std::span<const std::byte> bytes) {
  const auto damaged = [] { return Corrupt("a record of the store is damaged"); };
  if (bytes.size() < kRecordAlignment || HeaderBytes(bytes) != bytes.size()) return damaged();
  MemoryReader reader(bytes.subspan(4 + sizeof kVersion));
  RecordHeader header;
  header.header_bytes = bytes.size();
  uint16_t kind = 0;
  uint32_t size = 0, crc = 0;
  if (!reader.Number(kind) || !reader.Number(size) || !reader.Number(crc)) return damaged();
  if (crc != HeaderSum(bytes) || !ReadBody(reader, header) || !IsSane(header.info)) return damaged();
  header.removed = kind == 1;
  if (MakeChain(header.info.root, header.info.tokens).whole != header.info.key) return damaged();
  return header;
}

uint64_t ScanSegment(const ReadAt& read, uint64_t from, uint64_t file_bytes,
                     const std::function<void(uint64_t offset, RecordHeader header)>& visit) {
  std::vector<std::byte> bytes(kRecordAlignment);
  for (uint64_t at = from;;) {
    const uint64_t left = file_bytes - std::min(file_bytes, at);
    if (left < kRecordAlignment) return at;
    bytes.resize(kRecordAlignment);
    if (!read(at, bytes)) return at;
    const uint64_t header_bytes = HeaderBytes(bytes);
    if (header_bytes == 0 || header_bytes > left) return at;
    bytes.resize(header_bytes);
    if (header_bytes > kRecordAlignment &&
        !read(at + kRecordAlignment, std::span(bytes).subspan(kRecordAlignment))) {
      return at;
    }
    Result<RecordHeader> header = DecodeHeader(bytes);
    if (!header || header->record_bytes() > left) return at;
    const uint64_t next = at + header->record_bytes();
    visit(at, std::move(*header));
    at = next;
  }
}

}  // namespace pith::store
