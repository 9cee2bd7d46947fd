#include "kernels/rotation.h"

#include <cmath>
#include <cstddef>
#include <utility>

namespace pith {

void Rotation::Unturn(int32_t position, std::span<float> factors) const {
  for (size_t p = 0; p < pairs.size(); ++p) {
    const double angle = pairs[p].angle * position;
    factors[2 * p] = static_cast<float>(std::cos(angle) / pairs[p].magnitude);
    factors[2 * p + 1] = static_cast<float>(-std::sin(angle) / pairs[p].magnitude);
  }
}

void Rotation::TurnOn(int32_t positions, std::span<float> factors) const {
  for (size_t p = 0; p < pairs.size(); ++p) {
    const double angle = pairs[p].angle * positions;
    factors[2 * p] = static_cast<float>(std::cos(angle));
    factors[2 * p + 1] = static_cast<float>(std::sin(angle));
  }
}

// A geometric series: sin(N a / 2) / sin(a / 2) at the angle of the middle.
void Rotation::MeanTurn(int32_t from, int count, std::span<float> factors) const {
  for (size_t p = 0; p < pairs.size(); ++p) {
    const double half = pairs[p].angle / 2, below = count * std::sin(half);
    const double length = pairs[p].magnitude * (std::abs(below) < 1e-12 ? 1 : std::sin(count * half) / below);
    const double middle = pairs[p].angle * (from + (count - 1) / 2.0);
    factors[2 * p] = static_cast<float>(length * std::cos(middle));
    factors[2 * p + 1] = static_cast<float>(length * std::sin(middle));
  }
}

void Rotation::Apply(std::span<const float> factors, float* row) const {
  for (size_t p = 0; p < pairs.size(); ++p) {
    float& real = row[pairs[p].real];
    float& imaginary = row[pairs[p].imaginary];
    const float x = real, y = imaginary;
    real = factors[2 * p] * x - factors[2 * p + 1] * y;
    imaginary = factors[2 * p + 1] * x + factors[2 * p] * y;
  }
}

std::vector<float> Rotation::ApplyToForm(std::span<const float> factors, int dim, const float* triangle) const {
  const auto width = static_cast<size_t>(dim);
  std::vector<float> matrix(width * width), turned;
  for (size_t i = 0; i < width; ++i) {
    for (size_t k = 0; k <= i; ++k) matrix[i * width + k] = matrix[k * width + i] = *triangle++;
  }
  for (size_t i = 0; i < width; ++i) Apply(factors, &matrix[i * width]);
  // M R^T is there; its transpose is R M, of which R^T makes the result's transpose, and that is the result.
  for (size_t i = 0; i < width; ++i) {
    for (size_t k = 0; k < i; ++k) std::swap(matrix[i * width + k], matrix[k * width + i]);
  }
  for (size_t i = 0; i < width; ++i) {
    Apply(factors, &matrix[i * width]);
    turned.insert(turned.end(), &matrix[i * width], &matrix[i * width] + i + 1);
  }
  return turned;
}

}  // namespace pith
