#include "evict/learn/checkpoint.h"

#include <cstring>

#include <fmt/format.h>

#include "base/byte_io.h"

namespace pith::evict {
namespace {

constexpr std::string_view kMagic = "PITHTRN1";

template <typename T>
void Append(std::string& to, const T* values, size_t count) {
  to.append(reinterpret_cast<const char*>(values), count * sizeof(T));
}

class Cursor {
 public:
  explicit Cursor(std::string_view bytes) : left_(bytes) {}
  template <typename T>
  bool Take(T* values, uint64_t count) {
    if (!Holds<T>(count)) return false;
    if (count > 0) std::memcpy(values, left_.data(), count * sizeof(T));
    left_.remove_prefix(count * sizeof(T));
    return true;
  }
  template <typename T>
  bool Holds(uint64_t count) const {
    return count <= left_.size() / sizeof(T);
  }
  bool empty() const { return left_.empty(); }

 private:
  std::string_view left_;
};

}  // namespace

std::string SerializeCheckpoint(const Checkpoint& checkpoint) {
  std::string bytes(kMagic);
  Append(bytes, &checkpoint.fingerprint, 1);
  const auto counters = static_cast<uint32_t>(checkpoint.counters.size());
  Append(bytes, &counters, 1);
  Append(bytes, checkpoint.counters.data(), counters);
  const auto arrays = static_cast<uint32_t>(checkpoint.arrays.size());
  Append(bytes, &arrays, 1);
  for (const std::vector<float>& array : checkpoint.arrays) {
    const uint64_t size = array.size();
    Append(bytes, &size, 1);
    Append(bytes, array.data(), size);
  }
  Hash64 hash;
  hash.Add(bytes);
  const uint64_t sum = hash.value();
  Append(bytes, &sum, 1);
  return bytes;
}

Result<Checkpoint> ParseCheckpoint(std::string_view bytes, std::string_view name) {
  const auto corrupt = [&](std::string_view what) { return Corrupt(fmt::format("{}: {}", name, what)); };
  if (!bytes.starts_with(kMagic)) return corrupt("no state of a training");
  uint64_t sum = 0;
  if (bytes.size() < kMagic.size() + sizeof(sum) || bytes.size() > kMostCheckpointBytes) return corrupt("cut off");
  std::memcpy(&sum, bytes.data() + bytes.size() - sizeof(sum), sizeof(sum));
  bytes.remove_suffix(sizeof(sum));
  Hash64 hash;
  hash.Add(bytes);
  if (hash.value() != sum) return corrupt("damaged or cut off: its checksum does not fit");
  Cursor cursor(bytes.substr(kMagic.size()));
  Checkpoint checkpoint;
  uint32_t count = 0;
  if (!cursor.Take(&checkpoint.fingerprint, 1) || !cursor.Take(&count, 1) || !cursor.Holds<uint64_t>(count)) {
    return corrupt("it has no header that makes sense");
  }
  checkpoint.counters.resize(count);
  if (!cursor.Take(checkpoint.counters.data(), count) || !cursor.Take(&count, 1) || !cursor.Holds<uint64_t>(count)) {
    return corrupt("its counters are cut off");
  }
  for (uint32_t a = 0; a < count; ++a) {
    uint64_t size = 0;
    if (!cursor.Take(&size, 1) || !cursor.Holds<float>(size)) return corrupt("an array is cut off");
    checkpoint.arrays.emplace_back(size);
    (void)cursor.Take(checkpoint.arrays.back().data(), size);
  }
  if (!cursor.empty()) return corrupt("more in it than it says");
  return checkpoint;
}

}  // namespace pith::evict
