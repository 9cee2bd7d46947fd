// Error-bounded codes of keys and values (KVComp, arXiv:2509.00579; github.com/BoJiang03/kvcomp): a unit's step is a
// share of its range, so that no element moves by more than half of that. The codes are small integers, most of them
// near the middle, which a Huffman code writes in fewer bits (huffman.h).
#ifndef PITH_KERNELS_ERROR_BOUND_H_
#define PITH_KERNELS_ERROR_BOUND_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace pith::kernels {

// What shares a step: all heads of a block of tokens, one token's, one channel of one head, or one head.
enum class ErrorUnit : uint8_t { kBlock, kToken, kChannel, kBlockPerHead };

struct ErrorBound {
  ErrorUnit unit = ErrorUnit::kBlock;
  double share = 0.05;  // of the range: the step, 1/254 .. 0.5
  int block = 64;       // tokens
  int recent = 128;     // tokens that wait, at least a block
  // A unit whose numbers lie on a grid of so few steps already, since they were coded before and are what float16 makes
  // of that, keeps its step: coded again and again, its errors do not add up. (Not in the paper.)
  bool keeps_grid = false;

  // Codes are below this, so that they fit a byte.
  int alphabet() const;
  // Of so many waiting tokens, those that are compressed: whole blocks.
  int CutOf(int waiting) const;

  friend bool operator==(const ErrorBound&, const ErrorBound&) = default;
};

inline constexpr double kLeastErrorShare = 1.0 / 254, kGreatestErrorShare = 0.5;

struct BoundedCodes {
  // [units], in the order block, head, token, channel. Numbers that float16 holds; 0: all elements of the unit are the
  // same number, NaN: they have no codes (one is no number, or the least is too many steps from zero). Elements of such
  // units have codes 0 and are their own values.
  std::vector<float> steps;
  std::vector<int32_t> minima;  // [units] in steps, within 16 bits
  std::vector<int32_t> codes;   // [heads, tokens, D]
  std::vector<float> values;    // the same: what the codes are worth
};

// Tokens [first, first + count) of rows [heads, tokens, D], whole blocks.
BoundedCodes BoundErrors(const ErrorBound& bound, std::span<const float> rows, size_t heads, size_t tokens, size_t dim,
                         size_t first, size_t count);

// Units of `count` tokens, whole blocks.
size_t NumUnits(const ErrorBound& bound, size_t heads, size_t count, size_t dim);
// The unit of an element, and of a block's token in it: of head h, token t, channel c.
size_t UnitOf(const ErrorBound& bound, size_t heads, size_t dim, size_t h, size_t t, size_t c);
// What `codes` are worth by steps and minima; elements without a code keep their values.
void SetValues(const ErrorBound& bound, size_t heads, size_t count, size_t dim, BoundedCodes& codes);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_ERROR_BOUND_H_
