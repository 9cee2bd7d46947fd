// What the store knows of a prefix beside its bytes, and the memory that holds these.
#ifndef PITH_STORE_OBJECT_H_
#define PITH_STORE_OBJECT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "store/key.h"

namespace pith::store {

struct ObjectInfo {
  Sha256Digest root{};           // of its space
  Key key;                       // of all its tokens
  std::vector<int32_t> tokens;   // that the sequence has read
  int32_t num_pinned = 0;        // of them, at the front
  // The sequence can go back to a number of tokens in [rewind_least, rewind_most]; 0, 0: only be taken up whole.
  int32_t rewind_least = 0;
  int32_t rewind_most = 0;
  bool has_logits = false;       // of its last token, so that a text that ends there needs no token read
  double compute_seconds = 0;    // that reading its tokens took
  double written_at = 0;         // Unix time
  std::string label;             // model, recipe and format, for people
  std::string config;            // how it was compressed for its place (EVICPRESS); empty: not at all
  uint64_t payload_bytes = 0;

  size_t num_tokens() const { return tokens.size(); }
};
using ObjectInfoPtr = std::shared_ptr<const ObjectInfo>;

// Bytes that go back to the system when they are freed, so that a limit on them is a limit on what is resident.
class Block {
 public:
  // Null: the system has none. `used` counts whole pages while the block lives.
  static std::shared_ptr<Block> Make(size_t bytes, std::shared_ptr<std::atomic<size_t>> used);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  std::span<std::byte> bytes() { return {data_, bytes_}; }
  std::span<const std::byte> bytes() const { return {data_, bytes_}; }
  size_t resident_bytes() const { return ResidentBytes(bytes_); }
  static size_t ResidentBytes(size_t bytes);

 private:
  Block(std::byte* data, size_t bytes, std::shared_ptr<std::atomic<size_t>> used)
      : data_(data), bytes_(bytes), used_(std::move(used)) {}

  std::byte* data_;
  size_t bytes_;
  std::shared_ptr<std::atomic<size_t>> used_;
};
using BlockPtr = std::shared_ptr<const Block>;

}  // namespace pith::store

#endif  // PITH_STORE_OBJECT_H_
