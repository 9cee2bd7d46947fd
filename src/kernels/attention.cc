// Attention with online softmax, for decode and prefill alike.
//
// For each of its items (attention_plan.h) a thread walks the pages in steps of
// up to kStepPages: scores of all rows, softmax, weighted sum of values, the
// rows in blocks whose sums fit the registers.
//
//   few rows  (decode)   kernels read pages as they are stored. Memory bounds
//                        this, so the next step's pages are prefetched meanwhile,
//                        in the order of addresses, which is what processors
//                        continue by themselves.
//   many rows (prefill)  each page is converted to float32 once per tile, and
//                        then read by all blocks of rows out of the near caches;
//                        or to what the processor's matrix unit reads (UnitProducts).
//
// The tasks of a call go through its phases together, so that the barriers between them are paid once:
//
//   compute                whole items, and each part's stretch of items that are cut
//   -- barrier --
//   merge, observe         rows of cut items; what a part saw of them becomes probabilities
//   -- barrier --          if any task is observed
//   merge what was seen
#include "kernels/attention.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <optional>

#include "base/check.h"
#include "kernels/attention_plan.h"
#include "kernels/attention_space.h"
#include "kernels/attention_worker.h"
#include "kernels/feature_maps.h"
#include "kernels/observed_steps.h"
#include "kernels/page_kernels.h"

namespace pith::kernels {
namespace {

constexpr float kLn2 = 0.69314718055994530942f;

// What makes a weight relative to the row's maximum a probability (0: the row sees nothing), and the row's log-sum-exp.
struct RowEnd {
  float factor = 0.0f;
  float log_sum_exp = kMinusInf;

  RowEnd(const AttentionTask& task, int head, float max, float sum) {
    if (max == kMinusInf) return;
    const float sink = task.sinks != nullptr ? task.sinks[head] * kLog2E : kMinusInf;
    const float top = std::max(max, sink);
    const float total = sum * std::exp2(max - top) + std::exp2(sink - top);
    factor = std::exp2(max - top) / total;
    log_sum_exp = (top + std::log2(total)) * kLn2;
  }
};

// Writes the output of one row from its unnormalised sum of values. Returns RowEnd::factor.
float FinishRow(const AttentionTask& task, const Tile& tile, int r, const float* values, float max, float sum) {
  const int group = task.num_heads / task.num_kv_heads;
  const int query = (tile.begin + r) / group;
  const int head = tile.head * group + (tile.begin + r) % group;
  const RowEnd end(task, head, max, sum);
  float* output = task.output + static_cast<size_t>(query) * task.output_token_stride +
                  static_cast<size_t>(head) * task.output_head_stride;
  for (int c = 0; c < task.value_dim; ++c) output[c] = end.factor == 0.0f ? 0.0f : values[c] * end.factor;
  if (task.log_sum_exp != nullptr) {
    task.log_sum_exp[static_cast<size_t>(head) * static_cast<size_t>(task.num_queries) + static_cast<size_t>(query)] =
        end.log_sum_exp;
  }
  const float* const state = task.heads[tile.head].state;
  if (task.features != nullptr && state != nullptr) {
    const auto rank = static_cast<size_t>(task.rank);
    const size_t row = static_cast<size_t>(query) * static_cast<size_t>(task.num_heads) + static_cast<size_t>(head);
    JoinState({task.features + row * rank, rank}, state, end.log_sum_exp,
              {output, static_cast<size_t>(task.value_dim)});
  }
  return end.factor;
}

// Which of a thread's two partial results belongs to an item that it shares.
int PartialSlot(Share share) { return share.begin > 0 ? 0 : 1; }

// Adds its lifetime to what the first member took to gather attention.
class Stopwatch {
 public:
  Stopwatch(const AttentionTask& task, const Team& team) : seconds_(team.ith == 0 ? task.observe_seconds : nullptr) {}
  Stopwatch(const Stopwatch&) = delete;
  ~Stopwatch() {
    if (seconds_ != nullptr) *seconds_ += std::chrono::duration<double>(Clock::now() - start_).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  double* const seconds_;
  const Clock::time_point start_ = Clock::now();
};

// One part of a task, of `parts.nth` in all, on the thread that has to do it.
class Run {
 public:
  // work: the thread's Workspace. all_parts: PartSpace of every part.
  Run(const AttentionTask& task, std::byte* work, std::byte* all_parts, const Team& parts)
      : task_(task),
        geometry_(task),
        kernels_(GetPageKernels()),
        all_parts_(all_parts),
        part_bytes_(PartSpace(task, geometry_, nullptr).bytes),
        team_(parts),
        work_(task, geometry_, work),
        part_(SpaceOf(parts.ith)) {}

  // First of all: measures the task's line of work.
  void Plan() {
    *part_.total = 0;
    ForEachItem([&](int item, const Tile& tile, ItemSpan* span) {
      span->num_pages = part_.item_pages[item] = CountPages(tile);
      *part_.total += span->work();
    });
    ObservedSums(task_, part_.observed).Clear();
  }

  // next: what the thread does next, planned, or null; its first pages are fetched at the end of this one.
  // fetched: whether that happened to this one; changed to whether it happened to the next.
  void Compute(const Run* next, bool* fetched) {
    Worker worker(task_, geometry_, kernels_, work_, *fetched);
    *fetched = false;
    ForEachItem([&](int item, const Tile& tile, ItemSpan* span) {
      span->num_pages = part_.item_pages[item];
      const Share share = ShareOf(*span);
      if (share.empty()) return;
      const StepWalker::Step after = After(item, *span, next);
      if (!share.Whole(span->num_pages)) {
        worker.Run(tile, share, after, part_.partial[PartialSlot(share)]);
        return;
      }
      const Accumulator& whole = work_.whole;
      worker.Run(tile, share, after, whole);
      for (int r = 0; r < tile.num_rows(); ++r) {
        const float* values = whole.values + static_cast<size_t>(r) * geometry_.acc_stride;
        const float factor = FinishRow(task_, tile, r, values, whole.max[r], whole.sum[r]);
        if (task_.observed != nullptr) work_.factors[r] = factor;
      }
      if (task_.observed == nullptr) return;
      const Stopwatch watch(task_, team_);
      AddUp(tile, whole);
    });
    *fetched = geometry_.direct && worker.fetched();
  }

  // After a sync: adds up what this part saw of items that were cut.
  void ObserveCutItems() {
    if (task_.observed == nullptr) return;
    const Stopwatch watch(task_, team_);
    ForEachItem([&](int item, const Tile& tile, ItemSpan* span) {
      span->num_pages = part_.item_pages[item];
      const Share share = ShareOf(*span);
      if (share.empty() || share.Whole(span->num_pages)) return;
      const Accumulator& part = part_.partial[PartialSlot(share)];
      // This part's own maxima are where its factors are to start from.
      for (int r = 0; r < tile.num_rows(); ++r) {
        const RowSum row = SumRow(*span, r);
        const int head = tile.head * geometry_.group + (tile.begin + r) % geometry_.group;
        const float factor = RowEnd(task_, head, row.max, row.sum).factor;
        work_.factors[r] = part.max[r] == kMinusInf ? 0.0f : factor * std::exp2(part.max[r] - row.max);
      }
      AddUp(tile, part);
    });
  }

  // After another sync: this part's stretch of every head, over what all parts saw.
  void MergeObserved() {
    if (task_.observed == nullptr) return;
    const Stopwatch watch(task_, team_);
    for (int head = 0; head < task_.num_kv_heads; ++head) {
      const int64_t n = task_.heads[head].num_entries();
      const auto begin = static_cast<size_t>(n * team_.ith / team_.nth),
                 end = static_cast<size_t>(n * (team_.ith + 1) / team_.nth);
      const EntryAttention& to = task_.observed[head];
      for (int i = 0; i < team_.nth; ++i) {
        const EntryAttention from = ObservedSums(task_, SpaceOf(i).observed).Head(head);
        const auto join = [&](const float* __restrict of_thread, float* __restrict all, const auto& with) {
          if (all == nullptr) return;
          if (i == 0) std::copy(of_thread + begin, of_thread + end, all + begin);
          for (size_t j = begin; j < end && i > 0; ++j) all[j] = with(all[j], of_thread[j]);
        };
        join(from.sum, to.sum, std::plus<>());
        join(from.squares, to.squares, std::plus<>());
        join(from.largest, to.largest, [](float a, float b) { return std::max(a, b); });
      }
    }
  }

  // Merges the items that were cut, their rows dealt to the threads in turn.
  void Merge() {
    if (team_.nth == 1) return;
    int turn = 0;
    ForEachItem([&](int item, const Tile& tile, ItemSpan* span) {
      span->num_pages = part_.item_pages[item];
      for (int i = 0; i < team_.nth; ++i) {
        if (span->ShareOf(i, team_.nth, *part_.total).Whole(span->num_pages)) return;
      }
      for (int r = 0; r < tile.num_rows(); ++r) {
        if (turn++ % team_.nth == team_.ith) MergeRow(tile, *span, r);
      }
    });
  }

 private:
  PartSpace SpaceOf(int part) const {
    return PartSpace(task_, geometry_, all_parts_ + static_cast<size_t>(part) * part_bytes_);
  }

  Share ShareOf(const ItemSpan& span) const { return span.ShareOf(team_.ith, team_.nth, *part_.total); }

  int CountPages(const Tile& tile) const {
    const HeadEntries& head = task_.heads[tile.head];
    if (!geometry_.filter) return PageCursor::NumPages(head);
    int count = 0;
    PageCursor cursor(head);
    for (PageRef ref; cursor.Next(&ref);) count += Visibility(kernels_, tile, ref) != PageVisibility::kHidden;
    return count;
  }

  // The first pages of this part's share of an item, of which only heads are fetched ahead.
  StepWalker::Step FirstStep(int head, Share share) const {
    const Tile tile = geometry_.MakeTile(task_, head, 0);
    return StepWalker(kernels_, task_.heads[head], tile, false, geometry_.step_pages, share).Next();
  }

  // What the thread reads after its share of an item: the next item's pages, or those of its next run.
  StepWalker::Step After(int item, const ItemSpan& span, const Run* next) const {
    if (!geometry_.direct) return {};
    if (item + 1 < task_.num_kv_heads) {
      const Share share = ShareOf({span.start + span.work(), span.rows, part_.item_pages[item + 1]});
      if (!share.empty()) return geometry_.filter ? StepWalker::Step() : FirstStep(item + 1, share);
    }
    return next != nullptr ? next->Beginning() : StepWalker::Step();
  }

  // The first pages that this part reads, where it reads all of them and few rows do.
  StepWalker::Step Beginning() const {
    if (geometry_.filter || geometry_.head_rows == 0) return {};
    ItemSpan span = {0, geometry_.head_rows, 0};
    for (int head = 0; head < task_.num_kv_heads; ++head) {
      span.num_pages = part_.item_pages[head];
      const Share share = ShareOf(span);
      if (!share.empty()) return FirstStep(head, share);
      span.start += span.work();
    }
    return {};
  }

  // visit(item, tile, span) for all items in order; visit sets span->num_pages.
  template <class Visit>
  void ForEachItem(const Visit& visit) {
    int item = 0;
    int64_t start = 0;
    for (int head = 0; head < task_.num_kv_heads; ++head) {
      for (int t = 0; t < geometry_.num_tiles; ++t, ++item) {
        const Tile tile = geometry_.MakeTile(task_, head, t);
        ItemSpan span = {start, tile.num_rows(), 0};
        visit(item, tile, &span);
        start += span.work();
      }
    }
  }

  // visit(partial result) of every part that has a share in a cut item, in order.
  template <class Visit>
  void ForEachPart(const ItemSpan& span, const Visit& visit) const {
    for (int i = 0; i < team_.nth; ++i) {
      const Share share = span.ShareOf(i, team_.nth, *part_.total);
      if (!share.empty()) visit(SpaceOf(i).partial[PartialSlot(share)]);
    }
  }

  struct RowSum {
    float max = kMinusInf;
    float sum = 0.0f;
  };
  RowSum SumRow(const ItemSpan& span, int r) const {
    RowSum row;
    ForEachPart(span, [&](const Accumulator& part) { row.max = std::max(row.max, part.max[r]); });
    ForEachPart(span, [&](const Accumulator& part) {
      if (part.max[r] != kMinusInf) row.sum += std::exp2(part.max[r] - row.max) * part.sum[r];
    });
    return row;
  }

  // Factors are relative to the maxima of `acc`.
  void AddUp(const Tile& tile, const Accumulator& acc) const {
    const ObservedSums sums(task_, part_.observed);
    acc.seen.AddTo(sums.Head(tile.head), kernels_, tile.num_rows(), geometry_.group, acc.max, work_.factors,
                   work_.factors + geometry_.tile_rows);
  }

  void MergeRow(const Tile& tile, const ItemSpan& span, int r) {
    float* merged = work_.whole.values;
    std::memset(merged, 0, sizeof(float) * geometry_.acc_stride);
    const RowSum row = SumRow(span, r);
    ForEachPart(span, [&](const Accumulator& part) {
      if (part.max[r] == kMinusInf) return;
      const float factor = std::exp2(part.max[r] - row.max);
      const float* values = part.values + static_cast<size_t>(r) * geometry_.acc_stride;
      for (int c = 0; c < task_.value_dim; ++c) merged[c] += factor * values[c];
    });
    FinishRow(task_, tile, r, merged, row.max, row.sum);
  }

  const AttentionTask& task_;
  const Geometry geometry_;
  const PageKernels& kernels_;
  std::byte* const all_parts_;
  const size_t part_bytes_;
  const Team team_;  // of parts
  Workspace work_;
  PartSpace part_;
};

int NumParts(const AttentionTask& task, int nth) { return std::max(nth, task.num_parts); }

// What one thread needs for any of the tasks.
size_t WorkBytes(std::span<const AttentionTask> tasks) {
  size_t bytes = 0;
  for (const AttentionTask& task : tasks) bytes = std::max(bytes, Workspace(task, Geometry(task), nullptr).bytes);
  return bytes;
}

size_t PartsBytes(const AttentionTask& task, int nth) {
  return PartSpace(task, Geometry(task), nullptr).bytes * static_cast<size_t>(NumParts(task, nth));
}

// visit(run) for all parts of all tasks that fall to this thread, which does several of a task where there are more
// parts than threads. scratch: the threads' Workspaces, then the tasks' parts.
template <class Visit>
void ForEachRun(std::span<const AttentionTask> tasks, std::byte* scratch, const Team& team, const Visit& visit) {
  const size_t work_bytes = WorkBytes(tasks);
  std::byte* const work = scratch + work_bytes * static_cast<size_t>(team.ith);
  std::byte* parts = scratch + work_bytes * static_cast<size_t>(team.nth);
  for (const AttentionTask& task : tasks) {
    const int num_parts = NumParts(task, team.nth);
    for (int i = team.ith; i < num_parts; i += team.nth) visit(Run(task, work, parts, Team{i, num_parts}));
    parts += PartsBytes(task, team.nth);
  }
}

}  // namespace

size_t AttentionScratchBytes(std::span<const AttentionTask> tasks, int nth) {
  size_t bytes = WorkBytes(tasks) * static_cast<size_t>(nth);
  for (const AttentionTask& task : tasks) bytes += PartsBytes(task, nth);
  return bytes;
}

size_t AttentionScratchBytes(const AttentionTask& task, int nth) { return AttentionScratchBytes({&task, 1}, nth); }

void RunAttention(std::span<const AttentionTask> tasks, std::byte* scratch, const Team& team) {
  PITH_DCHECK(reinterpret_cast<uintptr_t>(scratch) % 64 == 0);
  const auto for_each = [&](const auto& visit) { ForEachRun(tasks, scratch, team, visit); };
  for_each([](Run run) { run.Plan(); });
  std::optional<Run> current;
  bool fetched = false;
  for_each([&](const Run& next) {
    if (current) current->Compute(&next, &fetched);
    current.emplace(next);
  });
  if (current) current->Compute(nullptr, &fetched);
  team.Sync();
  for_each([](Run run) { run.Merge(), run.ObserveCutItems(); });
  const auto is_observed = [](const AttentionTask& task) { return task.observed != nullptr; };
  if (std::none_of(tasks.begin(), tasks.end(), is_observed)) return;
  team.Sync();
  for_each([](Run run) { run.MergeObserved(); });
}

void RunAttention(const AttentionTask& task, std::byte* scratch, const Team& team) {
  RunAttention({&task, 1}, scratch, team);
}

}  // namespace pith::kernels
