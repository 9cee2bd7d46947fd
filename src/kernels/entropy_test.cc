#include "kernels/entropy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/targets_test_util.h"

namespace pith::kernels {
namespace {

double Reference(std::span<const float> p) {
  double sum = 0;
  for (const float x : p) sum -= static_cast<double>(x) * std::log(static_cast<double>(x) + 1e-10);
  return sum;
}

TEST(Entropy, EqualsTheReferenceOnEveryTarget) {
  std::mt19937 random(5);
  for (const int64_t target : Targets()) {
    UseTarget(target);
    for (const size_t n : {0, 1, 5, 16, 255, 256, 257, 3000}) {
      std::vector<float> p(n);
      float sum = 0;
      // From 1 down to what float32 calls 0.
      for (float& x : p) sum += x = std::exp(-30 * std::uniform_real_distribution<float>()(random));
      for (float& x : p) x = n > 2 && random() % 8 == 0 ? 0 : x / sum;
      const double reference = Reference(p);
      EXPECT_NEAR(Entropy(p), reference, 1e-6 * std::abs(reference) + 1e-7) << hwy::TargetName(target) << " n=" << n;
      if (n < 5) continue;
      p[n / 2] += 0.01F;  // seen
      EXPECT_GT(std::abs(Reference(p) - reference), 1e-4 * std::abs(reference));
    }
  }
  UseTarget(0);
}

}  // namespace
}  // namespace pith::kernels
