// Memory as a cache of requests (Attendre, arXiv:2401.04881; no authors' code): what each query retrieves, its
// `retrieved` largest weights over the entries that were there before its chunk, is touched. A chunk is what was read
// together: a block of a prompt, or one token.
//
//   fifo  the oldest goes
//   lra   what was touched longest ago goes; a new entry counts as touched
//   lfa   what was touched least often goes, counting every query and query head of the group; entries of the last
//         `grace` chunks are spared, which have had no time to be touched
//
// Ties go to the older entry. Entries of the newest chunk stay. Queries wait for nobody here (Dq = 0), and attention is
// over everything: the retrieved entries serve the statistics alone.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

constexpr int kMostRetrieved = 256;

// The largest weights of a row, as a heap whose front is the least of them; of equal ones the older is larger.
class Retrieval {
 public:
  explicit Retrieval(int count) : most_(static_cast<size_t>(count)) {}

  // Of the first `count` entries.
  void Find(const float* row, int count) {
    size_ = 0;
    for (int j = 0; j < count; ++j) {
      if (size_ < most_) {
        found_[size_++] = {row[j], j};
        std::push_heap(found_.begin(), end(), Larger);
      } else if (row[j] > found_[0].first) {
        std::pop_heap(found_.begin(), end(), Larger);
        found_[size_ - 1] = {row[j], j};
        std::push_heap(found_.begin(), end(), Larger);
      }
    }
  }
  template <typename Visit>
  void ForEach(const Visit& visit) const {
    for (size_t i = 0; i < size_; ++i) visit(static_cast<size_t>(found_[i].second));
  }

 private:
  using Found = std::pair<float, int>;
  static bool Larger(const Found& a, const Found& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  }
  std::array<Found, kMostRetrieved>::iterator end() { return found_.begin() + static_cast<ptrdiff_t>(size_); }

  const size_t most_;
  size_t size_ = 0;
  std::array<Found, kMostRetrieved> found_;
};

// visit(entry) for each entry that a query head of the group retrieves, each time that one does.
template <typename Visit>
void ForEachHit(const Observation& seen, int retrieved, const Visit& visit) {
  const int32_t start = seen.chunk_start();
  const auto memory = static_cast<int>(std::ranges::lower_bound(seen.positions, start) - seen.positions.begin());
  Retrieval retrieval(retrieved);
  const auto n = static_cast<size_t>(seen.num_entries);
  for (size_t row = 0; row < static_cast<size_t>(seen.group * seen.num_queries); ++row) {
    retrieval.Find(seen.probabilities + row * n, memory);
    retrieval.ForEach(visit);
  }
}

class Fifo final : public Scorer {
 public:
  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    for (size_t h = 0; h < scores.heads.size(); ++h) {
      std::ranges::copy(inputs.heads[h].positions, scores.heads[h].begin());
    }
  }
};

class LeastRecentlyAttended final : public Scorer {
 public:
  explicit LeastRecentlyAttended(int retrieved) : retrieved_(retrieved) {}

  uint32_t needs() const override { return kNeedEveryQuery | kNeedRows; }
  // The chunk's first position; -1: not known yet.
  std::vector<ColumnSpec> columns() const override { return {{"last_attended", -1}}; }

  void Observe(const Observation& seen, std::span<float* const> columns) const override {
    if (seen.num_queries == 0) return;
    const auto now = static_cast<float>(seen.chunk_start());
    for (int j = seen.num_entries - 1; j >= 0 && seen.positions[static_cast<size_t>(j)] >= seen.chunk_start(); --j) {
      columns[0][j] = now;
    }
    ForEachHit(seen, retrieved_, [&](size_t j) { columns[0][j] = now; });
  }

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    for (size_t h = 0; h < scores.heads.size(); ++h) {
      std::copy_n(inputs.heads[h].columns[0], scores.heads[h].size(), scores.heads[h].begin());
    }
  }

 private:
  int retrieved_;
};

class LeastFrequentlyAttended final : public Scorer {
 public:
  LeastFrequentlyAttended(int retrieved, int grace) : retrieved_(retrieved), grace_(grace) {}

  uint32_t needs() const override { return kNeedEveryQuery | kNeedRows; }
  // How many chunks began after the entry's own; -1 before its own began.
  std::vector<ColumnSpec> columns() const override { return {{"times_attended", 0}, {"chunks_since", -1}}; }

  void Observe(const Observation& seen, std::span<float* const> columns) const override {
    if (seen.num_queries == 0) return;
    const auto n = static_cast<size_t>(seen.num_entries);
    if (seen.query_positions.front() == seen.chunk_start()) {
      for (size_t j = 0; j < n; ++j) columns[1][j] += 1;
    }
    ForEachHit(seen, retrieved_, [&](size_t j) { columns[0][j] += 1; });
  }

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    scores.ties.resize(scores.heads.size());
    for (size_t h = 0; h < scores.heads.size(); ++h) {
      const float* times = inputs.heads[h].columns[0];
      const float* since = inputs.heads[h].columns[1];
      const size_t n = scores.heads[h].size();
      std::vector<size_t> spared;
      scores.ties[h].resize(n);
      for (size_t j = 0; j < n; ++j) {
        scores.ties[h][j] = static_cast<float>(j);
        scores.heads[h][j] = times[j];
        if (since[j] <= static_cast<float>(grace_) || since[j] < 1) spared.push_back(j);
      }
      // Where nothing else is left, those go as others do, of the newest chunk last.
      std::ranges::stable_sort(spared, [&](size_t a, size_t b) {
        const bool new_a = since[a] < 1, new_b = since[b] < 1;
        return new_a != new_b ? new_b : times[a] < times[b];
      });
      for (size_t i = 0; i < spared.size(); ++i) {
        scores.heads[h][spared[i]] = kProtected;
        scores.ties[h][spared[i]] = static_cast<float>(i);
      }
    }
  }

 private:
  int retrieved_, grace_;
};

ParamSpec Retrieved() {
  return IntParam("retrieved", 32, 1, kMostRetrieved,
                  "entries that each query touches: those with its largest weights");
}

}  // namespace

StageInfo<Scorer> FifoStage() {
  return {"the newest", {}, [](const Params&) -> std::unique_ptr<Scorer> { return std::make_unique<Fifo>(); }};
}

StageInfo<Scorer> LraStage() {
  return {"what some query's largest weights last were on",
          {Retrieved()},
          [](const Params& p) -> std::unique_ptr<Scorer> {
            return std::make_unique<LeastRecentlyAttended>(p.Int("retrieved"));
          }};
}

StageInfo<Scorer> LfaStage() {
  return {"how often queries' largest weights were on it",
          {Retrieved(), IntParam("grace", 1, 0, 65536, "chunks for which a new entry is spared")},
          [](const Params& p) -> std::unique_ptr<Scorer> {
            return std::make_unique<LeastFrequentlyAttended>(p.Int("retrieved"), p.Int("grace"));
          }};
}

}  // namespace pith
