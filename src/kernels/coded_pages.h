// Pages whose keys and values are integers in Huffman codes (KVComp, arXiv:2509.00579): each element is a multiple of a
// step, no further from it than half a step.
//
// Steps are powers of two, the largest that is at most 1/n of a range (KvFormat::kCoded + n). Of keys one step serves a
// page: the range is the middle one of its entries' (KVComp's unit is the block, whose range is no smaller). Each value
// has a step of its own. So errors stay within half of 1/n of the range, and entries that are coded once lie on a grid:
// coded again, among others, they are the same, unless the new page's step is more than four times theirs.
//
// A code is an element's distance from its key channel's centre (values: from 0). Each key channel and each value names
// one of kCodedBooks codes, which are for normal distributions of differing width. A row of codes is one for each of 32
// lanes: of keys a channel's entries, of values channels c, c + 1, ..., c + 31 of an entry. All lanes decode in step
// and share one stream of bytes (as the words of J. Fabian Giesen's interleaved coders, arXiv:1402.3392, section 3):
// each lane begins with a byte, and after a row every lane that has fewer than kLongestCode bits left takes the next
// byte, lanes in order. So the end of a stream is all that must be known of it.
//
//   header     u32 bytes of the page in use, from its beginning; u8 kind; i8 exponent of the keys' step;
//              u16 bytes of the keys' stream
//   streams    of keys, then of values, the most significant bit first
//   books      4 bits for each channel, and for each value
//   exponents  i8 [P] of the values' steps
//   centres    [D] i8, or i16 (kind)
//
// What follows the streams is longer than kCodeLanes bytes, so that whole vectors can be loaded from any place in them.
//
// Numbers that have no code (of another kind, or far beyond the others) make a page one of f16, at a distance of
// kCodedHeaderBytes from the header: keys [D][P], values [P][Dv].
#ifndef PITH_KERNELS_CODED_PAGES_H_
#define PITH_KERNELS_CODED_PAGES_H_

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/page_layout.h"

namespace pith::kernels {

inline constexpr int kCodedBooks = 15;
inline constexpr int kLongestCode = 8;
inline constexpr int kCodeLanes = 32;

// A prefix code. Its next kSlotBits bits say of a code how long it is, and what to add to it, read as a number.
inline constexpr int kSlotBits = 6;
inline constexpr int kCodeBias = 128;  // what is added holds it, so that no sum is negative
struct CodeBook {
  // [next bits]: length, with 16 times what is added
  alignas(64) std::array<int16_t, 1 << kSlotBits> slots = {};
  // The same apart, what is added modulo 256.
  alignas(64) std::array<uint8_t, 1 << kSlotBits> slot_lengths = {}, slot_sums = {};
};
static_assert(sizeof(CodeBook) == 256, "a shift finds it");

// The same for those who write.
struct CodeWords {
  int least = 0, greatest = 0;            // what has a code
  std::array<uint8_t, 256> lengths = {};  // [number + 128] bits
  std::array<uint8_t, 256> words = {};    // [number + 128]
};
const std::array<CodeBook, kCodedBooks>& CodeBooks();
const std::array<CodeWords, kCodedBooks>& CodesOfBooks();

enum class CodedKind : uint8_t { kNarrow, kWide, kHalves };

// What a coded page says of itself.
struct CodedPage {
  CodedKind kind = CodedKind::kNarrow;
  int key_exponent = 0;
  const uint8_t *key_books = nullptr, *value_books = nullptr;
  const int8_t* value_exponents = nullptr;
  const uint8_t* centres = nullptr;
  const uint16_t *key_halves = nullptr, *value_halves = nullptr;  // kHalves
  const uint8_t *key_codes = nullptr, *value_codes = nullptr, *codes_end = nullptr;

  CodedPage(const PageLayout& layout, const std::byte* page);
  static int BookOf(const uint8_t* books, int i) { return books[i / 2] >> (i % 2 * 4) & 15; }
  int CentreOf(int channel) const {
    if (kind == CodedKind::kNarrow) return static_cast<int8_t>(centres[channel]);
    int16_t centre = 0;
    std::memcpy(&centre, centres + 2 * static_cast<size_t>(channel), sizeof centre);
    return centre;
  }
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
