#include "store/key.h"

#include <algorithm>

#include <fmt/format.h>

namespace pith::store {

using namespace std::string_view_literals;

std::string Key::Hex() const {
  std::string text;
  for (const std::byte b : bytes) text += fmt::format("{:02x}", std::to_integer<int>(b));
  return text;
}

std::optional<Key> Key::FromHex(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  Key key;
  if (text.size() != 2 * key.bytes.size()) return std::nullopt;
  for (size_t i = 0; i < text.size(); ++i) {
    const size_t digit = kDigits.find(text[i]);
    if (digit == std::string_view::npos) return std::nullopt;
    key.bytes[i / 2] = key.bytes[i / 2] << 4 | static_cast<std::byte>(digit);
  }
  return key;
}

Key Key::Of(const Sha256Digest& digest) {
  Key key;
  std::copy_n(digest.begin(), key.bytes.size(), key.bytes.begin());
  return key;
}

Sha256Digest KeySpace::Root() const {
  Sha256 hash;
  hash.Add("pith-kv1\0model="sv);
  hash.Add(model);
  hash.Add("\0fmt="sv);
  hash.Add(format);
  hash.Add("\0salt="sv);
  hash.Add(salt);
  return hash.Finish();
}

Chain MakeChain(const Sha256Digest& root, std::span<const int32_t> tokens, size_t block_tokens) {
  Chain chain;
  Sha256Digest digest = root;
  std::vector<std::byte> bytes;
  for (size_t at = 0; at < tokens.size(); at += block_tokens) {
    const size_t count = std::min(block_tokens, tokens.size() - at);
    bytes.clear();
    for (const int32_t token : tokens.subspan(at, count)) {
      for (int shift = 0; shift < 32; shift += 8) {
        bytes.push_back(static_cast<std::byte>(static_cast<uint32_t>(token) >> shift));
      }
    }
    Sha256 hash;
    hash.Add(digest);
    hash.Add(bytes);
    digest = hash.Finish();
    if (count == block_tokens) chain.blocks.push_back(Key::Of(digest));
  }
  chain.whole = Key::Of(digest);
  return chain;
}

}  // namespace pith::store
