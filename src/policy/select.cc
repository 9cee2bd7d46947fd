#include "policy/select.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace pith {
namespace {

float At(std::span<const float> values, size_t i) { return values.empty() ? 0.0F : values[i]; }

// A total order of one head's entries, best first.
struct Better {
  std::span<const float> scores;
  std::span<const float> ties;
  bool operator()(int32_t a, int32_t b) const {
    const auto i = static_cast<size_t>(a);
    const auto j = static_cast<size_t>(b);
    if (scores[i] != scores[j]) return scores[i] > scores[j];
    if (At(ties, i) != At(ties, j)) return At(ties, i) > At(ties, j);
    return a > b;
  }
};

std::vector<int32_t> Unpinned(size_t n, std::span<const uint8_t> pinned) {
  std::vector<int32_t> order;
  order.reserve(n);
  for (size_t i = 0; i < n; ++i) {
    if (pinned.empty() || pinned[i] == 0) order.push_back(static_cast<int32_t>(i));
  }
  return order;
}

// An entry that competes with those of other heads.
struct Candidate {
  float score;
  float tie;
  int32_t age;    // 0 = newest of its head
  uint32_t slot;  // layer * heads + head, in order
};

bool Wins(const Candidate& a, const Candidate& b) {
  if (a.score != b.score) return a.score > b.score;
  if (a.tie != b.tie) return a.tie > b.tie;
  if (a.age != b.age) return a.age < b.age;
  return a.slot < b.slot;
}

}  // namespace

int64_t TotalEntries(const Budget& budget, size_t num_heads) {
  const auto heads = static_cast<int64_t>(num_heads);
  if (budget.keep_exact > 0) {
    return static_cast<int64_t>(budget.keep_exact * static_cast<double>(heads));
  }
  return std::max<int64_t>(budget.keep, 0) * heads;
}

double KeepFraction(const Budget& budget, int num_entries) {
  if (num_entries <= 0) return 1;
  if (budget.keep_exact > 0 && budget.keep_fraction < 1) return budget.keep_fraction;
  const double exact = static_cast<double>(budget.keep) / num_entries;
  return std::clamp(std::min(budget.keep_fraction, exact), 0.0, 1.0);
}

int CountPinned(std::span<const uint8_t> pinned) {
  return static_cast<int>(std::count_if(pinned.begin(), pinned.end(), [](uint8_t p) { return p != 0; }));
}

int CompetingBudget(const HeadRank& rank) { return std::max(0, rank.budget.keep - CountPinned(rank.pinned())); }

void FitBudgets(std::span<const LayerScores> layers, int64_t limit, Allocation& budgets) {
  struct Slack {
    int* keep;
    int least;
  };
  std::vector<Slack> slack;
  int64_t total = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    for (size_t h = 0; h < layers[l].heads.size(); ++h) {
      const int n = static_cast<int>(layers[l].heads[h].size());
      const int least = CountPinned(PinnedOf(layers[l], h));
      HeadBudget& b = budgets[l][h];
      b.keep = std::max(std::clamp(b.keep, 0, n), least);
      b.floor = std::clamp(b.floor, 0, b.keep);
      total += b.keep;
      slack.push_back({&b.keep, least});
    }
  }
  // Lower a common ceiling on what heads hold beside their pinned entries until the total fits.
  while (total > limit) {
    int most = 0;
    int next = 0;
    int64_t count = 0;
    for (const Slack& s : slack) {
      const int extra = *s.keep - s.least;
      if (extra > most) {
        next = most;
        most = extra;
        count = 1;
      } else if (extra == most) {
        ++count;
      } else {
        next = std::max(next, extra);
      }
    }
    if (most == 0) return;  // pinned entries alone are too many
    const int64_t excess = total - limit;
    const int64_t step = std::max<int64_t>(1, std::min<int64_t>(most - next, excess / count));
    for (const Slack& s : slack) {
      if (*s.keep - s.least != most || total <= limit) continue;
      *s.keep -= static_cast<int>(step);
      total -= step;
    }
  }
}

void RoundToPages(std::span<const LayerScores> layers, const Budget& budget, Allocation& budgets) {
  struct Rest {
    int entries;
    HeadBudget* budget;
    int most, least;
  };
  const int page = budget.page_entries;
  std::vector<Rest> rests;
  double spare = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    for (size_t h = 0; h < layers[l].heads.size(); ++h) {
      HeadBudget& b = budgets[l][h];
      const int rest = b.keep % page, pinned = CountPinned(PinnedOf(layers[l], h));
      const int stays = std::max(b.keep - rest, pinned);
      spare += b.keep - stays - stays % page * (budget.rest_cost - 1);
      b.keep = stays;
      b.floor = std::min(b.floor, b.keep);
      rests.push_back({rest, &b, static_cast<int>(layers[l].heads[h].size()), pinned});
    }
  }
  std::stable_sort(rests.begin(), rests.end(), [](const Rest& a, const Rest& b) { return a.entries > b.entries; });
  for (const Rest& rest : rests) {
    if (spare < page) break;
    if (rest.budget->keep % page != 0 || rest.budget->keep + page > rest.most) continue;
    rest.budget->keep += page;
    spare -= page;
  }
  // What pinned rests cost more, from those that have more than a page.
  for (auto rest = rests.rbegin(); rest != rests.rend() && spare < 0; ++rest) {
    if (rest->budget->keep % page != 0 || rest->budget->keep - page < std::max(rest->least, page)) continue;
    rest->budget->keep -= page;
    rest->budget->floor = std::min(rest->budget->floor, rest->budget->keep);
    spare += page;
  }
}

std::vector<int32_t> SelectTop(std::span<const float> scores, std::span<const float> ties,
                               std::span<const uint8_t> pinned, int keep) {
  const size_t n = scores.size();
  PITH_DCHECK(pinned.empty() || pinned.size() == n);
  std::vector<int32_t> kept = Unpinned(n, pinned);
  const size_t num_pinned = n - kept.size();
  const size_t wanted = keep < 0 ? 0 : static_cast<size_t>(keep);
  const size_t room = std::min(wanted > num_pinned ? wanted - num_pinned : 0, kept.size());
  if (room < kept.size()) {
    std::nth_element(kept.begin(), kept.begin() + static_cast<ptrdiff_t>(room), kept.end(), Better{scores, ties});
    kept.resize(room);
  }
  for (size_t i = 0; i < n && !pinned.empty(); ++i) {
    if (pinned[i] != 0) kept.push_back(static_cast<int32_t>(i));
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

void AllocatePooled(std::span<const LayerScores> layers, int64_t total, double floor, Allocation& out) {
  std::vector<Candidate> pool;
  int64_t left = total;
  uint32_t slot = 0;
  std::vector<HeadBudget*> heads;
  for (size_t l = 0; l < layers.size(); ++l) {
    for (size_t h = 0; h < layers[l].heads.size(); ++h, ++slot) {
      const std::span<const float> scores = layers[l].heads[h];
      const std::span<const float> ties = TiesOf(layers[l], h);
      const std::span<const uint8_t> pinned = PinnedOf(layers[l], h);
      const int num_pinned = CountPinned(pinned);
      std::vector<int32_t> order = Unpinned(scores.size(), pinned);
      // Pinned entries are the best of their head, so they are the first that the floor covers.
      const auto safe = std::clamp(static_cast<int>(floor) - num_pinned, 0, static_cast<int>(order.size()));
      if (safe > 0) {
        std::nth_element(order.begin(), order.begin() + (safe - 1), order.end(), Better{scores, ties});
      }
      out[l][h] = {num_pinned + safe, num_pinned + safe};
      heads.push_back(&out[l][h]);
      left -= out[l][h].keep;
      for (size_t i = static_cast<size_t>(safe); i < order.size(); ++i) {
        const auto j = static_cast<size_t>(order[i]);
        pool.push_back({scores[j], At(ties, j), static_cast<int32_t>(scores.size()) - 1 - order[i], slot});
      }
    }
  }
  const auto winners = static_cast<size_t>(std::clamp<int64_t>(left, 0, static_cast<int64_t>(pool.size())));
  if (winners < pool.size()) {
    std::nth_element(pool.begin(), pool.begin() + static_cast<ptrdiff_t>(winners), pool.end(), Wins);
  }
  for (size_t i = 0; i < winners; ++i) ++heads[pool[i].slot]->keep;
}

void ProtectNewest(std::span<float> scores, int w) {
  const size_t count = std::min(scores.size(), static_cast<size_t>(std::max(w, 0)));
  std::fill(scores.end() - static_cast<ptrdiff_t>(count), scores.end(), kProtected);
}

void MakePositive(LayerScores& scores) {
  float most = -kProtected;
  float least = 0;
  for (const auto& head : scores.heads) {
    for (float score : head) {
      if (score == kProtected) continue;
      most = std::max(most, score);
      least = std::min(least, score);
    }
  }
  if (least >= 0) return;
  for (auto& head : scores.heads) {
    for (float& score : head) {
      if (score != kProtected) score = std::exp(score - most);
    }
  }
}

namespace {

// Elements that are pooled side by side, so that the compiler may keep them in vectors.
constexpr int64_t kAbreast = 8;

float PoolOne(std::span<const float> in, int64_t first, int64_t last, int64_t width, bool max) {
  const int64_t begin = std::max<int64_t>(0, first), end = std::min(static_cast<int64_t>(in.size()), last + 1);
  if (max) return *std::max_element(in.begin() + begin, in.begin() + end);
  float sum = 0;
  for (int64_t j = begin; j < end; ++j) sum += in[static_cast<size_t>(j)];
  return sum / static_cast<float>(width);
}

void PoolAbreast(const float* in, int64_t width, bool max, float* out) {
  float values[kAbreast] = {};
  if (max) std::copy_n(in, kAbreast, values);
  for (int64_t k = 0; k < width; ++k) {
    for (int64_t i = 0; i < kAbreast; ++i) values[i] = max ? std::max(values[i], in[k + i]) : values[i] + in[k + i];
  }
  for (int64_t i = 0; i < kAbreast; ++i) out[i] = max ? values[i] : values[i] / static_cast<float>(width);
}

}  // namespace

void Pool(std::span<const float> in, const Pooling& pooling, std::span<float> out) {
  const auto n = static_cast<int64_t>(in.size());
  const int64_t width = std::max(pooling.width, 1);
  const int64_t before = width / 2;
  const int64_t after = width - 1 - before;
  for (int64_t i = 0; i < n;) {
    if (i >= before && i + after + kAbreast <= n) {
      PoolAbreast(in.data() + i - before, width, pooling.max, out.data() + i);
      i += kAbreast;
      continue;
    }
    out[static_cast<size_t>(i)] = PoolOne(in, i - before, i + after, width, pooling.max);
    ++i;
  }
}

double SumOf(std::span<const float> values) {
  double sums[4] = {};
  size_t i = 0;
  for (; i + 4 <= values.size(); i += 4) {
    for (size_t k = 0; k < 4; ++k) sums[k] += static_cast<double>(values[i + k]);
  }
  for (; i < values.size(); ++i) sums[0] += static_cast<double>(values[i]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

void ColumnVariances(const WindowProbs& probs, int g, std::vector<double>& mean, std::vector<double>& squares) {
  const auto columns = static_cast<size_t>(probs.columns());
  mean.assign(columns, 0);
  squares.assign(columns, 0);
  for (int t = 0; t < probs.rows(); ++t) {
    const float* row = probs.row(g, t);
    for (size_t j = 0; j < columns; ++j) mean[j] += static_cast<double>(row[j]);
  }
  for (double& m : mean) m /= probs.rows();
  for (int t = 0; t < probs.rows(); ++t) {
    const float* row = probs.row(g, t);
    for (size_t j = 0; j < columns; ++j) {
      const double d = static_cast<double>(row[j]) - mean[j];
      squares[j] += d * d;
    }
  }
}

WindowProbs::WindowProbs(const LayerInputs& layer, const HeadInputs& head, int rows, bool all_columns)
    : data_(head.window_probs),
      group_(layer.group),
      present_(head.window_probs == nullptr ? 0 : layer.window),
      rows_(std::min(rows, present_)),
      columns_(all_columns ? head.num_entries : std::max(0, head.num_entries - std::max(rows_, 1))),
      num_entries_(head.num_entries) {}

}  // namespace pith
