// Products of a few rows with quantised weights as a GGUF file holds them, in bytes.
//
// Decoding reads every weight once per step, so that weights are multiplied where they lie: rows of input are rounded
// to 8 bits with a scale for each 32 of them (libllama's Q8_1), products of bytes are added up as integers.
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
  // input: [num_rows, width], rows `stride` floats apart; width is a multiple of kWeightBlock.
  void Round(const float* input, size_t stride, int num_rows, int width);

  int num_rows() const { return num_rows_; }
  int num_blocks() const { return num_blocks_; }
  const int8_t* codes(int row) const { return codes_.data() + static_cast<size_t>(row) * num_codes(); }
  // [num_blocks, 2]: what a code is worth, and the sum of the block's codes times that.
  const float* scales(int row) const { return scales_.data() + static_cast<size_t>(row) * num_scales(); }
  size_t num_codes() const { return static_cast<size_t>(num_blocks_) * kWeightBlock; }
  // Zeros up to a multiple of four blocks.
  size_t num_scales() const { return static_cast<size_t>((num_blocks_ + 3) / 4 * 4) * 2; }

 private:
  int num_rows_ = 0, num_blocks_ = 0;
  std::vector<int8_t> codes_;
  std::vector<float> scales_;
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

// output[n * output_stride + i] = weights' row i times input's row n. `next`: weights that will be read after these, or
// null; they are asked for while the last of these are multiplied.
void MultiplyRows(const WeightRows& weights, const RoundedRows& input, float* output, size_t output_stride,
                  const std::byte* next);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_BYTE_PRODUCTS_H_
