// L1 norms of values after the output projection (CriticalKV, DefensiveKV).
#ifndef PITH_KERNELS_PROJECTED_NORMS_H_
#define PITH_KERNELS_PROJECTED_NORMS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pith::kernels {

// The projection's columns of one kv head's group in 16-bit words with a scale for each row and query head: norms are
// sums of hundreds of magnitudes, which rounding to some 12 bits moves by about 1e-5.
class PackedProjection {
 public:
  // W: `hidden` rows, `row_stride` floats apart, that begin at the group's first head; dim floats a head.
  void Pack(const float* projection, int hidden, size_t row_stride, int group, int dim);

  int hidden() const { return hidden_; }
  int group() const { return group_; }
  int dim() const { return dim_; }
  int num_pairs() const { return (dim_ + 1) / 2; }
  // Largest magnitude such that a sum over dim of products of two words stays in 31 bits.
  int largest() const { return largest_; }
  // [2 * num_pairs] words.
  const int16_t* row(int q, int i) const { return words_.data() + RowIndex(q, i) * static_cast<size_t>(2 * num_pairs()); }
  // Times a word it is the weight.
  float scale(int q, int i) const { return scales_[RowIndex(q, i)]; }

 private:
  size_t RowIndex(int q, int i) const {
    return static_cast<size_t>(q) * static_cast<size_t>(hidden_) + static_cast<size_t>(i);
  }

  int hidden_ = 0, group_ = 0, dim_ = 0, largest_ = 0;
  std::vector<int16_t> words_;
  std::vector<float> scales_;
};

// norms[j] = mean over the group's heads q of sum over i of |sum over d of values[j, d] * W[i, q*dim + d]|.
// values: [n, dim].
void ProjectedNorms(const float* values, int n, const PackedProjection& projection, float* norms);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_PROJECTED_NORMS_H_
