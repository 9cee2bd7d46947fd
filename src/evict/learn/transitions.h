// What became of decisions, drawn by how much there is to learn from each (Schaul et al. 2016).
#ifndef PITH_EVICT_LEARN_TRANSITIONS_H_
#define PITH_EVICT_LEARN_TRANSITIONS_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "evict/learn/coldrl.h"
#include "evict/random.h"

namespace pith::evict {

struct Transition {
  float state[ColdRl::kInputs];
  float next[ColdRl::kInputs];
  float reward = 0;
  float discount = 0;  // of what `next` is worth; 0: it ended
  bool evict = false;
};

class Transitions {
 public:
  explicit Transitions(size_t capacity) : capacity_(capacity) {
    rows_.reserve(capacity);
    while (leaves_ < capacity) leaves_ *= 2;
    sums_.resize(2 * leaves_);
  }

  size_t size() const { return rows_.size(); }
  const Transition& operator[](size_t i) const { return rows_[i]; }
  double total() const { return sums_[1]; }
  double priority(size_t i) const { return sums_[leaves_ + i]; }

  // Each that was ever added stays with the same probability.
  void Add(const Transition& transition, Random& random) {
    ++seen_;
    if (rows_.size() < capacity_) {
      rows_.push_back(transition);
    } else if (const uint64_t at = random.Below(seen_); at < capacity_) {
      rows_[at] = transition;
    }
  }
  // All priorities 1. Before the first draw.
  void Start() {
    std::fill(sums_.begin(), sums_.end(), 0.0);
    for (size_t i = 0; i < rows_.size(); ++i) sums_[leaves_ + i] = 1;
    for (size_t at = leaves_ - 1; at > 0; --at) sums_[at] = sums_[2 * at] + sums_[2 * at + 1];
  }
  // error: of its last prediction.
  void SetError(size_t i, double error) {
    constexpr double kAlpha = 0.6;
    size_t at = leaves_ + i;
    sums_[at] = std::pow(std::abs(error) + 1e-3, kAlpha);
    for (at /= 2; at > 0; at /= 2) sums_[at] = sums_[2 * at] + sums_[2 * at + 1];
  }
  size_t Draw(Random& random) const {
    double rest = random.Uniform() * total();
    size_t at = 1;
    while (at < leaves_) {
      at *= 2;
      if (rest >= sums_[at]) {
        rest -= sums_[at];
        ++at;
      }
    }
    return std::min(at - leaves_, rows_.size() - 1);
  }

 private:
  const size_t capacity_;
  size_t leaves_ = 1;
  uint64_t seen_ = 0;
  std::vector<Transition> rows_;
  std::vector<double> sums_;  // a tree: sums_[i] = sums_[2 i] + sums_[2 i + 1]
};

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_TRANSITIONS_H_
