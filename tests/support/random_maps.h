// Maps for act=less that nobody has fitted to anything.
#ifndef PITH_TESTS_SUPPORT_RANDOM_MAPS_H_
#define PITH_TESTS_SUPPORT_RANDOM_MAPS_H_

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "host/model.h"
#include "policy/act/less.h"

namespace pith::testing {

// mass: features of keys are multiplied with it; 0: no entry that is gone counts.
inline std::shared_ptr<const LessMaps> RandomMaps(const ModelInfo& info, int rank, int hidden, float mass,
                                                  uint32_t seed) {
  std::mt19937 random(seed);
  const auto normals = [&random](int count, double size) {
    std::normal_distribution<float> normal(0, static_cast<float>(size));
    std::vector<float> numbers(static_cast<size_t>(count));
    for (float& x : numbers) x = normal(random);
    return numbers;
  };
  std::vector<LessLayer> layers;
  for (const LayerShape& shape : info.layers) {
    if (shape.kind != LayerKind::kGlobal) continue;
    const int h = shape.num_heads, g = shape.num_kv_heads, d = shape.key_dim;
    const double of_rows = 1 / std::sqrt(d), of_units = 1 / std::sqrt(hidden);
    layers.push_back({.num_heads = h,
                      .num_kv_heads = g,
                      .dim = d,
                      .hidden = hidden,
                      .query_w1 = normals(h * d * hidden, of_rows),
                      .query_w2 = normals(h * hidden * rank, of_units),
                      .key_w1 = normals(g * d * hidden, of_rows),
                      .key_w2 = normals(g * hidden * rank, of_units),
                      .key_w3 = normals(g * rank * rank, 0.3),
                      .key_s1 = std::vector<float>(static_cast<size_t>(g * rank), mass),
                      .key_s2 = normals(g * rank, 0.3)});
  }
  const auto maps = LessMaps::Make(rank, std::move(layers));
  EXPECT_TRUE(maps) << maps.error().message;
  return *maps;
}

inline std::string WriteMaps(const LessMaps& maps, const std::string& name) {
  const std::string path = ::testing::TempDir() + name;
  std::ofstream(path, std::ios::binary) << maps.Bytes();
  return path;
}

}  // namespace pith::testing

#endif  // PITH_TESTS_SUPPORT_RANDOM_MAPS_H_
