#include "policy/allocate/layer_density.h"

#include <algorithm>
#include <cmath>

namespace pith {

double LayerDensity(std::span<const std::span<const float>> heads) {
  std::vector<double> variances;
  for (const std::span<const float> sums : heads) {
    double mean = 0, squares = 0;
    for (const float a : sums) mean += a;
    mean /= std::max<double>(static_cast<double>(sums.size()), 1);
    for (const float a : sums) squares += (a - mean) * (a - mean);
    variances.push_back(sums.size() > 1 ? squares / static_cast<double>(sums.size() - 1) : 0);
  }
  if (variances.empty()) return 0;
  const auto [least, greatest] = std::minmax_element(variances.begin(), variances.end());
  double sum = 0;
  for (const double variance : variances) sum += (variance - *least) / (*greatest - *least + 1e-6);
  return sum / static_cast<double>(variances.size());
}

std::vector<double> LayerRatios(std::span<const double> densities, double rho) {
  double total = 0;
  for (const double density : densities) total += std::exp(-density);
  std::vector<double> ratios;
  for (const double density : densities) {
    ratios.push_back(std::clamp(std::exp(-density) / total * static_cast<double>(densities.size()) * rho, 0.01, 1.0));
  }
  return ratios;
}

}  // namespace pith
