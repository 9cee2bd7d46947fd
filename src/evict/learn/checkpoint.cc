#include "evict/learn/checkpoint.h"

#include <optional>
#include <span>

#include <fmt/format.h>

#include "evict/learn/sealed.h"

namespace pith::evict {
namespace {

constexpr std::string_view kMagic = "PITHTRN1";

}  // namespace

std::string SerializeCheckpoint(const Checkpoint& checkpoint) {
  MemoryWriter writer;
  writer.Array(std::span(kMagic));
  writer.Number(checkpoint.fingerprint);
  writer.Number(static_cast<uint32_t>(checkpoint.counters.size()));
  writer.Array(std::span(checkpoint.counters));
  writer.Number(static_cast<uint32_t>(checkpoint.arrays.size()));
  for (const std::vector<float>& array : checkpoint.arrays) {
    writer.Number(uint64_t{array.size()});
    writer.Array(std::span(array));
  }
  return Sealed(writer);
}

Result<Checkpoint> ParseCheckpoint(std::string_view bytes, std::string_view name) {
  const auto corrupt = [&](std::string_view what) { return Corrupt(fmt::format("{}: {}", name, what)); };
  if (!bytes.starts_with(kMagic)) return corrupt("no state of a training");
  if (bytes.size() < kMagic.size() + kSealBytes || bytes.size() > kMostCheckpointBytes) return corrupt("cut off");
  std::optional<MemoryReader> reader = Unsealed(bytes, kMagic.size());
  if (!reader) return corrupt("damaged or cut off: its checksum does not fit");
  Checkpoint checkpoint;
  uint32_t count = 0;
  const auto has_numbers = [&] { return count <= reader->left() / sizeof(uint64_t); };
  if (!reader->Number(checkpoint.fingerprint) || !reader->Number(count) || !has_numbers()) {
    return corrupt("it has no header that makes sense");
  }
  if (!reader->Fill(count, checkpoint.counters) || !reader->Number(count) || !has_numbers()) {
    return corrupt("its counters are cut off");
  }
  for (uint32_t a = 0; a < count; ++a) {
    uint64_t size = 0;
    if (!reader->Number(size) || !reader->Fill(size, checkpoint.arrays.emplace_back())) {
      return corrupt("an array is cut off");
    }
  }
  if (reader->left() > 0) return corrupt("more in it than it says");
  return checkpoint;
}

}  // namespace pith::evict
