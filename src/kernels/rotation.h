// How a layer turns queries and keys by their positions (RoPE).
//
// Each pair of channels is a complex number, and a position multiplies it by magnitude * exp(i * angle * position).
// Channels in no pair stay as they are.
#ifndef PITH_KERNELS_ROTATION_H_
#define PITH_KERNELS_ROTATION_H_

#include <cstdint>
#include <span>
#include <vector>

namespace pith {

struct RotatedPair {
  int real = 0;  // channels
  int imaginary = 0;
  double angle = 0;  // radians per position
  double magnitude = 1;

  friend bool operator==(const RotatedPair&, const RotatedPair&) = default;
};

struct Rotation {
  std::vector<RotatedPair> pairs;  // empty: positions turn nothing

  // The inverse of what the position did. factors: [pairs, 2], real and imaginary.
  void Unturn(int32_t position, std::span<float> factors) const;
  // What stands `positions` further on is turned by so much more (RoFormer, arXiv:2104.09864, equation 14: turns of a
  // pair add up); lengths stay.
  void TurnOn(int32_t positions, std::span<float> factors) const;
  // The mean over the positions from, from + 1, ..., from + count - 1.
  void MeanTurn(int32_t from, int count, std::span<float> factors) const;
  // Multiplies each pair of a row [D] by its factor.
  void Apply(std::span<const float> factors, float* row) const;
  // R M R^T of a symmetric matrix of dim rows, as packed triangles (kernels/triangles.h).
  std::vector<float> ApplyToForm(std::span<const float> factors, int dim, const float* triangle) const;

  friend bool operator==(const Rotation&, const Rotation&) = default;
};

// The same for many positions, out of tables: a position's turn is the product of those of its digits to the base 64.
class TurnTable {
 public:
  explicit TurnTable(Rotation rotation);
  const Rotation& rotation() const { return rotation_; }

  // A row [D] as the position leaves it, and back.
  void Turn(int32_t position, float* row) const { Apply(position, 1, row); }
  void Unturn(int32_t position, float* row) const { Apply(position, -1, row); }

 private:
  static constexpr int kBase = 64, kDigits = 4;

  // direction: 1, or -1 for the inverse.
  void Apply(int32_t position, float direction, float* row) const;

  Rotation rotation_;
  std::vector<float> turns_;  // [digits][base][pairs][2]
};

}  // namespace pith

#endif  // PITH_KERNELS_ROTATION_H_
