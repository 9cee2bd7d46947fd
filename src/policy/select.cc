#include "policy/select.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "kernels/pooling.h"

namespace pith {
namespace {

float At(std::span<const float> values, size_t i) { return values.empty() ? 0.0F : values[i]; }

// An entry that competes, as plain numbers: choosing looks at nothing else. The smallest wins.
struct Candidate {
  uint64_t score_and_tie;
  uint32_t age;   // 0 = newest of its head
  uint32_t slot;  // of its head, in order

  bool operator<(const Candidate& other) const {
    if (score_and_tie != other.score_and_tie) return score_and_tie < other.score_and_tie;
    return (uint64_t{age} << 32 | slot) < (uint64_t{other.age} << 32 | other.slot);
  }
};

// Adds what is not pinned of one head.
void AddCandidates(std::span<const float> scores, std::span<const float> ties, std::span<const uint8_t> pinned,
                   uint32_t slot, std::vector<Candidate>& out) {
  const size_t n = scores.size();
  for (size_t i = 0; i < n; ++i) {
    if (!pinned.empty() && pinned[i] != 0) continue;
    out.push_back({uint64_t{Falling(scores[i])} << 32 | Falling(At(ties, i)), static_cast<uint32_t>(n - 1 - i), slot});
  }
}

}  // namespace

uint32_t Falling(float number) {
  const auto bits = std::bit_cast<uint32_t>(number + 0.0F);
  return (bits >> 31) != 0 ? bits : ~(bits | 0x80000000U);
}

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

namespace {

// A head on its way to whole pages, with the entries that stand in for what goes.
struct PagedHead {
  HeadBudget* budget;
  int entries, most, least;
  double worth, cost;  // of one more page: wanted entries that it would hold, beside what it takes
};

}  // namespace

double RoundToPages(std::span<const LayerScores> layers, const Budget& budget, double total, bool overdraws,
                    Allocation& budgets) {
  const int page = budget.page_entries;
  const auto cost_of = [&](int entries) { return entries - entries % page + entries % page * budget.rest_cost; };
  std::vector<PagedHead> heads;
  double spare = total;
  for (size_t l = 0; l < layers.size(); ++l) {
    for (size_t h = 0; h < layers[l].heads.size(); ++h) {
      const int most = static_cast<int>(layers[l].heads[h].size());
      const int wanted = std::min(budgets[l][h].keep + budget.stand_ins, most);
      const int least = std::min(CountPinned(PinnedOf(layers[l], h)) + budget.stand_ins, most);
      const int stays = std::max(wanted - wanted % page, least), more = page - stays % page;
      const double cost = cost_of(stays + more) - cost_of(stays);
      spare -= cost_of(stays);
      heads.push_back({&budgets[l][h], stays, most, least, (wanted - stays + 1) / std::max(cost, 1e-3), cost});
    }
  }
  if (spare < 0 && !overdraws) return -spare;
  std::stable_sort(heads.begin(), heads.end(),
                   [](const PagedHead& a, const PagedHead& b) { return a.worth > b.worth; });
  for (PagedHead& head : heads) {
    const int more = page - head.entries % page;
    if (spare < head.cost || head.entries + more > head.most) continue;
    head.entries += more;
    spare -= head.cost;
  }
  for (bool any = true; any && spare < 0;) {
    any = false;
    for (auto head = heads.rbegin(); head != heads.rend() && spare < 0; ++head) {
      if (head->entries % page != 0 || head->entries - page < std::max(head->least, page)) continue;
      head->entries -= page;
      spare += page;
      any = true;
    }
  }
  for (const PagedHead& head : heads) {
    head.budget->keep = head.entries == head.most ? head.most : head.entries - budget.stand_ins;
    head.budget->floor = std::min(head.budget->floor, head.budget->keep);
  }
  return 0;
}

void RoundRests(std::span<const LayerScores> layers, int page_entries, int64_t total, Allocation& budgets) {
  struct Rounded {
    HeadBudget* budget;
    int lost, most, least;
  };
  std::vector<Rounded> heads;
  int64_t spare = total;
  for (size_t l = 0; l < layers.size(); ++l) {
    for (size_t h = 0; h < layers[l].heads.size(); ++h) {
      HeadBudget& budget = budgets[l][h];
      const int most = static_cast<int>(layers[l].heads[h].size()), beyond = (most - budget.keep) % page_entries;
      const int fewer = beyond == 0 ? budget.keep : budget.keep - (page_entries - beyond);
      const int least = CountPinned(PinnedOf(layers[l], h));
      const int keep = fewer >= least ? fewer : budget.keep + beyond;
      heads.push_back({&budget, std::max(0, budget.keep - keep), most, least});
      budget.keep = keep;
      spare -= keep;
    }
  }
  std::stable_sort(heads.begin(), heads.end(), [](const Rounded& a, const Rounded& b) { return a.lost > b.lost; });
  for (const Rounded& head : heads) {
    if (head.lost > 0 && spare >= page_entries && head.budget->keep + page_entries <= head.most) {
      head.budget->keep += page_entries;
      spare -= page_entries;
    }
  }
  // What heads of few entries must hold more is taken from those of most.
  const auto spares = [page_entries](const Rounded& head) {
    return head.budget->keep - page_entries >= head.least ? head.budget->keep : -1;
  };
  while (spare < 0 && !heads.empty()) {
    const auto head = std::ranges::max_element(heads, {}, spares);
    if (spares(*head) < 0) break;
    head->budget->keep -= page_entries;
    spare += page_entries;
  }
  for (const Rounded& head : heads) head.budget->floor = std::min(head.budget->floor, head.budget->keep);
}

std::vector<int32_t> NotKept(int32_t first, int32_t end, std::span<const int32_t> kept) {
  std::vector<int32_t> others;
  auto next = std::ranges::lower_bound(kept, first);
  for (int32_t i = first; i < end; ++i) {
    if (next != kept.end() && *next == i) {
      ++next;
    } else {
      others.push_back(i);
    }
  }
  return others;
}

std::vector<int32_t> SelectTop(std::span<const float> scores, std::span<const float> ties,
                               std::span<const uint8_t> pinned, int keep) {
  const size_t n = scores.size();
  PITH_DCHECK(pinned.empty() || pinned.size() == n);
  std::vector<Candidate> candidates;
  candidates.reserve(n);
  AddCandidates(scores, ties, pinned, 0, candidates);
  const size_t num_pinned = n - candidates.size();
  const size_t wanted = keep < 0 ? 0 : static_cast<size_t>(keep);
  const size_t room = std::min(wanted > num_pinned ? wanted - num_pinned : 0, candidates.size());
  if (room < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<ptrdiff_t>(room), candidates.end());
  }
  std::vector<uint8_t> stays(n, 0);
  for (size_t i = 0; i < room; ++i) stays[n - 1 - candidates[i].age] = 1;
  std::vector<int32_t> kept;
  kept.reserve(room + num_pinned);
  for (size_t i = 0; i < n; ++i) {
    if (stays[i] != 0 || (!pinned.empty() && pinned[i] != 0)) kept.push_back(static_cast<int32_t>(i));
  }
  return kept;
}

void AllocatePooled(std::span<const LayerScores> layers, int64_t total, double floor, Allocation& out) {
  std::vector<Candidate> pool;
  int64_t left = total;
  std::vector<HeadBudget*> heads;
  for (size_t l = 0; l < layers.size(); ++l) {
    for (size_t h = 0; h < layers[l].heads.size(); ++h) {
      const std::span<const uint8_t> pinned = PinnedOf(layers[l], h);
      const size_t before = pool.size();
      AddCandidates(layers[l].heads[h], TiesOf(layers[l], h), pinned, static_cast<uint32_t>(heads.size()), pool);
      const int num_pinned = CountPinned(pinned);
      // Pinned entries are the best of their head, so they are the first that the floor covers.
      const auto safe = std::clamp(static_cast<int>(floor) - num_pinned, 0, static_cast<int>(pool.size() - before));
      if (safe > 0) {
        const auto own = pool.begin() + static_cast<ptrdiff_t>(before);
        std::nth_element(own, own + (safe - 1), pool.end());
        pool.erase(own, own + safe);
      }
      out[l][h] = {num_pinned + safe, num_pinned + safe};
      heads.push_back(&out[l][h]);
      left -= out[l][h].keep;
    }
  }
  const auto winners = static_cast<size_t>(std::clamp<int64_t>(left, 0, static_cast<int64_t>(pool.size())));
  if (winners < pool.size()) std::nth_element(pool.begin(), pool.begin() + static_cast<ptrdiff_t>(winners), pool.end());
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

void Pool(std::span<const float> in, const Pooling& pooling, std::span<float> out) {
  const int64_t width = std::max(pooling.width, 1), before = width / 2;
  kernels::PoolRow(in, before, width - 1 - before, pooling.max, out);
}

double SumOf(std::span<const float> values) { return kernels::SumRow(values); }

void ColumnVariances(const WindowProbs& probs, int g, std::vector<double>& mean, std::vector<double>& squares) {
  const auto columns = static_cast<size_t>(probs.columns());
  mean.resize(columns);
  squares.resize(columns);
  kernels::ColumnMoments(probs.row(g, 0), probs.row_stride(), probs.rows(), columns, mean.data(), squares.data());
}

WindowProbs::WindowProbs(const LayerInputs& layer, const HeadInputs& head, int rows, bool all_columns)
    : data_(head.window_probs),
      group_(layer.group),
      present_(head.window_probs == nullptr ? 0 : layer.window),
      rows_(std::min(rows, present_)),
      columns_(all_columns ? head.num_entries : std::max(0, head.num_entries - std::max(rows_, 1))),
      num_entries_(head.num_entries) {}

}  // namespace pith
