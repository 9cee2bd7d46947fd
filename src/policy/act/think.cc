#include "policy/act/think.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace pith {
namespace {

// Mean of squares by channel, in double since sums run over thousands of rows.
std::vector<double> Energy(std::span<const float> rows, size_t dim) {
  std::vector<double> energy(dim, 0);
  for (size_t i = 0; i < rows.size(); ++i)
    energy[i % dim] += static_cast<double>(rows[i]) * static_cast<double>(rows[i]);
  for (double& sum : energy) sum /= static_cast<double>(std::max<size_t>(rows.size() / dim, 1));
  return energy;
}

}  // namespace

void ChannelImportance(std::span<const float> queries, std::span<const float> keys, std::span<float> scores) {
  const std::vector<double> query_energy = Energy(queries, scores.size());
  const std::vector<double> key_energy = Energy(keys, scores.size());
  for (size_t c = 0; c < scores.size(); ++c) scores[c] = static_cast<float>(query_energy[c] * key_energy[c]);
}

std::vector<int32_t> KeptChannels(std::span<const float> scores, double share) {
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return scores[static_cast<size_t>(a)] < scores[static_cast<size_t>(b)];
  });
  // 1e-9: half of 64 is 32, whatever the binary fraction says.
  const auto pruned = static_cast<ptrdiff_t>(std::floor(static_cast<double>(scores.size()) * share + 1e-9));
  order.erase(order.begin(), order.begin() + std::clamp<ptrdiff_t>(pruned, 0, static_cast<ptrdiff_t>(order.size())));
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<float> PackChannels(std::span<const float> rows, size_t dim, std::span<const int32_t> channels) {
  std::vector<float> packed;
  packed.reserve(rows.size() / dim * channels.size());
  for (size_t row = 0; row < rows.size(); row += dim) {
    for (const int32_t c : channels) packed.push_back(rows[row + static_cast<size_t>(c)]);
  }
  return packed;
}

std::vector<float> PackedLogits(std::span<const float> query, std::span<const int32_t> channels,
                                std::span<const float> packed, std::span<const float> whole) {
  const std::vector<float> own = PackChannels(query, query.size(), channels);
  const double scale = 1 / std::sqrt(static_cast<double>(query.size()));
  std::vector<float> logits;
  const auto add = [&](std::span<const float> keys, std::span<const float> by) {
    for (size_t key = 0; key < keys.size(); key += by.size()) {
      double dot = 0;
      for (size_t c = 0; c < by.size(); ++c) dot += static_cast<double>(keys[key + c]) * static_cast<double>(by[c]);
      logits.push_back(static_cast<float>(dot * scale));
    }
  };
  add(packed, own);
  add(whole, query);
  return logits;
}

}  // namespace pith
