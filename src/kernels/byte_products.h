// Products of a few rows with quantised weights as a GGUF file holds them, in bytes.
//
// Decoding reads every weight once per step, so that weights are multiplied where they lie: rows of input are rounded
// to 8 bits with a scale for each 32 of them (libllama's Q8_1), products of bytes are added up as integers.
//
// A block's products are exact. They are added up in float32 in an order that is the same for any number of rows on any
// processor, so that a row's result does not depend on what is beside it:
//   c[b % 4] = fma(products of block b, scale of weights * scale of input, c[b % 4])     for b = 0, 1, ...
//   l[b % 4] = fma(least weight of block b, sum of input, l[b % 4])                      where weights have a least one
//   ((c[0] + c[1]) + (c[2] + c[3])) + ((l[0] + l[1]) + (l[2] + l[3]))
#ifndef PITH_KERNELS_BYTE_PRODUCTS_H_
#define PITH_KERNELS_BYTE_PRODUCTS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pith::kernels {

// Blocks of 32 weights: a scale in f16, for the types with _1 a least weight in f16, for those of 5 bits the high bits,
// then codes. kQ6_K: blocks of 256, with scales of 16 weights each.
enum class WeightFormat { kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ6_K };

// Weights that meet one scale of the input.
inline constexpr int kWeightBlock = 32;

int WeightsInBlock(WeightFormat format);
size_t WeightBlockBytes(WeightFormat format);

// Rows of input, rounded.
class RoundedRows {
 public:
  // Room for so many rows, so that Round() allocates nothing.
  void Reserve(int num_rows, int width);
  // input: [num_rows, width], rows `stride` floats apart; width is a multiple of kWeightBlock.
  void Round(const float* input, size_t stride, int num_rows, int width);

  int num_rows() const { return num_rows_; }
  int num_blocks() const { return num_blocks_; }
  const int8_t* codes(int row) const { return codes_.data() + static_cast<size_t>(row) * num_codes(); }
  // For every four blocks what a code is worth [4], and the sum of a block's codes times that [4].
  const float* scales(int row) const { return scales_.data() + static_cast<size_t>(row) * num_scales(); }
  static constexpr int ScaleAt(int block) { return block / 4 * 8 + block % 4; }
  static constexpr int SumAt(int block) { return ScaleAt(block) + 4; }
  // [num_blocks, 2]: sums of 16 codes.
  const int16_t* sums16(int row) const { return sums16_.data() + static_cast<size_t>(row) * num_scales(); }
  size_t num_codes() const { return static_cast<size_t>(num_blocks_) * kWeightBlock; }
  // Zeros up to a multiple of four blocks.
  size_t num_scales() const { return ScalesOf(num_blocks_); }

 private:
  static constexpr size_t ScalesOf(int num_blocks) { return static_cast<size_t>((num_blocks + 3) / 4 * 4) * 2; }

  int num_rows_ = 0, num_blocks_ = 0;
  std::vector<int8_t> codes_;
  std::vector<float> scales_;
  std::vector<int16_t> sums16_;
};

// Rows of a matrix of weights.
struct WeightRows {
  WeightFormat format = WeightFormat::kQ4_1;
  const std::byte* data = nullptr;
  size_t row_bytes = 0;
  int num_rows = 0;
};

// Whether this machine has instructions that make these products faster than libllama's.
bool ByteProductsAreFast();

// From this many rows of input on, weights are laid out anew for them (byte_products_many.h).
inline constexpr int kManyRows = 3;
// Of how many rows of weights a part is best a multiple.
inline int WeightRowsTogether(int num_inputs) { return num_inputs < kManyRows ? 4 : 32; }

// output[n * output_stride + i] = weights' row i times input's row n. `next`: weights that will be read after these, or
// null; they are asked for while the last of these are multiplied.
void MultiplyRows(const WeightRows& weights, const RoundedRows& input, float* output, size_t output_stride,
                  const std::byte* next);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_BYTE_PRODUCTS_H_
