// Softmax probabilities: scores of all pages, then a softmax over each row.
#include <cmath>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "kernels/attention.h"
#include "kernels/attention_plan.h"
#include "kernels/key_channels.h"
#include "kernels/page_kernels.h"

namespace pith::kernels {
namespace {

// Packed queries of a tile live on the stack: 64 KiB.
constexpr int kMaxPackedFloats = 16 * 1024;
constexpr int kMaxTileRows = 96;

class Scorer {
 public:
  Scorer(const AttentionTask& task, float* const* probabilities)
      : task_(task),
        probabilities_(probabilities),
        kernels_(GetPageKernels()),
        group_(task.num_heads / task.num_kv_heads),
        head_rows_(task.num_queries * group_) {
    PITH_CHECK(task.key_dim <= kMaxPackedFloats);
    tile_rows_ = std::min({kMaxTileRows, kMaxPackedFloats / task.key_dim, std::max(1, head_rows_)});
  }

  // Masked scores of this thread's share of (tile, page), in log2 units.
  void ScoreAll(const Team& team) {
    int64_t total = 0;
    ForEachTile([&](const Tile&, const ItemSpan& span) { total += span.work(); });
    ForEachTile([&](const Tile& tile, const ItemSpan& span) {
      const Share share = span.ShareOf(team.ith, team.nth, total);
      if (!share.empty()) ScoreTile(tile, share);
    });
  }

  // Softmax over this thread's share of all rows.
  void NormalizeAll(const Team& team) {
    int64_t total = 0;
    for (int head = 0; head < task_.num_kv_heads; ++head) total += RowWork(head) * head_rows_;
    int64_t at = 0;
    for (int head = 0; head < task_.num_kv_heads; ++head) {
      const int count = task_.heads[head].num_entries();
      for (int row = 0; row < head_rows_; ++row, at += RowWork(head)) {
        if (at * team.nth / total != team.ith) continue;
        const int query_head = head * group_ + row / task_.num_queries;
        const float sink = task_.sinks != nullptr ? task_.sinks[query_head] * kLog2E : kMinusInf;
        kernels_.softmax_row(probabilities_[head] + static_cast<size_t>(row) * static_cast<size_t>(count), count, sink);
      }
    }
  }

 private:
  int64_t RowWork(int head) const { return task_.heads[head].num_entries() + kPageEntries; }

  template <class Visit>
  void ForEachTile(const Visit& visit) const {
    int64_t start = 0;
    for (int head = 0; head < task_.num_kv_heads; ++head) {
      const int num_pages = PageCursor::NumPages(task_.heads[head]);
      for (int begin = 0; begin < head_rows_; begin += tile_rows_) {
        const Tile tile = Tile::Make(task_, head, begin, std::min(begin + tile_rows_, head_rows_));
        const ItemSpan span = {start, tile.num_rows(), num_pages};
        visit(tile, span);
        start += span.work();
      }
    }
  }

  int BlockRows(const Tile& tile, int begin) const { return std::min(kernels_.block_rows, tile.num_rows() - begin); }

  // queries: [rows] of [dim]
  void Pack(const Tile& tile, const float* const* queries, int dim, float* packed) const {
    const float scale = QueryScale(task_);
    for (int begin = 0; begin < tile.num_rows(); begin += kernels_.block_rows) {
      const int rows = BlockRows(tile, begin);
      for (int r = 0; r < rows; ++r) {
        const float* query = queries[begin + r];
        for (int d = 0; d < dim; ++d) packed[begin * dim + d * rows + r] = query[d] * scale;
      }
    }
  }

  RowRule RuleOf(const Tile& tile, int row) const {
    const int32_t position = task_.query_positions[row / group_];
    const int head = tile.head * group_ + row % group_;
    const float slope = task_.alibi_slopes != nullptr ? task_.alibi_slopes[head] * kLog2E : 0.0f;
    return {FirstVisible(task_, position), position, slope};
  }

  // Where the scores of a row (t, g) of a kv head begin.
  float* RowOf(const Tile& tile, int row) const {
    const auto count = static_cast<size_t>(task_.heads[tile.head].num_entries());
    const int t = row / group_;
    const int g = row % group_;
    return probabilities_[tile.head] + static_cast<size_t>(g * task_.num_queries + t) * count;
  }

  // What all pages of a tile need. The queries lie in blocks, channel by channel.
  struct TileRows {
    alignas(64) float packed[kMaxPackedFloats];
    alignas(64) float selected[kMaxPackedFloats];  // queries of the channels that pruned pages hold
    const float* queries[kMaxTileRows];
    float* scores[kMaxTileRows];
  };

  void ScoreTile(const Tile& tile, Share share) const {
    TileRows rows;
    for (int r = 0; r < tile.num_rows(); ++r) {
      rows.queries[r] = QueryOfRow(task_, tile.head, tile.begin + r);
      rows.scores[r] = RowOf(tile, tile.begin + r);
    }
    ScorePages(tile, share, task_.key_dim, rows);
    const KeyChannels pruned = task_.heads[tile.head].PrunedChannels(task_.key_dim);
    if (pruned.empty()) return;
    for (int r = 0; r < tile.num_rows(); ++r) {
      float* const row = rows.selected + static_cast<size_t>(r) * pruned.size();
      for (size_t i = 0; i < pruned.size(); ++i) row[i] = rows.queries[r][pruned[i]];
      rows.queries[r] = row;
    }
    ScorePages(tile, share, static_cast<int>(pruned.size()), rows);
  }

  // Those whose keys have `dim` channels.
  void ScorePages(const Tile& tile, Share share, int dim, TileRows& rows) const {
    Pack(tile, rows.queries, dim, rows.packed);
    PageCursor cursor(task_.heads[tile.head]);
    cursor.Skip(share.begin);
    PageRef ref;
    for (int left = share.end - share.begin; left > 0 && cursor.Next(&ref); --left) {
      if (ref.layout->key_dim == dim) ScorePage(tile, ref, rows);
    }
  }

  // As a kernel reads them: where a page is coded, decoded.
  const void* KeysOf(const PageRef& ref, PageVisibility visibility) const {
    if (!ref.layout->format.coded()) return ref.page + ref.layout->key_offset;
    if (visibility == PageVisibility::kHidden) return nullptr;
    decoded_.resize(static_cast<size_t>(ref.layout->key_dim) * kPageEntries);
    kernels_.ConvertKeys(*ref.layout, ref.page, decoded_.data());
    return decoded_.data();
  }

  void ScorePage(const Tile& tile, const PageRef& ref, const TileRows& tile_rows) const {
    alignas(64) float scores[kMaxBlockRows * kStepEntries];
    const PageLayout& layout = *ref.layout;
    const PageVisibility visibility = Visibility(kernels_, tile, ref);
    const StepPage page = {layout.positions(ref.page), nullptr, ref.count, visibility != PageVisibility::kWholly};
    const bool plain = !page.masked && task_.soft_cap == 0.0f && task_.alibi_slopes == nullptr;
    const SourceKernels& kernels = kernels_.of(layout.format.coded() ? Source::kF32 : SourceOf(layout.format.key));
    ScoreArgs args = {};
    args.key_dim = static_cast<size_t>(layout.key_dim);
    args.keys = KeysOf(ref, visibility);
    args.key_scales = ref.page + layout.key_scale_offset;
    args.scores = scores;
    args.query_scale = QueryScale(task_);
    for (int begin = 0; begin < tile.num_rows(); begin += kernels_.block_rows) {
      const int rows = BlockRows(tile, begin);
      args.queries = tile_rows.packed + begin * layout.key_dim;
      args.query_rows = tile_rows.queries + begin;
      if (visibility == PageVisibility::kHidden) {
        std::fill_n(scores, rows * kStepEntries, kMinusInf);
      } else {
        kernels.score[rows](args);
      }
      for (int r = 0; r < rows; ++r) {
        float* at = scores + r * kStepEntries;
        if (!plain && visibility != PageVisibility::kHidden) {
          const RowRule rule = RuleOf(tile, tile.begin + begin + r);
          kernels_.adjust(at, rule, page, task_.soft_cap * kLog2E, task_.alibi_slopes != nullptr);
        }
        float* to = tile_rows.scores[begin + r] + ref.first_entry;
        if (ref.count == kPageEntries)
          std::memcpy(to, at, sizeof(float) * kPageEntries);  // of a size that the compiler knows
        else std::memcpy(to, at, sizeof(float) * static_cast<size_t>(ref.count));
      }
    }
  }

  const AttentionTask& task_;
  float* const* const probabilities_;
  const PageKernels& kernels_;
  const int group_;
  const int head_rows_;
  int tile_rows_ = 0;
  mutable std::vector<float> decoded_;  // keys of the coded page at hand
};

}  // namespace

void RunProbabilities(std::span<const ProbabilityTask> tasks, const Team& team) {
  for (const ProbabilityTask& wanted : tasks) Scorer(*wanted.task, wanted.probabilities).ScoreAll(team);
  team.Sync();
  for (const ProbabilityTask& wanted : tasks) Scorer(*wanted.task, wanted.probabilities).NormalizeAll(team);
}

void RunProbabilities(const AttentionTask& task, float* const* probabilities, const Team& team) {
  const ProbabilityTask wanted = {&task, probabilities};
  RunProbabilities({&wanted, 1}, team);
}

}  // namespace pith::kernels
