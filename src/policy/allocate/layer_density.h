// D2O's layer budgets (arXiv:2406.13035; github.com/AIoT-MLSys-Lab/D2O modeling_llama3_new.py, lines
// 692-723): layers whose attention is spread evenly need more entries.
#ifndef PITH_POLICY_ALLOCATE_LAYER_DENSITY_H_
#define PITH_POLICY_ALLOCATE_LAYER_DENSITY_H_

#include <span>
#include <vector>

namespace pith {

// Steps 1 and 2: the variance of each head's attention per entry (unbiased), scaled to 0..1 over the
// heads of the layer; their mean. heads: column sums [n] of each head.
double LayerDensity(std::span<const std::span<const float>> heads);

// Step 3: share of its entries that each layer may keep, softmax of -density times L rho, within
// 0.01..1. The clamp comes last and is never made up for.
std::vector<double> LayerRatios(std::span<const double> densities, double rho);

}  // namespace pith

#endif  // PITH_POLICY_ALLOCATE_LAYER_DENSITY_H_
