#include "policy/learn/layer_budgets.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/json_text.h"
#include "policy/words.h"

namespace pith {
namespace {

constexpr uintmax_t kLargestFile = uintmax_t{1} << 20;

// Weights of the authors' code: min-max, turned round, sharpened. Empty where all are equal.
std::vector<double> CodeWeights(std::span<const double> similarities, double alpha) {
  const auto [least, most] = std::minmax_element(similarities.begin(), similarities.end());
  if (similarities.empty() || !(*most > *least)) return {};
  std::vector<double> weights;
  for (double s : similarities) weights.push_back(std::pow(1 - (s - *least) / (*most - *least), alpha));
  return weights;
}

}  // namespace

std::vector<int> ShareByWeights(int64_t total, std::span<const double> weights, int least) {
  const size_t count = weights.size();
  std::vector<double> weight(weights.begin(), weights.end());
  const double all = std::accumulate(weight.begin(), weight.end(), 0.0);
  if (!(all > 0) || !std::isfinite(all)) weight.assign(count, 1.0);
  std::vector<int> budgets(count, 0);
  std::vector<bool> fixed(count, false);
  int64_t left = total;
  double sum = 0;
  for (bool changed = true; changed;) {
    changed = false;
    sum = 0;
    for (size_t l = 0; l < count; ++l) sum += fixed[l] ? 0 : weight[l];
    const int64_t shared = left;
    for (size_t l = 0; l < count; ++l) {
      if (fixed[l] || (sum > 0 && static_cast<double>(shared) * weight[l] / sum >= least)) continue;
      fixed[l] = changed = true;
      budgets[l] = least;
      left -= least;
    }
  }
  std::vector<std::pair<double, size_t>> fractions;
  int64_t missing = left;
  for (size_t l = 0; l < count; ++l) {
    if (fixed[l]) continue;
    const double share = static_cast<double>(left) * weight[l] / sum;
    budgets[l] = static_cast<int>(share);
    missing -= budgets[l];
    fractions.emplace_back(budgets[l] - share, l);  // largest fraction first, then the lower layer
  }
  std::sort(fractions.begin(), fractions.end());
  for (size_t i = 0; i < fractions.size() && missing > 0; ++i, --missing) ++budgets[fractions[i].second];
  return budgets;
}

std::vector<int> EpiCacheBudgets(std::span<const double> similarities, int mean, double alpha, EpiCacheForm form) {
  const auto count = static_cast<int64_t>(similarities.size());
  if (form == EpiCacheForm::kPaper) {
    std::vector<double> weights;
    for (double s : similarities) weights.push_back(std::pow(std::max(0.0, 1 - s), alpha));
    return ShareByWeights(count * mean, weights, 0);
  }
  const std::vector<double> weights = CodeWeights(similarities, alpha);
  if (weights.empty()) return std::vector<int>(similarities.size(), mean);
  const int least = std::max(1, mean / 4);
  if (form == EpiCacheForm::kRescaled) return ShareByWeights(count * mean, weights, std::min(least, mean));
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<int> budgets;
  for (double w : weights) {
    budgets.push_back(std::max(static_cast<int>(static_cast<double>(count * mean) * w / sum), least));
  }
  return budgets;
}

std::vector<double> EpiCachePaperBudgets(std::span<const double> similarities, double mean, double alpha) {
  std::vector<double> budgets;
  for (double s : similarities) budgets.push_back(std::pow(std::max(0.0, 1 - s), alpha));
  const double sum = std::accumulate(budgets.begin(), budgets.end(), 0.0);
  for (double& b : budgets) b = sum > 0 ? b / sum * mean * static_cast<double>(similarities.size()) : mean;
  return budgets;
}

Result<std::vector<double>> ReadLayerNumbers(const std::string& path, std::string_view key, double least) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return IoError(fmt::format("{} is no file", Printable(path)));
  const uintmax_t size = std::filesystem::file_size(path, error);
  std::ifstream in(path, std::ios::binary);
  if (error || !in) return IoError(fmt::format("{} cannot be read", Printable(path)));
  const std::string form = fmt::format("{{\"{}\": [one number per layer]}}", key);
  if (size > kLargestFile) return Corrupt(fmt::format("{} is too large to be {}", Printable(path), form));
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  const auto json = JsonOf(text);
  if (!json.is_object() || !json.contains(key) || !json[std::string(key)].is_array()) {
    return Corrupt(fmt::format("{} is not of the form {}", Printable(path), form));
  }
  std::vector<double> numbers;
  for (const auto& number : json[std::string(key)]) {
    const double value = number.is_number() ? number.get<double>() : std::nan("");
    if (!std::isfinite(value) || value < least) {
      return Corrupt(
          fmt::format("{}: \"{}\"[{}] is no number of at least {}", Printable(path), key, numbers.size(), least));
    }
    numbers.push_back(value);
  }
  if (numbers.empty()) return Corrupt(fmt::format("{}: \"{}\" is empty", Printable(path), key));
  return numbers;
}

}  // namespace pith
