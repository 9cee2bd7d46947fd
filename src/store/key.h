// Names of prefixes: a chain of hashes over blocks of tokens.
//
//   h_0 = SHA-256("pith-kv1\0" "model=" model "\0fmt=" format "\0salt=" salt)
//   h_i = SHA-256(h_{i-1} | tokens of block i, u32 little-endian)
//
// Whole blocks have kBlockTokens tokens; the last block of a text may have fewer. A key is the first half of a hash. So
// the name of a prefix says all that stands in it, in every process and on every host, and changing one token changes
// all later names and no earlier one.
#ifndef PITH_STORE_KEY_H_
#define PITH_STORE_KEY_H_

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/sha256.h"

namespace pith::store {

inline constexpr size_t kBlockTokens = 32;

struct Key {
  std::array<std::byte, 16> bytes{};

  auto operator<=>(const Key&) const = default;
  std::string Hex() const;
  // None: not 32 hexadecimal digits.
  static std::optional<Key> FromHex(std::string_view text);
  static Key Of(const Sha256Digest& digest);
};

struct KeyHash {
  size_t operator()(const Key& key) const {  // its bytes are a hash already
    size_t value;
    std::memcpy(&value, key.bytes.data(), sizeof value);
    return value;
  }
};

// What caches must have in common beside their tokens to stand for each other.
struct KeySpace {
  std::string model;   // fingerprint of its contents
  std::string format;  // storage format, recipe and all else on which the bytes of a cache depend
  std::string salt;    // of a tenant, who shares nothing with others, not even by the time that a request takes

  Sha256Digest Root() const;
};

// Keys of a text in a space.
struct Chain {
  std::vector<Key> blocks;  // after each whole block
  Key whole;                // of all tokens, a last part of a block included; that of the space for an empty text
};
Chain MakeChain(const Sha256Digest& root, std::span<const int32_t> tokens, size_t block_tokens = kBlockTokens);

}  // namespace pith::store

#endif  // PITH_STORE_KEY_H_
