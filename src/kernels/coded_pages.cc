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
static_assert(kCodeStreams == kPageEntries);

// How many codes have 1, 2, ... bits: Huffman codes of zigzag integers of which 85% are normal, of deviation
// 0.283 * 2^(i/2) for the i-th, and the rest of 2.2 times that. The last one is for any number.
constexpr uint8_t kLengthCounts[kCodedBooks][kLongestCode] = {
    {1, 1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0},        {1, 1, 1, 1, 1, 2, 0, 0, 0, 0, 0, 0},
    {1, 1, 1, 1, 1, 1, 1, 2, 0, 0, 0, 0},        {1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 0, 0},
    {0, 3, 1, 1, 0, 2, 2, 3, 1, 2, 0, 0},        {0, 2, 3, 0, 2, 2, 2, 2, 2, 3, 1, 2},
    {0, 0, 5, 4, 2, 1, 3, 3, 3, 4, 4, 0},        {0, 0, 4, 5, 3, 3, 2, 4, 4, 4, 4, 8},
    {0, 0, 0, 11, 6, 3, 5, 4, 6, 6, 8, 8},       {0, 0, 0, 8, 9, 8, 5, 5, 9, 9, 10, 16},
    {0, 0, 0, 0, 23, 9, 8, 9, 9, 13, 12, 28},    {0, 0, 0, 0, 16, 19, 13, 11, 12, 14, 18, 52},
    {0, 0, 0, 0, 0, 45, 19, 17, 16, 20, 26, 76}, {0, 0, 0, 0, 0, 31, 40, 26, 22, 25, 30, 80},
    {0, 0, 0, 0, 0, 0, 0, 254, 0, 0, 0, 0}};

constexpr int kFarthest = 126;         // from the centre: 254 symbols
constexpr int kFarthestCentre = 1900;  // with that less than 2^11, so that a multiple of a step is a float16
constexpr int kLeastExponent = -24;    // of a float16
constexpr int kNoExponent = std::numeric_limits<int>::max();

uint32_t Zigzag(int number) { return static_cast<uint32_t>(number < 0 ? -2 * number - 1 : 2 * number); }
int Unzigzag(uint32_t symbol) { return static_cast<int>(symbol >> 1) ^ -static_cast<int>(symbol & 1); }

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
  bool fits = true;
  for (size_t i = 0; i < count; ++i) {
    const float steps = numbers[i] * inverse;
    fits = fits && std::abs(steps) <= static_cast<float>(farthest);
    integers[i] = fits ? static_cast<int16_t>((steps + kMagic) - kMagic) : int16_t{0};
  }
  return fits;
}

// The book, of those whose width is about theirs, that takes the fewest bits for these symbols.
int ChooseBook(const uint8_t* symbols, size_t count) {
  const auto& books = CodeBooks();
  const int largest = *std::max_element(symbols, symbols + count);
  size_t sum = 0;
  for (size_t i = 0; i < count; ++i) sum += symbols[i];
  // A symbol is about twice a distance, of which the mean is 0.8 deviations: 1.6 * 0.283 * 2^(i/2).
  int guess = 0;
  for (double mean = 0.45; guess + 2 < kCodedBooks && mean * static_cast<double>(count) < static_cast<double>(sum);
       mean *= 1.4142135) {
    ++guess;
  }
  int best = kCodedBooks - 1;
  size_t least = std::numeric_limits<size_t>::max();
  int tried = 0;
  for (int b = std::max(guess - 2, 0); b < kCodedBooks && tried < 4; ++b) {
    const CodeBook& book = books[static_cast<size_t>(b)];
    if (book.alphabet <= largest) continue;
    ++tried;
    size_t bits = 0;
    for (size_t i = 0; i < count; ++i) bits += book.lengths[symbols[i]];
    if (bits >= least) continue;
    least = bits;
    best = b;
  }
  return best;
}

// From a page's last byte towards its beginning.
class BitWriter {
 public:
  explicit BitWriter(uint8_t* last) : to_(last) {}
  void Write(uint32_t word, int length) {
    word_ = word_ << length | word;
    for (filled_ += length; filled_ >= 8; filled_ -= 8) *to_-- = static_cast<uint8_t>(word_ >> (filled_ - 8));
  }
  void Align() {  // to 4 bits
    if (filled_ % 4 != 0) Write(0, 4 - filled_ % 4);
  }
  // Zeros up to a whole byte.
  void Finish() {
    if (filled_ > 0) Write(0, 8 - filled_);
  }

 private:
  uint8_t* to_;
  uint64_t word_ = 0;
  int filled_ = 0;
};

// A page's integers before they are written.
struct Draft {
  int key_exponent = 0;
  std::vector<int16_t> centres;       // [D]
  std::vector<uint8_t> keys, values;  // symbols [D][P], [P][N * 32]
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
      for (size_t j = 0; j < kP; ++j) draft.keys[d * kP + j] = static_cast<uint8_t>(Zigzag(row[j] - centre));
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
      draft.values[j * draft.value_row + c] = static_cast<uint8_t>(Zigzag(integers[c]));
    }
  }
  return true;
}

// Bits of each stream of rows [count][32].
std::array<uint32_t, kCodeStreams> StreamBits(const uint8_t* rows, size_t count, size_t rows_of_book,
                                              const std::vector<uint8_t>& books) {
  std::array<uint32_t, kCodeStreams> bits = {};
  for (size_t i = 0; i < count; ++i) {
    const CodeBook& book = CodeBooks()[books[i / rows_of_book]];
    for (size_t l = 0; l < kCodeStreams; ++l) bits[l] += book.lengths[rows[i * kCodeStreams + l]];
  }
  return bits;
}

void WriteStreams(const uint8_t* rows, size_t count, size_t rows_of_book, const std::vector<uint8_t>& books,
                  BitWriter& writer) {
  for (size_t l = 0; l < kCodeStreams; ++l) {
    for (size_t i = 0; i < count; ++i) {
      const CodeBook& book = CodeBooks()[books[i / rows_of_book]];
      const uint8_t symbol = rows[i * kCodeStreams + l];
      writer.Write(book.words[symbol], book.lengths[symbol]);
    }
    writer.Align();
  }
}

// Lengths in 4 bits, less the least of them. False: they differ by more than a byte holds.
bool SetLengths(const std::array<uint32_t, kCodeStreams>& bits, uint16_t* least, uint8_t* lengths, size_t* sum) {
  std::array<uint32_t, kCodeStreams> nibbles;
  for (size_t l = 0; l < kCodeStreams; ++l) *sum += nibbles[l] = (bits[l] + 3) / 4;
  const auto [low, high] = std::ranges::minmax(nibbles);
  if (high - low > 255 || low > 0xffff) return false;
  *least = static_cast<uint16_t>(low);
  for (size_t l = 0; l < kCodeStreams; ++l) lengths[l] = static_cast<uint8_t>(nibbles[l] - low);
  return true;
}

struct Header {
  uint32_t bytes = 0;
  uint8_t kind = 0;
  int8_t key_exponent = 0;
  uint16_t key_least = 0, value_least = 0, unused = 0;
};
static_assert(sizeof(Header) == 12);

// Of books, exponents, centres and lengths: what comes before the streams.
size_t BytesBefore(const PageLayout& layout, bool wide) {
  const auto dim = static_cast<size_t>(layout.key_dim);
  return sizeof(Header) + (dim + 1) / 2 + kP / 2 + kP + dim * (wide ? 2 : 1) + 2 * kCodeStreams;
}

size_t HalvesBytes(const PageLayout& layout) {
  return layout.key_offset + kCodedHeaderBytes +
         sizeof(uint16_t) * kP * static_cast<size_t>(layout.key_dim + layout.value_dim);
}

// 0: the page takes no fewer bytes than halves.
uint32_t WriteDraft(const PageLayout& layout, Draft& draft, std::byte* page) {
  const auto dim = static_cast<size_t>(layout.key_dim);
  const size_t value_rows = draft.value_row / kCodeStreams;
  draft.key_books.resize(dim);
  for (size_t d = 0; d < dim; ++d) {
    draft.key_books[d] = static_cast<uint8_t>(ChooseBook(draft.keys.data() + d * kP, kP));
  }
  draft.value_books.assign(kP, 0);
  for (size_t j = 0; j < kP && value_rows > 0; ++j) {
    const auto book = ChooseBook(draft.values.data() + j * draft.value_row, draft.value_row);
    draft.value_books[j] = static_cast<uint8_t>(book);
  }
  Header header;
  uint8_t lengths[2][kCodeStreams] = {};
  size_t nibbles = 0;
  const auto key_bits = StreamBits(draft.keys.data(), dim, 1, draft.key_books);
  const auto value_bits =
      StreamBits(draft.values.data(), kP * value_rows, std::max<size_t>(value_rows, 1), draft.value_books);
  if (!SetLengths(key_bits, &header.key_least, lengths[0], &nibbles) ||
      !SetLengths(value_bits, &header.value_least, lengths[1], &nibbles)) {
    return 0;
  }
  const bool wide = std::ranges::any_of(draft.centres, [](int16_t centre) { return std::abs(centre) > INT8_MAX; });
  const size_t bytes = layout.key_offset + BytesBefore(layout, wide) + (nibbles + 1) / 2;
  if (bytes >= HalvesBytes(layout)) return 0;
  header.bytes = static_cast<uint32_t>(bytes);
  header.kind = static_cast<uint8_t>(wide ? CodedKind::kWide : CodedKind::kNarrow);
  header.key_exponent = static_cast<int8_t>(draft.key_exponent);
  auto* to = reinterpret_cast<uint8_t*>(page + layout.key_offset);
  const auto put = [&to](const void* from, size_t count) {
    std::memcpy(to, from, count);
    to += count;
  };
  put(&header, sizeof header);
  for (const std::vector<uint8_t>* books : {&draft.key_books, &draft.value_books}) {
    for (size_t i = 0; i < books->size(); i += 2) {
      *to++ = static_cast<uint8_t>((*books)[i] | (i + 1 < books->size() ? (*books)[i + 1] << 4 : 0));
    }
  }
  put(draft.value_exponents.data(), kP);
  for (const int16_t centre : draft.centres) put(&centre, wide ? 2 : 1);  // little-endian: its low byte comes first
  put(lengths, sizeof lengths);
  BitWriter writer(reinterpret_cast<uint8_t*>(page + bytes - 1));
  WriteStreams(draft.keys.data(), dim, 1, draft.key_books, writer);
  WriteStreams(draft.values.data(), kP * value_rows, std::max<size_t>(value_rows, 1), draft.value_books, writer);
  writer.Finish();
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

// The next symbol of a stream.
uint32_t ReadSymbol(const CodeBook& book, const uint8_t* bits, uint32_t* at) {
  uint32_t window = 0;
  for (int i = 0; i < 4; ++i) window = window << 8 | *(bits - *at / 8 - i);
  const auto word = static_cast<int32_t>((window << *at % 8) >> 1);
  int i = 0;
  while (i + 1 < book.num_lengths && word >= book.firsts[static_cast<size_t>(i + 1)]) ++i;
  const int32_t shift = book.shifts[static_cast<size_t>(i)];
  *at += static_cast<uint32_t>(31 - (shift & 31));
  return static_cast<uint32_t>((word >> (shift & 31)) - (shift >> 5));
}

// visit(row, stream, number) for the numbers of streams whose rows have these books.
template <class Visit>
bool ReadStreams(const CodedPage& coded, std::array<uint32_t, kCodeStreams> at, size_t count, size_t rows_of_book,
                 const uint8_t* books, uint32_t limit, const Visit& visit) {
  for (size_t l = 0; l < kCodeStreams; ++l) {
    for (size_t i = 0; i < count; ++i) {
      const int b = CodedPage::BookOf(books, static_cast<int>(i / rows_of_book));
      if (b >= kCodedBooks || at[l] > limit) return false;
      visit(i, l, Unzigzag(ReadSymbol(CodeBooks()[static_cast<size_t>(b)], coded.bits, &at[l])));
    }
    const uint32_t next = (at[l] + 3) / 4 * 4, end = l + 1 < kCodeStreams ? at[l + 1] : limit;
    if (next != end) return false;
  }
  return true;
}

}  // namespace

const std::array<CodeBook, kCodedBooks>& CodeBooks() {
  static const std::array<CodeBook, kCodedBooks> all = [] {
    std::array<CodeBook, kCodedBooks> books;
    for (size_t b = 0; b < books.size(); ++b) {
      CodeBook& book = books[b];
      uint32_t word = 0;
      for (int length = 1; length <= kLongestCode; ++length) {
        word <<= 1;
        const int count = kLengthCounts[b][length - 1];
        if (count == 0) continue;
        const auto i = static_cast<size_t>(book.num_lengths++);
        book.firsts[i] = static_cast<int32_t>(word << (31 - length));
        book.shifts[i] = (static_cast<int32_t>(word) - book.alphabet) << 5 | (31 - length);
        for (int k = 0; k < count; ++k, ++word, ++book.alphabet) {
          book.lengths[static_cast<size_t>(book.alphabet)] = static_cast<uint8_t>(length);
          book.words[static_cast<size_t>(book.alphabet)] = static_cast<uint16_t>(word);
        }
      }
    }
    return books;
  }();
  return all;
}

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
  key_books = begin + sizeof header;
  value_books = key_books + (dim + 1) / 2;
  value_exponents = reinterpret_cast<const int8_t*>(value_books + kP / 2);
  centres = value_books + kP / 2 + kP;
  const uint8_t* const lengths = centres + dim * (kind == CodedKind::kWide ? 2 : 1);
  bits = reinterpret_cast<const uint8_t*>(page) + header.bytes - 1;
  for (size_t l = 0; l < kCodeStreams; ++l) {
    keys_at[l] = end;
    end += 4 * (uint32_t{header.key_least} + lengths[l]);
  }
  for (size_t l = 0; l < kCodeStreams; ++l) {
    values_at[l] = end;
    end += 4 * (uint32_t{header.value_least} + lengths[kCodeStreams + l]);
  }
}

int CodedPage::CentreOf(int channel) const {
  if (kind == CodedKind::kNarrow) return static_cast<int8_t>(centres[channel]);
  int16_t centre = 0;
  std::memcpy(&centre, centres + 2 * static_cast<size_t>(channel), sizeof centre);
  return centre;
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
  const bool read = ReadStreams(coded, coded.keys_at, dim, 1, coded.key_books, coded.values_at[0],
                                [&](size_t d, size_t j, int number) {
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
  const bool read = ReadStreams(coded, coded.values_at, kP * groups, std::max<size_t>(groups, 1), coded.value_books,
                                coded.end, [&](size_t row, size_t l, int number) {
                                  const size_t j = row / groups, c = row % groups * kCodeStreams + l;
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
  const size_t before = layout.key_offset + BytesBefore(layout, header.kind == static_cast<uint8_t>(CodedKind::kWide));
  if (bytes < before) return false;
  const CodedPage coded(layout, page);
  if (before + (coded.end + 7) / 8 != bytes) return false;
  const auto is_exponent = [](int exponent) { return exponent >= kLeastExponent && exponent < 16; };
  if (!is_exponent(coded.key_exponent) ||
      !std::all_of(coded.value_exponents, coded.value_exponents + kP, is_exponent)) {
    return false;
  }
  const auto ignore = [](size_t, size_t, int) {};
  const auto groups = static_cast<size_t>(layout.value_groups());
  return ReadStreams(coded, coded.keys_at, static_cast<size_t>(layout.key_dim), 1, coded.key_books, coded.values_at[0],
                     ignore) &&
         ReadStreams(coded, coded.values_at, kP * groups, std::max<size_t>(groups, 1), coded.value_books, coded.end,
                     ignore);
}

}  // namespace pith::kernels
