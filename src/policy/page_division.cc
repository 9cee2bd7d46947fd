#include "policy/page_division.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <queue>
#include <utility>
#include <vector>

#include "base/parallel.h"
#include "policy/select.h"

namespace pith {
namespace {

// What places cost, in entries of a page.
double CostOf(const Budget& budget, int places) {
  const int rest = places % budget.page_entries;
  return places - rest + rest * budget.rest_cost;
}

double TotalPlaces(const Budget& budget, size_t num_heads) {
  return static_cast<double>(TotalEntries(budget, num_heads) +
                             static_cast<int64_t>(budget.stand_ins) * static_cast<int64_t>(num_heads));
}

int LeastPlaces(const LayerScores& layer, size_t head, const Budget& budget) {
  return std::min(CountPinned(PinnedOf(layer, head)) + budget.stand_ins, static_cast<int>(layer.heads[head].size()));
}

// One head on its way to more pages.
class PagedHead {
 public:
  PagedHead(const LayerScores& layer, size_t head, const Budget& budget, int num_first, HeadBudget* out)
      : budget_(&budget),
        out_(out),
        num_entries_(static_cast<int>(layer.heads[head].size())),
        num_pinned_(CountPinned(PinnedOf(layer, head))),
        places_(LeastPlaces(layer, head, budget)) {
    const std::span<const uint8_t> pinned = PinnedOf(layer, head);
    ptrdiff_t first = 0;
    for (size_t i = 0; i < layer.heads[head].size(); ++i) {
      if (!pinned.empty() && pinned[i] != 0) continue;
      scores_.push_back(std::max(layer.heads[head][i], 0.0F));
      first += static_cast<int>(i) < num_first;
    }
    std::sort(scores_.begin() + first, scores_.end(), std::greater<>());
  }

  bool is_whole() const { return places_ == num_entries_; }
  double cost() const { return CostOf(*budget_, places_); }
  double next_cost() const { return CostOf(*budget_, NextPlaces()) - cost(); }
  // By what the next page is better than nothing, for what it takes: less than nothing where it holds a long rest.
  double next_worth() const {
    if (next_cost() <= 0) return std::numeric_limits<double>::infinity();
    const auto from = scores_.begin() + (Kept(places_) - num_pinned_);
    const auto end = scores_.begin() + (Kept(NextPlaces()) - num_pinned_);
    double sum = 0;
    for (auto score = from; score != end; ++score) sum += static_cast<double>(*score);
    return sum / next_cost();
  }
  void Grow() { places_ = NextPlaces(); }
  void Finish() const {
    out_->keep = Kept(places_);
    out_->floor = std::min(out_->floor, out_->keep);
  }

 private:
  int NextPlaces() const {
    return std::min((places_ / budget_->page_entries + 1) * budget_->page_entries, num_entries_);
  }
  // Nothing stands in where nothing goes.
  int Kept(int places) const {
    return places == num_entries_ ? places : std::max(places - budget_->stand_ins, num_pinned_);
  }

  const Budget* budget_;
  HeadBudget* out_;
  int num_entries_, num_pinned_, places_;
  std::vector<float> scores_;  // of what is not pinned, in the order in which it comes
};

}  // namespace

void DividePages(std::span<const LayerScores> layers, const Budget& budget, const FirstEntries& first,
                 Allocation& out) {
  std::vector<std::pair<size_t, size_t>> places;
  for (size_t l = 0; l < layers.size(); ++l) {
    for (size_t h = 0; h < layers[l].heads.size(); ++h) places.emplace_back(l, h);
  }
  std::vector<std::unique_ptr<PagedHead>> heads(places.size());
  ParallelFor(places.size(), [&](size_t i) {
    const auto [l, h] = places[i];
    heads[i] = std::make_unique<PagedHead>(layers[l], h, budget, first(layers[l], h), &out[l][h]);
  });
  struct Offer {
    double worth;
    size_t head;
    bool operator<(const Offer& other) const { return worth != other.worth ? worth < other.worth : head > other.head; }
  };
  std::priority_queue<Offer> offers;
  double spare = TotalPlaces(budget, heads.size());
  for (size_t i = 0; i < heads.size(); ++i) {
    spare -= heads[i]->cost();
    if (!heads[i]->is_whole()) offers.push({heads[i]->next_worth(), i});
  }
  while (!offers.empty()) {
    PagedHead& head = *heads[offers.top().head];
    const size_t i = offers.top().head;
    offers.pop();
    if (head.next_cost() > std::max(spare, 0.0)) continue;
    spare -= head.next_cost();
    head.Grow();
    if (!head.is_whole()) offers.push({head.next_worth(), i});
  }
  for (const auto& head : heads) head->Finish();
}

bool AreInPages(std::span<const LayerScores> layers, const Budget& budget, const Allocation& budgets) {
  double cost = 0, least_cost = 0;
  size_t num_heads = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    num_heads += layers[l].heads.size();
    for (size_t h = 0; h < layers[l].heads.size(); ++h) {
      const int n = static_cast<int>(layers[l].heads[h].size()), least = LeastPlaces(layers[l], h, budget);
      const int held = std::min(budgets[l][h].keep + budget.stand_ins, n);
      if (held != n && held != least && held % budget.page_entries != 0) return false;
      cost += CostOf(budget, held);
      least_cost += CostOf(budget, least);
    }
  }
  return cost <= std::max(TotalPlaces(budget, num_heads), least_cost) + 1e-6;
}

}  // namespace pith
