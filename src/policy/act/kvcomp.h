// Error-bounded codes of keys and values, and Huffman codes of these (KVComp, arXiv:2509.00579;
// github.com/BoJiang03/kvcomp): a unit's step is a share of its range, so that no element moves by more than half of
// that, and vectors of small integers are written in as many bits as they need, each from a byte's first bit on.
#ifndef PITH_POLICY_ACT_KVCOMP_H_
#define PITH_POLICY_ACT_KVCOMP_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace pith {

// What shares a step: all heads of a block of tokens, one token's, one channel of one head, or one head.
enum class ErrorUnit : uint8_t { kBlock, kToken, kChannel, kBlockPerHead };

struct ErrorBound {
  ErrorUnit unit = ErrorUnit::kBlock;
  double share = 0.05;  // of the range: the step
  int block = 64;       // tokens
  int recent = 128;     // tokens that wait

  // Codes are below this.
  int alphabet() const;
  // Of so many waiting tokens, those that are compressed: whole blocks.
  int CutOf(int waiting) const;
};

struct BoundedCodes {
  std::vector<float> steps;      // [units], values that float16 holds, in the order block, head, token, channel
  std::vector<int32_t> minima;   // [units] in steps
  std::vector<int32_t> codes;    // [heads, tokens, D]
  std::vector<float> values;     // the same: what the codes are worth
};

// Tokens [first, first + count) of rows [heads, tokens, D], whole blocks. A constant unit has step 0, codes 0 and keeps
// its value.
BoundedCodes BoundErrors(const ErrorBound& bound, std::span<const float> rows, size_t heads, size_t tokens, size_t dim,
                         size_t first, size_t count);

// A canonical Huffman code. Of equal counts what holds the smaller symbol is merged first.
class HuffmanCode {
 public:
  // counts: [alphabet], all above 0.
  explicit HuffmanCode(std::span<const int64_t> counts);

  const std::vector<int32_t>& lengths() const { return lengths_; }      // [alphabet] bits
  const std::vector<int32_t>& codewords() const { return codewords_; }  // [alphabet]

  int64_t BitsOf(std::span<const int32_t> symbols) const;
  // Behind what is there, the most significant bit first, with zeros up to a whole byte.
  void Write(std::span<const int32_t> symbols, std::vector<uint8_t>& bytes) const;
  // `symbols` of a vector that begins at a byte. False: the bytes end before, or are no such code.
  bool Read(std::span<const uint8_t> bytes, std::span<int32_t> symbols) const;

 private:
  std::vector<int32_t> lengths_, codewords_;
  std::vector<int32_t> by_length_;  // symbols in canonical order
};

}  // namespace pith

#endif  // PITH_POLICY_ACT_KVCOMP_H_
