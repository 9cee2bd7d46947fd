#include "kernels/coded_pages.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "base/check.h"
#include "base/half.h"
#include "kernels/attention.h"
#include "kernels/page_kernels.h"

namespace pith::kernels {
namespace {

constexpr size_t kP = kPageEntries;
static_assert(kCodeLanes == kPageEntries && kCodeLanes == kGroupElements);

// How many numbers from 0 on, and from -1 down, have codes of 1, 2, ... bits: of those whose slots are whole (codes of
// 7 bits come in pairs of neighbours, of 8 bits in fours), the best for integers of which 85% are normal, of deviation
// 0.283 * 2^(i/2) for the i-th, and the rest of 2.2 times that, where a number without a code costs 20 bits. The last
// one is for any number.
constexpr uint8_t kLengthCounts[kCodedBooks][2][kLongestCode] = {
    {{1, 1, 0, 0, 0, 0, 0, 0}, {0, 1, 0, 0, 0, 0, 0, 0}},
    {{1, 0, 1, 0, 1, 1, 0, 0}, {0, 1, 0, 1, 0, 1, 0, 0}},
    {{1, 0, 1, 0, 1, 0, 2, 0}, {0, 1, 0, 1, 0, 0, 2, 0}},
    {{1, 0, 1, 0, 1, 0, 2, 0}, {0, 1, 0, 1, 0, 0, 2, 0}},
    {{0, 2, 0, 1, 0, 1, 0, 4}, {0, 1, 1, 0, 0, 1, 0, 4}},
    {{0, 1, 2, 0, 1, 1, 0, 4}, {0, 1, 1, 0, 1, 1, 0, 4}},
    {{0, 0, 3, 1, 2, 1, 2, 4}, {0, 0, 2, 2, 1, 1, 2, 4}},
    {{0, 0, 2, 3, 2, 1, 2, 8}, {0, 0, 1, 3, 2, 1, 2, 8}},
    {{0, 0, 0, 6, 2, 2, 2, 12}, {0, 0, 0, 5, 2, 2, 2, 12}},
    {{0, 0, 0, 4, 5, 3, 4, 12}, {0, 0, 0, 3, 5, 3, 4, 12}},
    {{0, 0, 0, 0, 10, 6, 4, 20}, {0, 0, 0, 0, 9, 6, 4, 20}},
    {{0, 0, 0, 0, 6, 12, 6, 24}, {0, 0, 0, 0, 5, 12, 6, 24}},
    {{0, 0, 0, 0, 0, 19, 10, 32}, {0, 0, 0, 0, 0, 19, 10, 32}},
    {{0, 0, 0, 0, 0, 9, 24, 44}, {0, 0, 0, 0, 0, 9, 24, 44}},
    {{0, 0, 0, 0, 0, 0, 0, 128}, {0, 0, 0, 0, 0, 0, 0, 128}}};

constexpr int kFarthest = 126;         // from the centre
constexpr int kFarthestCentre = 1900;  // with that less than 2^11, so that a multiple of a step is a float16
constexpr int kLeastExponent = -24;    // of a float16
constexpr int kNoExponent = std::numeric_limits<int>::max();

// Of a number that is one of float16, or none at all.
uint16_t HalfOfFloat(float number) {
  const auto sign = static_cast<uint16_t>(std::signbit(number) ? 0x8000 : 0);
  if (std::isnan(number)) return 0x7e00;
  const uint16_t bits = std::isinf(number) ? uint16_t{0x7c00} : HalfBits(std::abs(static_cast<double>(number)));
  return bits | sign;
}
float FloatOfHalf(uint16_t bits) {
  if (!IsFiniteHalf(bits)) return (bits & 1023) != 0 ? NAN : (bits & 0x8000) != 0 ? -INFINITY : INFINITY;
  const auto magnitude = static_cast<float>(HalfOf(bits & 0x7fff));
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

// Of the largest power of two that is at most range / steps.
int AllowedExponent(float range, int steps) {
  if (!(range > 0)) return kLeastExponent;
  int exponent = 0;
  std::frexp(static_cast<double>(range) / steps, &exponent);
  return std::max(exponent - 1, kLeastExponent);
}

// Of the largest power of two of which all numbers are multiples, if it is that of `least` at least. None: it is less,
// or all are 0.
std::optional<int> GridExponent(const float* numbers, size_t count, int least) {
  int grid = kNoExponent;
  for (size_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<uint32_t>(numbers[i]);
    const auto exponent = static_cast<int>(bits >> 23 & 255);
    if (exponent == 0) continue;  // 0: float16 has no others there
    grid = std::min(grid, exponent - 127 - 23 + std::countr_zero((bits & 0x7fffffU) | 0x800000U));
    if (grid < least) return std::nullopt;
  }
  return grid == kNoExponent ? std::nullopt : std::optional(grid);
}

// Integers of which the step of this exponent makes the numbers again. False: some are beyond what can be coded.
bool Quantize(const float* numbers, size_t count, int exponent, int farthest, int16_t* integers) {
  constexpr double kLargestHalf = 65504;
  const float inverse = PowerOfTwo(-exponent);
  farthest = static_cast<int>(std::min<double>(farthest, std::ldexp(kLargestHalf, -exponent)));
  constexpr float kMagic = 0x1.8p23F;  // leaves the nearest integer, ties to even, of what is below 2^22
  float most = 0;
  for (size_t i = 0; i < count; ++i) most = std::max(most, std::abs(numbers[i]));
  if (most * inverse > static_cast<float>(farthest)) return false;
  for (size_t i = 0; i < count; ++i) integers[i] = static_cast<int16_t>((numbers[i] * inverse + kMagic) - kMagic);
  return true;
}

// The book, of those whose width is about theirs, that takes the fewest bits for these numbers.
int ChooseBook(const int8_t* numbers, size_t count) {
  const auto& books = CodesOfBooks();
  const auto [least, greatest] = std::minmax_element(numbers, numbers + count);
  size_t sum = 0;
  for (size_t i = 0; i < count; ++i) sum += static_cast<size_t>(std::abs(numbers[i]));
  // Their mean is 0.8 deviations: 0.8 * 0.283 * 2^(i/2).
  int guess = 0;
  for (double mean = 0.225; guess + 2 < kCodedBooks && mean * static_cast<double>(count) < static_cast<double>(sum);
       mean *= 1.4142135) {
    ++guess;
  }
  int best = kCodedBooks - 1;
  size_t fewest = std::numeric_limits<size_t>::max();
  int tried = 0;
  for (int b = std::max(guess - 2, 0); b < kCodedBooks && tried < 4; ++b) {
    const CodeWords& book = books[static_cast<size_t>(b)];
    if (*least < book.least || *greatest > book.greatest) continue;
    ++tried;
    size_t bits = 0;
    for (size_t i = 0; i < count; ++i) bits += book.lengths[static_cast<size_t>(numbers[i] + 128)];
    if (bits >= fewest) continue;
    fewest = bits;
    best = b;
  }
  return best;
}

// A page's integers before they are written.
struct Draft {
  int key_exponent = 0;
  std::vector<int16_t> centres;       // [D]
  std::vector<int8_t> keys, values;   // distances [D][P], [P][N * 32]
  std::vector<uint8_t> key_books, value_books;
  std::vector<int8_t> value_exponents;  // [P]
  size_t value_row = 0;                 // N * 32
};

bool DraftKeys(const PageLayout& layout, const float* keys, Draft& draft) {
  const auto dim = static_cast<size_t>(layout.key_dim), count = dim * kP;
  std::array<float, kP> ranges;
  for (size_t j = 0; j < kP; ++j) {
    float low = keys[j], high = keys[j];
    for (size_t d = 1; d < dim; ++d) {
      low = std::min(low, keys[d * kP + j]);
      high = std::max(high, keys[d * kP + j]);
    }
    ranges[j] = high - low;
  }
  std::ranges::nth_element(ranges, ranges.begin() + kP / 2);
  const int allowed = AllowedExponent(ranges[kP / 2], CodedSteps(layout.format.key));
  const std::optional<int> grid = GridExponent(keys, count, std::max(allowed - 2, kLeastExponent));
  std::vector<int16_t> integers(count);
  draft.keys.resize(count);
  draft.centres.resize(dim);
  const auto codes_with = [&](int exponent) {
    if (!Quantize(keys, count, exponent, kFarthestCentre + kFarthest, integers.data())) return false;
    for (size_t d = 0; d < dim; ++d) {
      const int16_t* const row = integers.data() + d * kP;
      const auto [least, greatest] = std::minmax_element(row, row + kP);
      int sum = 0;
      for (size_t j = 0; j < kP; ++j) sum += row[j];
      int centre = (sum + (sum < 0 ? -16 : 16)) / static_cast<int>(kP);
      if (std::max(*greatest - centre, centre - *least) > kFarthest) centre = (*least + *greatest) / 2;
      if (std::max(*greatest - centre, centre - *least) > kFarthest || std::abs(centre) > kFarthestCentre) return false;
      draft.centres[d] = static_cast<int16_t>(centre);
      for (size_t j = 0; j < kP; ++j) draft.keys[d * kP + j] = static_cast<int8_t>(row[j] - centre);
    }
    draft.key_exponent = exponent;
    return true;
  };
  return (grid && codes_with(*grid)) || codes_with(allowed);
}

bool DraftValues(const PageLayout& layout, const float* values, Draft& draft) {
  const auto dim = static_cast<size_t>(layout.value_dim);
  draft.value_row = static_cast<size_t>(layout.value_groups()) * kGroupElements;
  draft.values.assign(kP * draft.value_row, 0);
  draft.value_exponents.resize(kP);
  std::vector<int16_t> integers(dim);
  for (size_t j = 0; j < kP && dim > 0; ++j) {
    const float* const row = values + j * dim;
    const auto [low, high] = std::minmax_element(row, row + dim);
    const int allowed = AllowedExponent(*high - *low, CodedSteps(layout.format.value));
    int exponent = GridExponent(row, dim, std::max(allowed - 1, kLeastExponent)).value_or(allowed);
    if (!Quantize(row, dim, exponent, kFarthest, integers.data())) {
      exponent = allowed;
      if (!Quantize(row, dim, exponent, kFarthest, integers.data())) return false;
    }
    draft.value_exponents[j] = static_cast<int8_t>(exponent);
    for (size_t c = 0; c < dim; ++c) {
      draft.values[j * draft.value_row + c] = static_cast<int8_t>(integers[c]);
    }
  }
  return true;
}

// Appends the codes of rows [count][32] to `to`; rows_of_book rows in turn have one book.
void WriteRows(const int8_t* rows, size_t count, size_t rows_of_book, const std::vector<uint8_t>& books,
               std::vector<uint8_t>& to) {
  std::vector<const CodeWords*> codes(count);
  for (size_t i = 0; i < count; ++i) codes[i] = &CodesOfBooks()[books[i / rows_of_book]];
  // What each lane reads, [lane][count]: no row takes more than a byte of it. lengths: [count][lane]
  std::vector<uint8_t> bytes(kCodeLanes * count, 0), lengths(kCodeLanes * count);
  for (size_t l = 0; l < kCodeLanes; ++l) {
    uint8_t* at = bytes.data() + l * count;
    uint32_t word = 0;
    int filled = 0;
    for (size_t i = 0; i < count; ++i) {
      const auto number = static_cast<size_t>(rows[i * kCodeLanes + l] + 128);
      const uint8_t length = lengths[i * kCodeLanes + l] = codes[i]->lengths[number];
      word = word << length | codes[i]->words[number];
      filled += length;
      // Written over where it is not whole yet.
      *at = static_cast<uint8_t>(filled >= 8 ? word >> (filled - 8) : word << (8 - filled));
      const int is_whole = filled >= 8;
      at += is_whole;
      filled -= 8 * is_whole;
    }
    if (filled > 0) *at = static_cast<uint8_t>(word << (8 - filled));
  }
  // In the order in which they are read.
  const size_t begin = to.size();
  to.resize(begin + kCodeLanes * count);
  uint8_t* next = to.data() + begin;
  std::array<const uint8_t*, kCodeLanes> from;
  for (size_t l = 0; l < kCodeLanes; ++l) from[l] = bytes.data() + l * count;
  std::array<int, kCodeLanes> left = {};
  for (size_t i = 0; i < count; ++i) {
    for (size_t l = 0; l < kCodeLanes; ++l) {
      const int takes = left[l] < kLongestCode;
      *next = *from[l];
      next += takes;
      from[l] += takes;
      left[l] += 8 * takes - lengths[i * kCodeLanes + l];
    }
  }
  to.resize(static_cast<size_t>(next - to.data()));
}

struct Header {
  uint32_t bytes = 0;
  uint8_t kind = 0;
  int8_t key_exponent = 0;
  uint16_t key_stream = 0;
};
static_assert(sizeof(Header) == 8);

// Of books, exponents and centres: what comes after the streams.
size_t BytesAfter(const PageLayout& layout, bool wide) {
  const auto dim = static_cast<size_t>(layout.key_dim);
  return (dim + 1) / 2 + kP / 2 + kP + dim * (wide ? 2 : 1);
}
static_assert(kP / 2 + kP >= kCodeLanes, "vectors are loaded from the end of a stream");

size_t HalvesBytes(const PageLayout& layout) {
  return layout.key_offset + kCodedHeaderBytes +
         sizeof(uint16_t) * kP * static_cast<size_t>(layout.key_dim + layout.value_dim);
}

// 0: the page takes no fewer bytes than halves.
uint32_t WriteDraft(const PageLayout& layout, Draft& draft, std::byte* page) {
  const auto dim = static_cast<size_t>(layout.key_dim);
  const size_t value_rows = draft.value_row / kCodeLanes;
  draft.key_books.resize(dim);
  for (size_t d = 0; d < dim; ++d) {
    draft.key_books[d] = static_cast<uint8_t>(ChooseBook(draft.keys.data() + d * kP, kP));
  }
  draft.value_books.assign(kP, 0);
  for (size_t j = 0; j < kP && value_rows > 0; ++j) {
    const auto book = ChooseBook(draft.values.data() + j * draft.value_row, draft.value_row);
    draft.value_books[j] = static_cast<uint8_t>(book);
  }
  std::vector<uint8_t> streams;
  streams.reserve(kCodeLanes * (dim + kP * value_rows));
  WriteRows(draft.keys.data(), dim, 1, draft.key_books, streams);
  const size_t key_stream = streams.size();
  WriteRows(draft.values.data(), kP * value_rows, std::max<size_t>(value_rows, 1), draft.value_books, streams);
  const bool wide = std::ranges::any_of(draft.centres, [](int16_t centre) { return std::abs(centre) > INT8_MAX; });
  const size_t bytes = layout.key_offset + sizeof(Header) + streams.size() + BytesAfter(layout, wide);
  if (bytes >= HalvesBytes(layout) || key_stream > UINT16_MAX) return 0;
  Header header;
  header.bytes = static_cast<uint32_t>(bytes);
  header.kind = static_cast<uint8_t>(wide ? CodedKind::kWide : CodedKind::kNarrow);
  header.key_exponent = static_cast<int8_t>(draft.key_exponent);
  header.key_stream = static_cast<uint16_t>(key_stream);
  auto* to = reinterpret_cast<uint8_t*>(page + layout.key_offset);
  const auto put = [&to](const void* from, size_t count) {
    std::memcpy(to, from, count);
    to += count;
  };
  put(&header, sizeof header);
  put(streams.data(), streams.size());
  for (const std::vector<uint8_t>* books : {&draft.key_books, &draft.value_books}) {
    for (size_t i = 0; i < books->size(); i += 2) {
      *to++ = static_cast<uint8_t>((*books)[i] | (i + 1 < books->size() ? (*books)[i + 1] << 4 : 0));
    }
  }
  put(draft.value_exponents.data(), kP);
  for (const int16_t centre : draft.centres) put(&centre, wide ? 2 : 1);  // little-endian: its low byte comes first
  return header.bytes;
}

uint32_t WriteHalves(const PageLayout& layout, const float* keys, const float* values, std::byte* page) {
  Header header;
  header.bytes = static_cast<uint32_t>(HalvesBytes(layout));
  header.kind = static_cast<uint8_t>(CodedKind::kHalves);
  std::byte* const at = page + layout.key_offset;
  std::memset(at, 0, kCodedHeaderBytes);
  std::memcpy(at, &header, sizeof header);
  auto* to = reinterpret_cast<uint16_t*>(at + kCodedHeaderBytes);
  for (size_t i = 0; i < kP * static_cast<size_t>(layout.key_dim); ++i) *to++ = HalfOfFloat(keys[i]);
  for (size_t i = 0; i < kP * static_cast<size_t>(layout.value_dim); ++i) {
    *to++ = HalfOfFloat(values[i]);
  }
  return header.bytes;
}

// visit(row, lane, number) for the rows of a stream from `at` to `end`; rows_of_book rows in turn have one book. False:
// it is longer or shorter than they are, or there is no such book.
template <class Visit>
bool ReadRows(const uint8_t* at, const uint8_t* end, size_t count, size_t rows_of_book, const uint8_t* books,
              const Visit& visit) {
  std::array<uint32_t, kCodeLanes> window = {};  // the next bits, at the top of 16
  std::array<int, kCodeLanes> left = {};
  for (size_t i = 0; i < count; ++i) {
    for (size_t l = 0; l < kCodeLanes; ++l) {
      if (left[l] >= kLongestCode) continue;
      if (at == end) return false;
      window[l] |= static_cast<uint32_t>(*at++) << (8 - left[l]);
      left[l] += 8;
    }
    const int b = CodedPage::BookOf(books, static_cast<int>(i / rows_of_book));
    if (b >= kCodedBooks) return false;
    const CodeBook& book = CodeBooks()[static_cast<size_t>(b)];
    for (size_t l = 0; l < kCodeLanes; ++l) {
      const int slot = book.slots[window[l] >> (16 - kSlotBits)], length = slot & 15;
      visit(i, l, static_cast<int>(window[l] >> (16 - length)) + (slot >> 4) - kCodeBias);
      window[l] = window[l] << length & 0xffff;
      left[l] -= length;
    }
  }
  return at == end;
}

bool IsExponent(int exponent) { return exponent >= kLeastExponent && exponent < 16; }

}  // namespace

namespace {

struct AllBooks {
  std::array<CodeBook, kCodedBooks> books;
  std::array<CodeWords, kCodedBooks> codes;

  AllBooks() {
    for (size_t b = 0; b < books.size(); ++b) {
      CodeBook& book = books[b];
      CodeWords& code = codes[b];
      int word = 0, numbers[2] = {};  // of either sign
      for (int length = 1; length <= kLongestCode; ++length) {
        word <<= 1;
        const int in_slot = length > kSlotBits ? 1 << (length - kSlotBits) : 1;
        for (const int sign : {0, 1}) {
          // Upwards among those of a slot, so that one sum serves all.
          for (int k = kLengthCounts[b][sign][length - 1]; k > 0; k -= in_slot, numbers[sign] += in_slot) {
            const int first = sign == 0 ? numbers[0] : -numbers[1] - in_slot;
            const int slots = length < kSlotBits ? 1 << (kSlotBits - length) : 1;
            const int slot = length < kSlotBits ? word << (kSlotBits - length) : word >> (length - kSlotBits);
            for (auto i = static_cast<size_t>(slot); i < static_cast<size_t>(slot + slots); ++i) {
              book.slots[i] = static_cast<int16_t>((first - word + kCodeBias) * 16 + length);
              book.slot_lengths[i] = static_cast<uint8_t>(length);
              book.slot_sums[i] = static_cast<uint8_t>(first - word + kCodeBias);
            }
            for (int number = first; number < first + in_slot; ++number, ++word) {
              code.lengths[static_cast<size_t>(number + 128)] = static_cast<uint8_t>(length);
              code.words[static_cast<size_t>(number + 128)] = static_cast<uint8_t>(word);
            }
          }
        }
      }
      code.least = -numbers[1];
      code.greatest = numbers[0] - 1;
    }
  }

  static const AllBooks& Get() {
    static const AllBooks all;
    return all;
  }
};

}  // namespace

const std::array<CodeBook, kCodedBooks>& CodeBooks() { return AllBooks::Get().books; }
const std::array<CodeWords, kCodedBooks>& CodesOfBooks() { return AllBooks::Get().codes; }

CodedPage::CodedPage(const PageLayout& layout, const std::byte* page) {
  const auto* const begin = reinterpret_cast<const uint8_t*>(page + layout.key_offset);
  const auto dim = static_cast<size_t>(layout.key_dim);
  Header header;
  std::memcpy(&header, begin, sizeof header);
  kind = static_cast<CodedKind>(header.kind);
  key_exponent = header.key_exponent;
  if (kind == CodedKind::kHalves) {
    key_halves = reinterpret_cast<const uint16_t*>(begin + kCodedHeaderBytes);
    value_halves = key_halves + kP * dim;
    return;
  }
  key_codes = begin + sizeof header;
  value_codes = key_codes + header.key_stream;
  codes_end = reinterpret_cast<const uint8_t*>(page) + header.bytes - BytesAfter(layout, kind == CodedKind::kWide);
  key_books = codes_end;
  value_books = key_books + (dim + 1) / 2;
  value_exponents = reinterpret_cast<const int8_t*>(value_books + kP / 2);
  centres = value_books + kP / 2 + kP;
}

uint32_t CodedPageBytes(const PageLayout& layout, const std::byte* page) {
  uint32_t bytes = 0;
  std::memcpy(&bytes, page + layout.key_offset, sizeof bytes);
  return bytes;
}

void SetCodedPageBytes(const PageLayout& layout, std::byte* page, uint32_t bytes) {
  std::memcpy(page + layout.key_offset, &bytes, sizeof bytes);
}

uint32_t EncodePage(const PageLayout& layout, const float* keys, const float* values, std::byte* page) {
  PITH_DCHECK(layout.format.coded());
  const auto is_finite = [](float number) { return std::isfinite(number); };
  Draft draft;
  uint32_t bytes = 0;
  if (std::all_of(keys, keys + kP * static_cast<size_t>(layout.key_dim), is_finite) &&
      std::all_of(values, values + kP * static_cast<size_t>(layout.value_dim), is_finite) &&
      DraftKeys(layout, keys, draft) && DraftValues(layout, values, draft)) {
    bytes = WriteDraft(layout, draft, page);
  }
  return bytes > 0 ? bytes : WriteHalves(layout, keys, values, page);
}

void DecodeKeys(const PageLayout& layout, const std::byte* page, float* keys) {
  GetPageKernels().ConvertKeys(layout, page, keys);
}

void DecodeValues(const PageLayout& layout, const std::byte* page, float* values, size_t stride) {
  GetPageKernels().ConvertValues(layout, page, kPageEntries, values, stride);
}

void ReadPage(const PageLayout& layout, const std::byte* page, float* keys, float* values) {
  GetPageKernels().ConvertKeys(layout, page, keys);
  ReadValues(layout, page, kPageEntries, values);
}

void ReadCodedKeys(const PageLayout& layout, const std::byte* page, int count, float* keys) {
  const auto dim = static_cast<size_t>(layout.key_dim);
  std::vector<float> all(dim * kP);
  DecodeKeys(layout, page, all.data());
  for (size_t j = 0; j < static_cast<size_t>(count); ++j) {
    for (size_t d = 0; d < dim; ++d) keys[j * dim + d] = all[d * kP + j];
  }
}

void ReadCodedValues(const PageLayout& layout, const std::byte* page, int count, float* values) {
  const size_t stride = static_cast<size_t>(layout.value_groups()) * kGroupElements;
  const auto dim = static_cast<size_t>(layout.value_dim);
  std::vector<float> all(stride * kP);
  DecodeValues(layout, page, all.data(), stride);
  for (size_t j = 0; j < static_cast<size_t>(count); ++j) {
    std::copy_n(all.data() + j * stride, dim, values + j * dim);
  }
}

void DecodeKeysReference(const PageLayout& layout, const std::byte* page, float* keys) {
  const CodedPage coded(layout, page);
  const auto dim = static_cast<size_t>(layout.key_dim);
  for (size_t i = 0; i < dim * kP && coded.kind == CodedKind::kHalves; ++i) {
    keys[i] = FloatOfHalf(coded.key_halves[i]);
  }
  if (coded.kind == CodedKind::kHalves) return;
  const float step = PowerOfTwo(coded.key_exponent);
  const bool read =
      ReadRows(coded.key_codes, coded.value_codes, dim, 1, coded.key_books, [&](size_t d, size_t j, int number) {
        const int steps = number + coded.CentreOf(static_cast<int>(d));
        keys[d * kP + j] = static_cast<float>(steps) * step;
      });
  PITH_CHECK(read);
}

void DecodeValuesReference(const PageLayout& layout, const std::byte* page, float* values, size_t stride) {
  const CodedPage coded(layout, page);
  const auto dim = static_cast<size_t>(layout.value_dim);
  if (coded.kind == CodedKind::kHalves) {
    for (size_t j = 0; j < kP; ++j) {
      for (size_t c = 0; c < stride; ++c) {
        values[j * stride + c] = c < dim ? FloatOfHalf(coded.value_halves[j * dim + c]) : 0.0F;
      }
    }
    return;
  }
  const auto groups = static_cast<size_t>(layout.value_groups());
  const bool read = ReadRows(coded.value_codes, coded.codes_end, kP * groups, std::max<size_t>(groups, 1),
                             coded.value_books, [&](size_t row, size_t l, int number) {
                               const size_t j = row / groups, c = row % groups * kCodeLanes + l;
                               values[j * stride + c] =
                                   static_cast<float>(number) * PowerOfTwo(coded.value_exponents[j]);
                             });
  PITH_CHECK(read);
}

bool IsCodedPage(const PageLayout& layout, const std::byte* page, size_t bytes) {
  if (bytes < layout.key_offset + sizeof(Header) || bytes > layout.page_bytes) return false;
  Header header;
  std::memcpy(&header, page + layout.key_offset, sizeof header);
  if (header.bytes != bytes || header.kind > static_cast<uint8_t>(CodedKind::kHalves)) return false;
  if (header.kind == static_cast<uint8_t>(CodedKind::kHalves)) {
    if (bytes != HalvesBytes(layout)) return false;
    const CodedPage coded(layout, page);
    return std::all_of(coded.key_halves, coded.key_halves + kP * static_cast<size_t>(layout.key_dim + layout.value_dim),
                       [](uint16_t bits) { return (bits & 0x7fff) <= 0x7c00; });
  }
  const bool wide = header.kind == static_cast<uint8_t>(CodedKind::kWide);
  if (bytes < layout.key_offset + sizeof header + header.key_stream + BytesAfter(layout, wide)) return false;
  const CodedPage coded(layout, page);
  if (!IsExponent(coded.key_exponent) || !std::all_of(coded.value_exponents, coded.value_exponents + kP, IsExponent)) {
    return false;
  }
  const auto ignore = [](size_t, size_t, int) {};
  const auto groups = static_cast<size_t>(layout.value_groups());
  return ReadRows(coded.key_codes, coded.value_codes, static_cast<size_t>(layout.key_dim), 1, coded.key_books,
                  ignore) &&
         ReadRows(coded.value_codes, coded.codes_end, kP * groups, std::max<size_t>(groups, 1), coded.value_books,
                  ignore);
}

}  // namespace pith::kernels
