// EVICPRESS: utilities, placements, operations and qualities against the specification's numbers.
#include <gtest/gtest.h>

#include <cmath>

#include "store/placement.h"
#include "tests/support/golden.h"

namespace pith::testing {
namespace {

using store::Configuration;
using store::Placement;
using store::PlacementOperation;
using store::PlacementOptions;

std::vector<double> Wide(const GgufTensor& tensor) { return {tensor.f32.begin(), tensor.f32.end()}; }

PlacementOptions OptionsOf(const GgufFile& file) {
  PlacementOptions options;
  options.alpha = file.number("pith.param.alpha");
  options.num_methods = file.param("methods");
  options.ratios = Wide(file.tensor("in/ratios"));
  const std::vector<double> bandwidth = Wide(file.tensor("in/bandwidth")), capacity = Wide(file.tensor("in/capacity"));
  for (size_t t = 0; t < bandwidth.size(); ++t) options.tiers.push_back({bandwidth[t], capacity[t]});
  return options;
}

void Append(std::vector<int64_t>& list, const Configuration& configuration) {
  list.insert(list.end(), {configuration.method, configuration.ratio, configuration.tier});
}

void CheckPlacement(const GgufFile& file, const std::string& name, const PlacementOptions& options) {
  const int contexts = file.param("contexts");
  const std::vector<double> sizes = Wide(file.tensor("in/size")), frequencies = Wide(file.tensor("in/frequency"));
  const std::vector<double> quality = Wide(file.tensor("in/quality"));
  const size_t row = static_cast<size_t>(options.num_methods) * options.ratios.size();
  Placement placement(options);
  std::vector<int64_t> configs, all_operations;
  std::vector<float> used, totals;
  for (int i = 0; i < contexts; ++i) {
    std::vector<PlacementOperation> operations;
    const auto at = static_cast<size_t>(i);
    EXPECT_EQ(placement.Add(sizes[at], frequencies[at], std::span(quality).subspan(at * row, row), operations), i);
    for (const PlacementOperation& operation : operations) {
      all_operations.insert(all_operations.end(), {i, operation.context});
      Append(all_operations, operation.from);
      Append(all_operations, operation.to);
    }
    for (int c = 0; c < contexts; ++c) {
      Append(configs, c <= i ? placement.config(c) : Configuration{-2, -2, -2});
    }
    for (size_t t = 0; t < options.tiers.size(); ++t) {
      used.push_back(static_cast<float>(placement.used(static_cast<int>(t))));
    }
    totals.push_back(static_cast<float>(placement.total_utility()));
  }
  ExpectExactly(configs, file.tensor("out/" + name + "/config").i64, name + " configurations");
  ExpectExactly(all_operations, file.tensor("out/" + name + "/operations").i64, name + " operations");
  ExpectNumbers(used, file.tensor("out/" + name + "/used").f32, name + " bytes");
  ExpectNumbers(totals, file.tensor("out/" + name + "/total").f32, name + " utility");
}

void CheckUtilities(const GgufFile& file) {
  PlacementOptions options = OptionsOf(file);
  for (store::PlacementTier& tier : options.tiers) tier.capacity = 0;
  const size_t row = static_cast<size_t>(options.num_methods) * options.ratios.size();
  const std::vector<double> quality = Wide(file.tensor("in/quality"));
  Placement placement(options);
  std::vector<PlacementOperation> none;
  std::vector<float> utilities;
  for (size_t c = 0; c < static_cast<size_t>(file.param("contexts")); ++c) {
    const int number = placement.Add(Wide(file.tensor("in/size"))[c], Wide(file.tensor("in/frequency"))[c],
                                     std::span(quality).subspan(c * row, row), none);
    for (int m = 0; m < options.num_methods; ++m) {
      for (int r = 0; r < static_cast<int>(options.ratios.size()); ++r) {
        for (int t = 0; t < static_cast<int>(options.tiers.size()); ++t) {
          utilities.push_back(static_cast<float>(placement.Utility(number, {m, r, t})));
        }
      }
    }
  }
  ExpectNumbers(utilities, file.tensor("out/evicpress/utility").f32, "utility");
}

void CheckQuality(const GgufFile& file) {
  const auto vocab = static_cast<size_t>(file.param("vocab"));
  const auto probes = static_cast<size_t>(file.param("probes"));
  const size_t probe = static_cast<size_t>(file.param("tokens")) * vocab;
  const std::vector<float>& full = file.tensor("in/logits_full").f32;
  const std::vector<float>& all = file.tensor("in/logits").f32;
  std::vector<float> kl, top;
  for (size_t at = 0; at < all.size(); at += probes * probe) {
    double kl_sum = 0, top_sum = 0;
    for (size_t p = 0; p < probes; ++p) {
      const std::span<const float> of_full = std::span(full).subspan(p * probe, probe);
      const std::span<const float> of_other = std::span(all).subspan(at + p * probe, probe);
      kl_sum += std::exp(-store::MeanDivergence(of_full, of_other, vocab));
      top_sum += store::SameTop(of_full, of_other, vocab);
    }
    kl.push_back(static_cast<float>(kl_sum / static_cast<double>(probes)));
    top.push_back(static_cast<float>(top_sum / static_cast<double>(probes)));
  }
  ExpectNumbers(kl, file.tensor("out/evicpress/quality_kl").f32, "quality by divergence");
  ExpectNumbers(top, file.tensor("out/evicpress/quality_top1").f32, "quality by the likeliest token");
}

PITH_GOLDEN_TEST(Evicpress, evicpress, "out/evicpress/utility") {
  CheckUtilities(file);
  CheckQuality(file);
  CheckPlacement(file, "evicpress", OptionsOf(file));
}

PITH_GOLDEN_TEST(Evicpress, evicpress_full_copy, "out/evicpress_full_copy/config") {
  PlacementOptions options = OptionsOf(file);
  options.has_full_copy = true;
  CheckPlacement(file, "evicpress_full_copy", options);
}

PITH_GOLDEN_TEST(Evicpress, evicpress_per_byte, "out/evicpress_per_byte/config") {
  PlacementOptions options = OptionsOf(file);
  options.per_byte = true;
  CheckPlacement(file, "evicpress_per_byte", options);
}

}  // namespace
}  // namespace pith::testing
