// Pages whose keys and values are integers in Huffman codes (KVComp, arXiv:2509.00579): each element is a multiple of a
// step, no further from it than half a step.
//
// Steps are powers of two, the largest that is at most 1/n of a range (KvFormat::kCoded + n). Of keys one step serves a
// page: the range is the middle one of its entries' (KVComp's unit is the block, whose range is no smaller). Each value
// has a step of its own. So errors stay within half of 1/n of the range, and entries that are coded once lie on a grid:
// coded again, among others, they are the same, unless the new page's step is more than four times theirs.
//
// A code is an element's distance from its key channel's centre (values: from 0), zigzag. Each key channel and each
// value names one of kCodedBooks codes, which are for normal distributions of differing width. 32 streams hold a page's
// keys, one for each entry, and 32 its values, one for channels c, c + 32, ..., so that the lanes of a vector decode in
// step:
//
//   header    u32 bytes of the page in use, from its beginning; u8 kind; i8 exponent of the keys' step;
//             u16 least length of a stream of keys, of values
//   books     4 bits for each channel, and for each value
//   exponents i8 [P] of the values' steps
//   centres   [D] i8, or i16 (kind)
//   lengths   u8 [2][32], in 4 bits, beyond the least
//   streams   from the last byte of the page towards its beginning, the most significant bit first, each from a
//   multiple
//             of 4 bits on: so four bytes are loaded as the next 32 bits
//
// Numbers that have no code (of another kind, or far beyond the others) make a page one of f16, at a distance of
// kCodedHeaderBytes from the header: keys [D][P], values [P][Dv].
#ifndef PITH_KERNELS_CODED_PAGES_H_
#define PITH_KERNELS_CODED_PAGES_H_

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/page_layout.h"

namespace pith::kernels {

inline constexpr int kCodedBooks = 15;
inline constexpr int kLongestCode = 12;
inline constexpr int kCodeStreams = 32;

// A canonical code in which symbols come in the order of their lengths.
struct CodeBook {
  int alphabet = 0;
  std::array<uint8_t, 256> lengths = {};  // [alphabet] bits
  std::array<uint16_t, 256> words = {};   // [alphabet]
  // Of the i-th length that there is: its first word at the top of 31 bits, and 31 - length, with the first word less
  // its symbol in the bits from 5 on.
  int num_lengths = 0;
  std::array<int32_t, kLongestCode> firsts = {}, shifts = {};
};
const std::array<CodeBook, kCodedBooks>& CodeBooks();

enum class CodedKind : uint8_t { kNarrow, kWide, kHalves };

// What a coded page says of itself.
struct CodedPage {
  CodedKind kind = CodedKind::kNarrow;
  int key_exponent = 0;
  const uint8_t *key_books = nullptr, *value_books = nullptr;
  const int8_t* value_exponents = nullptr;
  const uint8_t* centres = nullptr;
  const uint16_t *key_halves = nullptr, *value_halves = nullptr;  // kHalves
  const uint8_t* bits = nullptr;                                  // the first byte of the first stream, the page's last
  std::array<uint32_t, kCodeStreams> keys_at = {}, values_at = {};  // first bits of streams
  uint32_t end = 0;                                                 // of the last stream

  CodedPage(const PageLayout& layout, const std::byte* page);
  static int BookOf(const uint8_t* books, int i) { return books[i / 2] >> (i % 2 * 4) & 15; }
  int CentreOf(int channel) const;
};

// 2^exponent, of a step.
inline float PowerOfTwo(int exponent) { return std::bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23); }

// Bytes of the page in use, from its beginning.
uint32_t CodedPageBytes(const PageLayout& layout, const std::byte* page);
void SetCodedPageBytes(const PageLayout& layout, std::byte* page, uint32_t bytes);

// Writes keys [D][P] and values [P][Dv] to a page of layout.page_bytes, positions and columns aside. Returns
// CodedPageBytes(). Deterministic: the same on every processor.
uint32_t EncodePage(const PageLayout& layout, const float* keys, const float* values, std::byte* page);

// A whole page as float32: keys [D][P], values [P][stride], zeros beyond Dv where stride leaves room for whole
// multiples of 32; stride is at least that.
void DecodeKeys(const PageLayout& layout, const std::byte* page, float* keys);
void DecodeValues(const PageLayout& layout, const std::byte* page, float* values, size_t stride);
// A whole page of any format as float32: keys [D][P], values [P][Dv].
void ReadPage(const PageLayout& layout, const std::byte* page, float* keys, float* values);
// The first `count` entries of a coded page: keys [count, D], values [count, Dv].
void ReadCodedKeys(const PageLayout& layout, const std::byte* page, int count, float* keys);
void ReadCodedValues(const PageLayout& layout, const std::byte* page, int count, float* values);
// The same one symbol at a time.
void DecodeKeysReference(const PageLayout& layout, const std::byte* page, float* keys);
void DecodeValuesReference(const PageLayout& layout, const std::byte* page, float* values, size_t stride);

// Whether the first `bytes` of a page, from a file, are one that can be decoded, and no element is NaN.
bool IsCodedPage(const PageLayout& layout, const std::byte* page, size_t bytes);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_CODED_PAGES_H_
