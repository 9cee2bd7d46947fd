// oracleGeneral of libCacheSim: packed records {u32 time, u64 id, u32 size, i64 next access}, little-endian. The next
// access is computed anew: files that were cut are wrong about it.
#include "evict/trace_builder.h"

namespace pith::evict {
namespace {

constexpr size_t kRecordBytes = 24;

template <typename T>
T LittleEndian(const char* from) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) {
    value |= static_cast<T>(static_cast<T>(static_cast<unsigned char>(from[i])) << (8 * i));
  }
  return value;
}

}  // namespace

Result<Trace> ReadOracle(std::string_view text, std::string_view name) {
  if (text.size() % kRecordBytes != 0) {
    return Corrupt(fmt::format("{}: record {} is cut, of 24 bytes only {} are there", name,
                               text.size() / kRecordBytes + 1, text.size() % kRecordBytes));
  }
  TraceBuilder builder;
  builder.Reserve(text.size() / kRecordBytes);
  for (size_t at = 0; at < text.size(); at += kRecordBytes) {
    const char* record = text.data() + at;
    builder.Add(LittleEndian<uint64_t>(record + 4), LittleEndian<uint32_t>(record + 12),
                LittleEndian<uint32_t>(record));
  }
  return builder.Finish(name);
}

}  // namespace pith::evict
