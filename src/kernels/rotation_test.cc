#include "kernels/rotation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <complex>
#include <random>

#include "kernels/triangles.h"

namespace pith {
namespace {

// Six channels: two pairs as halves, with unlike magnitudes, and one channel in none.
Rotation Sample() { return {{{0, 2, 1.0, 1.0}, {1, 3, 0.01, 1.25}}}; }
constexpr int kDim = 5;

std::complex<double> TurnAt(const RotatedPair& pair, double position) {
  return std::polar(pair.magnitude, pair.angle * position);
}

TEST(Rotation, UnturnUndoesWhatAPositionDid) {
  const Rotation rotation = Sample();
  std::vector<float> factors(4);
  for (const int32_t position : {0, 1, 77, 100000}) {
    std::vector<float> row = {1, 2, -3, 0.5F, 7};
    const std::vector<float> before = row;
    for (const RotatedPair& pair : rotation.pairs) {
      const auto turned = TurnAt(pair, position) * std::complex<double>(row[pair.real], row[pair.imaginary]);
      row[pair.real] = static_cast<float>(turned.real()), row[pair.imaginary] = static_cast<float>(turned.imag());
    }
    EXPECT_EQ(std::abs(row[0] - before[0]) > 0.1F, position > 0) << "the control";
    rotation.Unturn(position, factors);
    rotation.Apply(factors, row.data());
    for (size_t d = 0; d < row.size(); ++d) EXPECT_NEAR(row[d], before[d], 2e-6F) << position << " " << d;
  }
}

TEST(Rotation, TurnOnMovesARowToAnotherPosition) {
  const Rotation rotation = Sample();
  std::vector<float> factors(4);
  const auto at = [&](int32_t position) {
    std::vector<float> row = {1, 2, -3, 0.5F, 7};
    for (const RotatedPair& pair : rotation.pairs) {
      const auto turned = TurnAt(pair, position) * std::complex<double>(row[pair.real], row[pair.imaginary]);
      row[pair.real] = static_cast<float>(turned.real()), row[pair.imaginary] = static_cast<float>(turned.imag());
    }
    return row;
  };
  for (const auto& [from, to] : {std::pair(77, 80), {5000, 123}, {9, 9}}) {
    std::vector<float> row = at(from);
    const std::vector<float> wanted = at(to);
    EXPECT_EQ(std::abs(row[0] - wanted[0]) > 0.1F, from != to) << "the control";
    rotation.TurnOn(to - from, factors);
    rotation.Apply(factors, row.data());
    for (size_t d = 0; d < row.size(); ++d) EXPECT_NEAR(row[d], wanted[d], 2e-6F) << from << " " << to << " " << d;
  }
}

TEST(Rotation, TablesTurnAsFormulasDo) {
  const TurnTable turns(Sample());
  for (const int32_t position : {0, 1, 63, 64, 4097, 131071, 1000003}) {
    std::vector<float> row = {1, 2, -3, 0.5F, 7};
    const std::vector<float> before = row;
    turns.Turn(position, row.data());
    for (const RotatedPair& pair : Sample().pairs) {
      const auto turned = TurnAt(pair, position) * std::complex<double>(before[pair.real], before[pair.imaginary]);
      EXPECT_NEAR(row[pair.real], turned.real(), 3e-6) << position;
      EXPECT_NEAR(row[pair.imaginary], turned.imag(), 3e-6) << position;
    }
    EXPECT_EQ(row[4], before[4]);
    turns.Unturn(position, row.data());
    for (size_t d = 0; d < row.size(); ++d) EXPECT_NEAR(row[d], before[d], 3e-6F) << position << " " << d;
  }
}

TEST(Rotation, MeanTurnIsTheMeanOfAllTurns) {
  Rotation rotation = Sample();
  rotation.pairs.push_back({4, 4, 0.0, 1.5});  // no angle: the series has no quotient
  std::vector<float> factors(6);
  for (const int count : {1, 2, 512}) {
    rotation.MeanTurn(1000, count, factors);
    for (size_t p = 0; p < rotation.pairs.size(); ++p) {
      std::complex<double> mean;
      for (int i = 0; i < count; ++i) mean += TurnAt(rotation.pairs[p], 1000 + i) / static_cast<double>(count);
      EXPECT_NEAR(factors[2 * p], mean.real(), 1e-6) << count << " " << p;
      EXPECT_NEAR(factors[2 * p + 1], mean.imag(), 1e-6) << count << " " << p;
    }
  }
}

TEST(Rotation, AFormIsTurnedOnBothSides) {
  const Rotation rotation = Sample();
  std::vector<float> factors(4), triangle;
  rotation.MeanTurn(3, 10, factors);
  std::mt19937 random(1);
  double m[kDim][kDim], r[kDim][kDim] = {}, expected[kDim][kDim] = {};
  for (int i = 0; i < kDim; ++i) {
    for (int k = 0; k <= i; ++k) {
      triangle.push_back(std::normal_distribution<float>()(random));
      m[i][k] = m[k][i] = static_cast<double>(triangle.back());
    }
  }
  for (int i = 0; i < kDim; ++i) {  // columns of R: what becomes of unit vectors
    std::vector<float> unit(kDim);
    unit[static_cast<size_t>(i)] = 1;
    rotation.Apply(factors, unit.data());
    for (int k = 0; k < kDim; ++k) r[k][i] = static_cast<double>(unit[static_cast<size_t>(k)]);
  }
  for (int i = 0; i < kDim * kDim * kDim * kDim; ++i) {
    const int a = i % kDim, b = i / kDim % kDim, c = i / (kDim * kDim) % kDim, d = i / (kDim * kDim * kDim);
    expected[a][d] += r[a][b] * m[b][c] * r[d][c];
  }
  const std::vector<float> turned = rotation.ApplyToForm(factors, kDim, triangle.data());
  for (int i = 0; i < kDim; ++i) {
    for (int k = 0; k <= i; ++k) {
      EXPECT_NEAR(turned[kernels::TriangleSize(i) + static_cast<size_t>(k)], expected[i][k], 2e-6);
    }
  }
}

}  // namespace
}  // namespace pith
