#include "tests/support/mikv_rule.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/half.h"

namespace pith::testing {
namespace {

GroupCodes Quantize(std::span<const double> row, int group, int bits) {
  GroupCodes out;
  const double levels = std::ldexp(1.0, bits) - 1;
  for (size_t first = 0; first < row.size(); first += static_cast<size_t>(group)) {
    const auto part = row.subspan(first, std::min(static_cast<size_t>(group), row.size() - first));
    const auto [least, greatest] = std::minmax_element(part.begin(), part.end());
    const double beta = RoundToHalf(*least);
    const double alpha = std::max(RoundToHalf((*greatest - *least) / levels), kLeastHalf);
    const bool constant = *greatest == *least;
    for (const double x : part) {
      const double code = constant ? 0 : std::clamp(std::nearbyint((x - beta) / alpha), 0.0, levels);
      out.codes.push_back(static_cast<int32_t>(code));
    }
    out.alpha.push_back(static_cast<float>(alpha));
    out.beta.push_back(static_cast<float>(beta));
  }
  return out;
}

double Worth(const GroupCodes& codes, size_t c) {
  const size_t group = c * codes.alpha.size() / codes.codes.size();
  return static_cast<double>(codes.alpha[group]) * codes.codes[c] + static_cast<double>(codes.beta[group]);
}

std::vector<float> Greatest(std::span<const float> rows, size_t dim) {
  std::vector<float> greatest(dim, 0);
  for (size_t i = 0; i < rows.size(); ++i) greatest[i % dim] = std::max(greatest[i % dim], std::abs(rows[i]));
  return greatest;
}

}  // namespace

void Balance(std::span<const float> queries, std::span<const float> keys, std::span<float> balancer) {
  const std::vector<float> query = Greatest(queries, balancer.size()), key = Greatest(keys, balancer.size());
  for (size_t c = 0; c < balancer.size(); ++c) {
    const bool none = query[c] == 0 || key[c] == 0;
    balancer[c] =
        none ? 1 : std::clamp(static_cast<float>(std::sqrt(static_cast<double>(query[c]) / key[c])), 1e-4F, 1e4F);
  }
}

GroupCodes QuantizeRow(std::span<const float> row, int group, int bits) {
  return Quantize(std::vector<double>(row.begin(), row.end()), group, bits);
}

void DequantizeRow(const GroupCodes& codes, std::span<float> row) {
  for (size_t c = 0; c < row.size(); ++c) row[c] = static_cast<float>(Worth(codes, c));
}

GroupCodes QuantizeKey(std::span<const float> key, std::span<const float> balancer, int group, int bits) {
  std::vector<double> balanced;
  for (size_t c = 0; c < key.size(); ++c)
    balanced.push_back(static_cast<double>(key[c]) * static_cast<double>(balancer[c]));
  return Quantize(balanced, group, bits);
}

void DequantizeKey(const GroupCodes& codes, std::span<const float> balancer, std::span<float> key) {
  for (size_t c = 0; c < key.size(); ++c)
    key[c] = static_cast<float>(Worth(codes, c) / static_cast<double>(balancer[c]));
}

TierSizes TierSizesFor(double ratio, int num_entries) {
  // 1e-9: a fifth of 110 is 22, whatever the binary fraction says.
  const int high = static_cast<int>(std::floor(ratio * num_entries + 1e-9));
  return {high, high / 2};
}

std::vector<uint8_t> FormTiers(std::span<const float> sums, TierSizes sizes) {
  const auto n = static_cast<ptrdiff_t>(sums.size());
  const ptrdiff_t recent = std::min<ptrdiff_t>(sizes.recent, n);
  std::vector<uint8_t> high(sums.size(), 0);
  std::fill(high.end() - recent, high.end(), uint8_t{1});
  std::vector<int32_t> others(static_cast<size_t>(n - recent));
  std::iota(others.begin(), others.end(), 0);
  std::stable_sort(others.begin(), others.end(), [&](int32_t a, int32_t b) {
    return sums[static_cast<size_t>(a)] > sums[static_cast<size_t>(b)];
  });
  const auto heavy = std::min(others.size(), static_cast<size_t>(std::max(sizes.high - sizes.recent, 0)));
  for (size_t i = 0; i < heavy; ++i) high[static_cast<size_t>(others[i])] = 1;
  return high;
}

int ChooseDemoted(std::span<const float> sums, std::span<const uint8_t> high, TierSizes sizes) {
  if (std::count(high.begin(), high.end(), uint8_t{1}) <= sizes.high) return -1;
  const int end = static_cast<int>(high.size()) - sizes.recent;
  int lowest = -1;
  for (int j = 0; j < end; ++j) {
    if (high[static_cast<size_t>(j)] == 0) continue;
    if (lowest < 0 || sums[static_cast<size_t>(j)] < sums[static_cast<size_t>(lowest)]) lowest = j;
  }
  return lowest;
}

}  // namespace pith::testing
