#include "policy/act/merge.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "base/aligned.h"
#include "base/parallel.h"
#include "kernels/row_table.h"
#include "policy/stage.h"

namespace pith {
namespace {

// Sums in several lanes, which compilers turn into vectors.
void Normalise(const float* row, int dim, float* unit) {
  constexpr int kLanes = 8;
  double sums[kLanes] = {};
  int c = 0;
  for (; c + kLanes <= dim; c += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      sums[lane] += static_cast<double>(row[c + lane]) * static_cast<double>(row[c + lane]);
    }
  }
  double sum = std::accumulate(sums, sums + kLanes, 0.0);
  for (; c < dim; ++c) sum += static_cast<double>(row[c]) * static_cast<double>(row[c]);
  const double factor = 1 / (std::sqrt(sum) + 1e-12);  // the reference has no guard against zero keys
  for (int d = 0; d < dim; ++d) unit[d] = static_cast<float>(row[d] * factor);
}

// Adds weight * row(e) to row(c) for one kind of rows, [n, dim].
void Add(float* rows, int dim, int32_t c, int32_t e, double weight) {
  float* to = rows + static_cast<ptrdiff_t>(c) * dim;
  const float* from = rows + static_cast<ptrdiff_t>(e) * dim;
  for (int d = 0; d < dim; ++d) to[d] += static_cast<float>(weight * from[d]);
}

void Scale(float* rows, int dim, int32_t c, double factor) {
  float* row = rows + static_cast<ptrdiff_t>(c) * dim;
  for (int d = 0; d < dim; ++d) row[d] = static_cast<float>(row[d] * factor);
}

class Merge final : public Action {
 public:
  explicit Merge(const MergeOptions& options) : options_(options) {}
  const MergeOptions* merge() const override { return &options_; }

 private:
  MergeOptions options_;
};

}  // namespace

void FindNearest(const float* keys, int num_entries, int dim, std::span<const int32_t> kept, MergePlan& plan) {
  const auto width = static_cast<size_t>(dim);
  const int num_kept = static_cast<int>(kept.size());
  plan.evicted.clear();
  for (int32_t i = 0, k = 0; i < num_entries; ++i) {
    if (k < num_kept && kept[static_cast<size_t>(k)] == i) {
      ++k;
    } else {
      plan.evicted.push_back(i);
    }
  }
  plan.target.assign(plan.evicted.size(), kept.front());
  plan.similarity.assign(plan.evicted.size(), -INFINITY);
  const auto table = AllocateAligned<float>(kernels::TableFloats(num_kept, dim));
  // Rows that one task normalises, or compares.
  constexpr size_t kStretch = 128, kAtOnce = 12;
  ParallelStretches(kept.size(), kStretch, [&](size_t begin, size_t end) {
    std::vector<float> unit(width);
    for (size_t k = begin; k < end; ++k) {
      Normalise(keys + static_cast<size_t>(kept[k]) * width, dim, unit.data());
      kernels::StoreRow(unit.data(), dim, static_cast<int>(k), table.get());
    }
  });
  ParallelStretches(plan.evicted.size(), kAtOnce, [&](size_t first, size_t end) {
    const size_t count = end - first;
    std::vector<float> queries(count * width), cosines(count * kept.size());
    for (size_t r = 0; r < count; ++r) {
      Normalise(keys + static_cast<size_t>(plan.evicted[first + r]) * width, dim, queries.data() + r * width);
    }
    kernels::ScoreTable(queries.data(), static_cast<int>(count), dim, table.get(), num_kept, cosines.data(),
                        kept.size());
    for (size_t r = 0; r < count; ++r) {
      const auto row = cosines.begin() + static_cast<ptrdiff_t>(r * kept.size());
      const auto best = std::max_element(row, row + num_kept);
      plan.target[first + r] = kept[static_cast<size_t>(best - row)];
      plan.similarity[first + r] = *best;
    }
  });
}

double NextThreshold(const MergeOptions& options, double before, std::span<const MergePlan> heads) {
  double sum = 0;
  size_t count = 0;
  for (const MergePlan& plan : heads) {
    for (const float u : plan.similarity) sum += u;
    count += plan.similarity.size();
  }
  if (count == 0) return before;
  const double mean = sum / static_cast<double>(count);
  return std::isnan(before) ? mean : options.alpha * before + options.beta * mean;
}

void ChooseMerged(const MergeOptions& options, double threshold, std::span<MergePlan> heads) {
  const size_t slots = heads.empty() ? 0 : heads.front().evicted.size();
  const bool by_slot = options.by_slot && std::all_of(heads.begin(), heads.end(), [slots](const MergePlan& plan) {
    return plan.evicted.size() == slots;
  });
  for (MergePlan& plan : heads) {
    plan.merged.resize(plan.evicted.size());
    for (size_t i = 0; i < plan.evicted.size(); ++i) {
      double u = plan.similarity[i];
      if (by_slot) {
        u = 0;
        for (const MergePlan& other : heads) u += other.similarity[i] / static_cast<double>(heads.size());
      }
      plan.merged[i] = u >= threshold;
    }
  }
}

void MergeEntries(const MergeOptions& options, const MergePlan& plan, float* keys, int key_dim, float* values,
                  int value_dim, std::vector<int32_t>& changed) {
  std::vector<size_t> merged;
  for (size_t i = 0; i < plan.evicted.size(); ++i) {
    if (plan.merged[i] != 0) merged.push_back(i);
  }
  std::stable_sort(merged.begin(), merged.end(), [&](size_t a, size_t b) { return plan.target[a] < plan.target[b]; });
  changed.clear();
  for (size_t at = 0; at < merged.size();) {
    const int32_t c = plan.target[merged[at]];
    // Both forms divide by the sum of weights that they would have at u = 1 (code) or really have (paper).
    double total = options.weigh_exp ? std::exp(1.0) : 1;
    if (options.weigh_exp) Scale(keys, key_dim, c, total), Scale(values, value_dim, c, total);
    for (; at < merged.size() && plan.target[merged[at]] == c; ++at) {
      const double u = plan.similarity[merged[at]];
      const double weight = options.weigh_exp ? std::exp(u) : u;
      Add(keys, key_dim, c, plan.evicted[merged[at]], weight);
      Add(values, value_dim, c, plan.evicted[merged[at]], weight);
      total += options.weigh_exp ? weight : 1;
    }
    Scale(keys, key_dim, c, 1 / total);
    Scale(values, value_dim, c, 1 / total);
    changed.push_back(c);
  }
}

StageInfo<Action> MergeStage() {
  return {"entries that do not stay are added to the kept entry with the most similar key, if it is similar enough",
          {RealParam("alpha", 0.5, 0, 1, "weight of the layer's threshold so far"),
           RealParam("beta", 0.5, 0, 1, "weight of the mean similarity of the entries that go"),
           ChoiceParam("weights", "code|paper", "u / (1 + count) as the authors' code, or the paper's convex e^u")},
          [](const Params& p) -> std::unique_ptr<Action> {
            return std::make_unique<Merge>(MergeOptions{.alpha = p.Real("alpha"),
                                                        .beta = p.Real("beta"),
                                                        .weigh_exp = p.Choice("weights") == 1});
          },
          /*num_sinks=*/4};
}

}  // namespace pith
