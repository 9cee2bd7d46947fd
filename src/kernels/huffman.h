// Canonical Huffman codes of small integers, written a vector at a time, each from a byte's first bit on, so that any
// one of them can be read alone (KVComp, arXiv:2509.00579).
#ifndef PITH_KERNELS_HUFFMAN_H_
#define PITH_KERNELS_HUFFMAN_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace pith::kernels {

// Of equal counts what holds the smaller symbol is merged first. Of equal lengths the smaller symbol comes first.
class HuffmanCode {
 public:
  static constexpr int kMaxLength = 16;
  static constexpr size_t kMaxAlphabet = 256;

  // counts: [alphabet] all above 0, 1 to kMaxAlphabet of them. Where a code would have more than kMaxLength bits, large
  // counts are taken for smaller ones.
  explicit HuffmanCode(std::span<const int64_t> counts);
  // From a file; none: no such code has these lengths.
  static std::optional<HuffmanCode> FromLengths(std::span<const uint8_t> lengths);

  const std::vector<int32_t>& lengths() const { return lengths_; }      // [alphabet] bits
  const std::vector<int32_t>& codewords() const { return codewords_; }  // [alphabet]

  int64_t BitsOf(std::span<const int32_t> symbols) const;
  // Behind what is there, the most significant bit first, with zeros up to a whole byte.
  void Write(std::span<const int32_t> symbols, std::vector<uint8_t>& bytes) const;
  // `symbols` of a vector at the beginning of `bytes`: how many of these it takes. None: the bytes end before.
  std::optional<size_t> Read(std::span<const uint8_t> bytes, std::span<int32_t> symbols) const;

 private:
  HuffmanCode() = default;
  void SetCodewords();

  // Codes of up to so many bits are found in one look.
  static constexpr int kTableBits = 10;
  struct Found {
    uint8_t symbol = 0;
    uint8_t length = 0;  // 0: a longer code
  };

  std::vector<int32_t> lengths_, codewords_;
  std::vector<int32_t> by_length_;  // symbols in canonical order
  std::vector<Found> table_;        // by the next kTableBits bits
  // Of each length: its first codeword, how many it has, and where they begin in by_length_.
  int32_t first_[kMaxLength + 1] = {}, count_[kMaxLength + 1] = {}, begin_[kMaxLength + 1] = {};
};

}  // namespace pith::kernels

#endif  // PITH_KERNELS_HUFFMAN_H_
