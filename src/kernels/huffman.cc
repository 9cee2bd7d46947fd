#include "kernels/huffman.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace pith::kernels {
namespace {

std::vector<int32_t> OptimalLengths(std::span<const int64_t> counts) {
  std::vector<int32_t> lengths(counts.size(), 0);
  // By count, then by the smallest symbol: the symbols below each node.
  std::map<std::pair<int64_t, int32_t>, std::vector<int32_t>> nodes;
  for (size_t s = 0; s < counts.size(); ++s) {
    const auto symbol = static_cast<int32_t>(s);
    nodes[{counts[s], symbol}] = {symbol};
  }
  if (counts.size() == 1) lengths[0] = 1;
  while (nodes.size() > 1) {
    auto a = nodes.extract(nodes.begin()), b = nodes.extract(nodes.begin());
    std::vector<int32_t> below = std::move(a.mapped());
    below.insert(below.end(), b.mapped().begin(), b.mapped().end());
    for (const int32_t symbol : below) ++lengths[static_cast<size_t>(symbol)];
    nodes[{a.key().first + b.key().first, std::min(a.key().second, b.key().second)}] = std::move(below);
  }
  return lengths;
}

}  // namespace

HuffmanCode::HuffmanCode(std::span<const int64_t> counts) {
  PITH_CHECK(!counts.empty() && counts.size() <= kMaxAlphabet);
  std::vector<int64_t> flatter(counts.begin(), counts.end());
  lengths_ = OptimalLengths(flatter);
  // Rounds end: with equal counts no code is longer than 8 bits.
  while (*std::ranges::max_element(lengths_) > kMaxLength) {
    for (int64_t& count : flatter) count = (count + 1) / 2;
    lengths_ = OptimalLengths(flatter);
  }
  SetCodewords();
}

std::optional<HuffmanCode> HuffmanCode::FromLengths(std::span<const uint8_t> lengths) {
  if (lengths.empty() || lengths.size() > kMaxAlphabet) return std::nullopt;
  int32_t filled = 0;  // of all words of kMaxLength bits, those that begin with a code
  for (const uint8_t length : lengths) {
    if (length == 0 || length > kMaxLength) return std::nullopt;
    filled += 1 << (kMaxLength - length);
  }
  const int32_t all = 1 << kMaxLength;
  if (filled != (lengths.size() == 1 ? all / 2 : all)) return std::nullopt;
  HuffmanCode code;
  code.lengths_.assign(lengths.begin(), lengths.end());
  code.SetCodewords();
  return code;
}

void HuffmanCode::SetCodewords() {
  codewords_.resize(lengths_.size());
  by_length_.resize(lengths_.size());
  std::iota(by_length_.begin(), by_length_.end(), 0);
  std::ranges::stable_sort(by_length_, {}, [this](int32_t symbol) { return lengths_[static_cast<size_t>(symbol)]; });
  table_.assign(size_t{1} << kTableBits, Found());
  int32_t code = 0, length = 0;
  for (size_t i = 0; i < by_length_.size(); ++i) {
    const auto s = static_cast<size_t>(by_length_[i]);
    if (length > 0) ++code;
    code <<= lengths_[s] - length;
    length = lengths_[s];
    codewords_[s] = code;
    if (count_[length]++ == 0) first_[length] = code, begin_[length] = static_cast<int32_t>(i);
    if (length > kTableBits) continue;
    const auto from = static_cast<size_t>(code) << (kTableBits - length);
    std::fill_n(table_.begin() + static_cast<std::ptrdiff_t>(from), size_t{1} << (kTableBits - length),
                Found{static_cast<uint8_t>(s), static_cast<uint8_t>(length)});
  }
}

int64_t HuffmanCode::BitsOf(std::span<const int32_t> symbols) const {
  int64_t bits = 0;
  for (const int32_t symbol : symbols) bits += lengths_[static_cast<size_t>(symbol)];
  return bits;
}

void HuffmanCode::Write(std::span<const int32_t> symbols, std::vector<uint8_t>& bytes) const {
  uint64_t word = 0;  // the last `filled` bits are to be written
  int filled = 0;
  for (const int32_t symbol : symbols) {
    const auto s = static_cast<size_t>(symbol);
    word = word << lengths_[s] | static_cast<uint64_t>(codewords_[s]);
    for (filled += lengths_[s]; filled >= 8; filled -= 8) bytes.push_back(static_cast<uint8_t>(word >> (filled - 8)));
  }
  if (filled > 0) bytes.push_back(static_cast<uint8_t>(word << (8 - filled)));
}

std::optional<size_t> HuffmanCode::Read(std::span<const uint8_t> bytes, std::span<int32_t> symbols) const {
  uint64_t word = 0;  // its first `left` bits are those to come, zeros behind them
  int left = 0;
  size_t at = 0;
  for (int32_t& symbol : symbols) {
    for (; left <= 56 && at < bytes.size(); left += 8) word |= static_cast<uint64_t>(bytes[at++]) << (56 - left);
    const Found found = table_[word >> (64 - kTableBits)];
    int length = found.length;
    symbol = found.symbol;
    if (length == 0) {
      for (length = kTableBits + 1; length <= kMaxLength; ++length) {
        const int32_t offset = static_cast<int32_t>(word >> (64 - length)) - first_[length];
        if (offset < 0 || offset >= count_[length]) continue;
        symbol = by_length_[static_cast<size_t>(begin_[length] + offset)];
        break;
      }
    }
    if (length > std::min(left, kMaxLength)) return std::nullopt;
    word <<= length;
    left -= length;
  }
  return at - static_cast<size_t>(left / 8);
}

}  // namespace pith::kernels
