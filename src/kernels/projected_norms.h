// L1 norms of values after the output projection (CriticalKV, DefensiveKV).
#ifndef PITH_KERNELS_PROJECTED_NORMS_H_
#define PITH_KERNELS_PROJECTED_NORMS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pith::kernels {

// The projection's columns of one kv head's group in bytes with a unit for each row and query head. Rounding moves a
// product of one row by about 3%, and so the norm, a sum of hundreds of magnitudes, by 3% over the root of their
// number, about 0.1%.
class PackedProjection {
 public:
  // Quads of bytes that are summed before 16 bits are left.
  static constexpr int kStretchQuads = 16;
  // Rows have zeros up to a multiple of so many channels.
  static constexpr int kChannelsAbreast = 16;

  // W: `hidden` rows, `row_stride` floats apart, that begin at the group's first head; dim floats a head.
  void Pack(const float* projection, int hidden, size_t row_stride, int group, int dim);

  int hidden() const { return hidden_; }
  int group() const { return group_; }
  int dim() const { return dim_; }
  int num_quads() const { return (dim_ + kChannelsAbreast - 1) / kChannelsAbreast * kChannelsAbreast / 4; }
  int num_stretches() const { return (num_quads() + kStretchQuads - 1) / kStretchQuads; }

  // [4 * num_quads].
  const int8_t* bytes(int q, int i) const {
    return bytes_.data() + RowIndex(q, i) * static_cast<size_t>(4 * num_quads());
  }
  // [num_stretches, 2]: of bytes 0 and 1 of all quads, and of bytes 2 and 3.
  const int16_t* sums(int q, int i) const {
    return sums_.data() + RowIndex(q, i) * static_cast<size_t>(2 * num_stretches());
  }
  size_t num_bytes() const {
    return bytes_.size() + sums_.size() * sizeof(sums_[0]) + units_.size() * sizeof(units_[0]);
  }
  // What a byte is worth.
  float unit(int q, int i) const { return units_[RowIndex(q, i)]; }

 private:
  size_t RowIndex(int q, int i) const {
    return static_cast<size_t>(q) * static_cast<size_t>(hidden_) + static_cast<size_t>(i);
  }

  int hidden_ = 0, group_ = 0, dim_ = 0;
  std::vector<int8_t> bytes_;
  std::vector<int16_t> sums_;
  std::vector<float> units_;
};

// norms[j] = mean over the group's heads q of sum over i of |sum over d of values[j, d] * W[i, q*dim + d]|.
// values: [n, dim].
void ProjectedNorms(const float* values, int n, const PackedProjection& projection, float* norms);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_PROJECTED_NORMS_H_
