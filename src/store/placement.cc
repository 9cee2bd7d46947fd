#include "store/placement.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

namespace pith::store {

Placement::Placement(PlacementOptions options) : options_(std::move(options)), used_(options_.tiers.size(), 0) {}

template <typename Visit>
void Placement::ForEachConfiguration(const Visit& visit) const {
  for (int tier = 0; tier < static_cast<int>(options_.tiers.size()); ++tier) {
    visit(Configuration{-1, 0, tier});
    for (int ratio = 1; ratio < static_cast<int>(options_.ratios.size()); ++ratio) {
      for (int method = 0; method < options_.num_methods; ++method) visit(Configuration{method, ratio, tier});
    }
  }
}

double Placement::BytesOf(int context, const Configuration& configuration) const {
  return contexts_[static_cast<size_t>(context)].bytes *
         (1 - options_.ratios[static_cast<size_t>(configuration.ratio)]);
}

double Placement::Utility(int context, const Configuration& configuration) const {
  const Context& of = contexts_[static_cast<size_t>(context)];
  const size_t at = static_cast<size_t>(std::max(configuration.method, 0)) * options_.ratios.size() +
                    static_cast<size_t>(configuration.ratio);
  const double quality = configuration.ratio == 0 ? 1 : of.quality[at];
  const double seconds =
      BytesOf(context, configuration) / options_.tiers[static_cast<size_t>(configuration.tier)].bandwidth;
  return (options_.alpha * quality - seconds) * of.frequency;
}

double Placement::total_utility() const {
  double sum = 0;
  for (int i = 0; i < num_contexts(); ++i) sum += Utility(i, config(i));
  return sum;
}

double Placement::total_cost() const {
  double sum = 0;
  for (const Context& context : contexts_) sum += options_.alpha * context.frequency;
  return sum - total_utility();
}

int Placement::Add(double bytes, double frequency, std::span<const double> quality,
                   std::vector<PlacementOperation>& operations) {
  const int number = num_contexts();
  contexts_.push_back({bytes, std::max(frequency, 1.0), {quality.begin(), quality.end()}, {}});
  Configuration best;
  double most = -HUGE_VAL;
  ForEachConfiguration([&](const Configuration& configuration) {  // of equals the faster and less compressed one
    const double utility = Utility(number, configuration);
    if (utility > most) most = utility, best = configuration;
  });
  contexts_.back().at = best;
  used_[static_cast<size_t>(best.tier)] += BytesOf(number, best);
  Fit(best.tier, operations);
  return number;
}

int Placement::AddPlaced(double bytes, double frequency, std::span<const double> quality, const Configuration& at,
                         std::vector<PlacementOperation>& operations) {
  const int number = num_contexts();
  contexts_.push_back({bytes, std::max(frequency, 1.0), {quality.begin(), quality.end()}, at});
  used_[static_cast<size_t>(at.tier)] += BytesOf(number, at);
  Fit(at.tier, operations);
  return number;
}

// What it was compressed by goes on, and gives nothing back.
bool Placement::KeepsItsMethod(const Context& context, const Configuration& to) const {
  const Configuration& from = context.at;
  return to.ratio >= from.ratio && (options_.has_full_copy || from.ratio == 0 || to.method == from.method);
}

void Placement::Rearrange(std::vector<PlacementOperation>& operations) {
  std::vector<Configuration> before;
  used_.assign(used_.size(), 0);
  for (int i = 0; i < num_contexts(); ++i) {
    Context& context = contexts_[static_cast<size_t>(i)];
    const Configuration from = context.at;
    before.push_back(from);
    Configuration best = from;
    ForEachConfiguration([&](const Configuration& to) {
      if (KeepsItsMethod(context, to) && Utility(i, to) > Utility(i, best)) best = to;
    });
    context.at = best;
    used_[static_cast<size_t>(best.tier)] += BytesOf(i, best);
  }
  std::vector<PlacementOperation> fitting;
  for (int tier = 0; tier < static_cast<int>(used_.size()); ++tier) Fit(tier, fitting);
  for (const bool enters : {false, true}) {
    for (int i = 0; i < num_contexts(); ++i) {
      const Configuration& from = before[static_cast<size_t>(i)];
      if (config(i) == from || (config(i).tier < from.tier) != enters) continue;
      operations.push_back({i, from, config(i)});
    }
  }
}

bool Placement::Allows(const Context& context, const Configuration& to, int tier) const {
  if (to.tier < tier || !KeepsItsMethod(context, to)) return false;
  const auto share = [&](const Configuration& of) { return 1 - options_.ratios[static_cast<size_t>(of.ratio)]; };
  return to.tier != tier || share(to) < share(context.at);
}

Placement::Change Placement::BestChange(int tier) const {
  Change best;
  const auto rank = [](const Change& change) {  // of equal losses
    return std::tuple(change.to.tier, change.to.ratio, change.context, change.to.method);
  };
  for (int i = 0; i < num_contexts(); ++i) {
    const Context& context = contexts_[static_cast<size_t>(i)];
    if (context.at.tier != tier) continue;
    const double now = Utility(i, context.at);
    const double bytes = BytesOf(i, context.at);
    ForEachConfiguration([&](const Configuration& to) {
      if (!Allows(context, to, tier)) return;
      Change change{i, to, now - Utility(i, to)};
      if (options_.per_byte) change.loss /= bytes - (to.tier == tier ? BytesOf(i, to) : 0);
      if (best.context < 0 || change.loss < best.loss || (change.loss == best.loss && rank(change) < rank(best))) {
        best = change;
      }
    });
  }
  return best;
}

void Placement::Fit(int tier, std::vector<PlacementOperation>& operations) {
  const double capacity = options_.tiers[static_cast<size_t>(tier)].capacity;
  while (capacity > 0 && used(tier) > capacity) {
    const Change change = BestChange(tier);
    if (change.context < 0) return;  // nothing can be freed: the last tier is full
    Context& context = contexts_[static_cast<size_t>(change.context)];
    operations.push_back({change.context, context.at, change.to});
    used_[static_cast<size_t>(tier)] -= BytesOf(change.context, context.at);
    used_[static_cast<size_t>(change.to.tier)] += BytesOf(change.context, change.to);
    context.at = change.to;
    if (change.to.tier != tier) Fit(change.to.tier, operations);
  }
}

namespace {

double LogSum(std::span<const float> logits) {
  const float most = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit - most));
  return static_cast<double>(most) + std::log(sum);
}

}  // namespace

double MeanDivergence(std::span<const float> full, std::span<const float> compressed, size_t vocab) {
  double sum = 0;
  const size_t tokens = full.size() / vocab;
  for (size_t t = 0; t < tokens; ++t) {
    const std::span<const float> p = full.subspan(t * vocab, vocab), q = compressed.subspan(t * vocab, vocab);
    const double p_sum = LogSum(p), q_sum = LogSum(q);
    for (size_t i = 0; i < vocab; ++i) {
      const double log_p = static_cast<double>(p[i]) - p_sum;
      sum += std::exp(log_p) * (log_p - (static_cast<double>(q[i]) - q_sum));
    }
  }
  return tokens == 0 ? 0 : std::max(sum / static_cast<double>(tokens), 0.0);
}

double SameTop(std::span<const float> full, std::span<const float> compressed, size_t vocab) {
  const size_t tokens = full.size() / vocab;
  size_t same = 0;
  for (size_t t = 0; t < tokens; ++t) {
    const auto top = [&](std::span<const float> logits) {
      const std::span<const float> row = logits.subspan(t * vocab, vocab);
      return std::ranges::max_element(row) - row.begin();
    };
    same += top(full) == top(compressed) ? 1 : 0;
  }
  return tokens == 0 ? 1 : static_cast<double>(same) / static_cast<double>(tokens);
}

}  // namespace pith::store
