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

TurnTable::TurnTable(Rotation rotation) : rotation_(std::move(rotation)) {
  turns_.reserve(static_cast<size_t>(kDigits * kBase) * rotation_.pairs.size() * 2);
  double unit = 1;
  for (int digit = 0; digit < kDigits; ++digit, unit *= kBase) {
    for (int i = 0; i < kBase; ++i) {
      for (const RotatedPair& pair : rotation_.pairs) {
        turns_.push_back(static_cast<float>(std::cos(pair.angle * unit * i)));
        turns_.push_back(static_cast<float>(std::sin(pair.angle * unit * i)));
      }
    }
  }
}

void TurnTable::Apply(int32_t position, float direction, float* row) const {
  const size_t width = 2 * rotation_.pairs.size();
  const float* digits[kDigits];
  auto left = static_cast<uint32_t>(position);
  for (int i = 0; i < kDigits; ++i, left /= kBase) {
    digits[i] = turns_.data() + (static_cast<size_t>(i) * kBase + left % kBase) * width;
  }
  for (size_t p = 0; p < rotation_.pairs.size(); ++p) {
    const RotatedPair& pair = rotation_.pairs[p];
    float real = digits[0][2 * p], imaginary = digits[0][2 * p + 1];
    for (int i = 1; i < kDigits; ++i) {
      const float x = digits[i][2 * p], y = digits[i][2 * p + 1], before = real;
      real = before * x - imaginary * y;
      imaginary = before * y + imaginary * x;
    }
    const auto magnitude = static_cast<float>(direction > 0 ? pair.magnitude : 1 / pair.magnitude);
    real *= magnitude;
    imaginary *= direction * magnitude;
    const float x = row[pair.real], y = row[pair.imaginary];
    row[pair.real] = real * x - imaginary * y;
    row[pair.imaginary] = imaginary * x + real * y;
  }
}

}  // namespace pith
