// Headers of the store's records out of few bytes, so that inputs stay small: a fuzzer says what is in them, what is
// wrong with them, and whether their sum is put right again.
#ifndef PITH_FUZZ_RECORDS_H_
#define PITH_FUZZ_RECORDS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "store/segment.h"

namespace pith::fuzz {

// An input from its front; zeros where it has ended.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : bytes_(data, size) {}
  bool done() const { return bytes_.empty(); }
  uint8_t Byte() {
    if (bytes_.empty()) return 0;
    const uint8_t byte = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return byte;
  }
  uint16_t Short() { return static_cast<uint16_t>(Byte() | (Byte() << 8)); }
  std::span<const std::byte> Some(size_t count) {
    const auto some = std::as_bytes(bytes_.first(std::min(count, bytes_.size())));
    bytes_ = bytes_.subspan(some.size());
    return some;
  }

 private:
  std::span<const uint8_t> bytes_;
};

// Of up to 95 tokens.
inline store::ObjectInfo MakeInfo(Input& input) {
  store::ObjectInfo info;
  info.root.fill(static_cast<std::remove_reference_t<decltype(info.root[0])>>(input.Byte() & 1));
  info.tokens.resize(input.Byte() % 96);
  const uint8_t seed = input.Byte();
  for (size_t i = 0; i < info.tokens.size(); ++i) info.tokens[i] = static_cast<int32_t>(seed * (i / 32 + 1) + i);
  info.key = store::MakeChain(info.root, info.tokens).whole;
  info.num_pinned = static_cast<int8_t>(input.Byte());
  info.rewind_least = static_cast<int8_t>(input.Byte());
  info.rewind_most = static_cast<int8_t>(input.Byte());
  info.has_logits = (input.Byte() & 1) != 0;
  info.label.assign(input.Byte() % 64, 'x');
  info.payload_bytes = input.Short() % 9000;
  return info;
}

// Changes up to three bytes and puts the sum right, as the input says.
inline void Damage(Input& input, std::vector<std::byte>& header) {
  const uint8_t how = input.Byte();
  for (int i = 0; i < (how & 3); ++i) {
    const size_t at = input.Short() % header.size();
    header[at] = static_cast<std::byte>(input.Byte());
  }
  if ((how & 4) == 0 || header.size() < 16) return;
  const uint32_t sum = store::HeaderSum(header);
  std::memcpy(header.data() + 12, &sum, sizeof sum);
}

inline std::vector<std::byte> MakeHeader(Input& input) {
  store::RecordHeader header;
  const uint8_t kind = input.Byte();
  header.info = MakeInfo(input);
  if ((kind & 1) != 0) header.info.key.bytes[input.Byte() % 16] ^= std::byte{1};
  header.removed = (kind & 2) != 0;
  header.number = input.Byte();
  std::vector<std::byte> bytes = store::EncodeHeader(header);
  Damage(input, bytes);
  return bytes;
}

}  // namespace pith::fuzz

#endif  // PITH_FUZZ_RECORDS_H_
