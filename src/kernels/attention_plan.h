// Who computes what: work items, their pages, and the threads' shares.
//
// Rows of a kv head are its T queries times the G query heads of its group, in
// the order (t, g). An item is one kv head and one tile of its rows. All items
// in a row form a line of work, measured in pages times rows; thread i takes
// the i-th of nth equal stretches of that line, cut at pages:
//
//   items     |    head 0     |    head 1     |    head 2     |
//   2 threads |---------- 0 ----------|---------- 1 ----------|
//
// So three heads on two threads are balanced, as are causal tiles of growing
// cost. An item that is cut leaves one partial result per thread, merged in
// the order of threads: a thread count fixes the result.
//
// Every task of a call has a line of its own, cut into its own number of parts,
// so that its result does not depend on what is beside it.
#ifndef PITH_KERNELS_ATTENTION_PLAN_H_
#define PITH_KERNELS_ATTENTION_PLAN_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/attention.h"
#include "kernels/page_kernels.h"

namespace pith::kernels {

struct PageRef {
  const PageLayout* layout = nullptr;
  const std::byte* page = nullptr;
  int count = 0;        // entries in use, at least 1
  int first_entry = 0;  // index of its first entry within the head
};

// Walks the pages of a head's segments in order.
class PageCursor {
 public:
  explicit PageCursor(const HeadEntries& head) : head_(head) {}

  bool Next(PageRef* ref) {
    while (segment_ < head_.segments.size()) {
      const Segment& segment = head_.segments[segment_];
      const int at = page_ * kPageEntries;
      if (at >= segment.num_entries) {
        segment_base_ += segment.num_entries;
        ++segment_;
        page_ = 0;
        continue;
      }
      *ref = {segment.layout, segment.pages[page_], std::min(kPageEntries, segment.num_entries - at),
              segment_base_ + at};
      ++page_;
      return true;
    }
    return false;
  }

  void Skip(int num_pages) {
    while (num_pages > 0 && segment_ < head_.segments.size()) {
      const Segment& segment = head_.segments[segment_];
      const int left = NumPages(segment) - page_;
      if (num_pages < left) {
        page_ += num_pages;
        return;
      }
      num_pages -= left;
      segment_base_ += segment.num_entries;
      ++segment_;
      page_ = 0;
    }
  }

  static int NumPages(const Segment& segment) { return (segment.num_entries + kPageEntries - 1) / kPageEntries; }
  static int NumPages(const HeadEntries& head) {
    int count = 0;
    for (const Segment& segment : head.segments) count += NumPages(segment);
    return count;
  }

 private:
  const HeadEntries& head_;
  size_t segment_ = 0;
  int page_ = 0;
  int segment_base_ = 0;
};

// The least position that a query at `position` may see.
inline int32_t FirstVisible(const AttentionTask& task, int32_t position) {
  switch (task.mask) {
    case MaskKind::kCausal:
      break;
    case MaskKind::kWindow:
      return position - task.window + 1;
    case MaskKind::kChunk:
      return position / task.window * task.window;
  }
  return INT32_MIN;
}

inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr float kMinusInf = -std::numeric_limits<float>::infinity();  // the score of what a row does not see

// What queries are multiplied with: scores are exponents of 2, or what goes into the soft cap.
inline float QueryScale(const AttentionTask& task) {
  return task.soft_cap != 0.0f ? task.scale / task.soft_cap : task.scale * kLog2E;
}

// [D] of a row of a kv head.
inline const float* QueryOfRow(const AttentionTask& task, int kv_head, int row) {
  const int group = task.num_heads / task.num_kv_heads;
  return task.queries + static_cast<size_t>(row / group) * task.query_token_stride +
         static_cast<size_t>(kv_head * group + row % group) * task.query_head_stride;
}

// Rows [begin, end) of one kv head, and what they may see.
struct Tile {
  int head = 0;
  int begin = 0;
  int end = 0;
  // Positions outside first_any..last_any are hidden from all rows, those
  // within first_all..last_all are seen by all.
  int32_t first_any = 0, first_all = 0, last_all = 0, last_any = 0;

  int num_rows() const { return end - begin; }

  static Tile Make(const AttentionTask& task, int head, int begin, int end) {
    const int group = task.num_heads / task.num_kv_heads;
    Tile tile = {head, begin, end};
    tile.last_all = task.query_positions[begin / group];
    tile.last_any = task.query_positions[(end - 1) / group];
    tile.first_any = FirstVisible(task, tile.last_all);
    tile.first_all = FirstVisible(task, tile.last_any);
    return tile;
  }
};

enum class PageVisibility : uint8_t { kHidden, kPartly, kWholly };

inline PageVisibility Visibility(const PageKernels& kernels, const Tile& tile, const PageRef& ref) {
  int32_t least = 0;
  int32_t greatest = 0;
  kernels.position_range(ref.layout->positions(ref.page), ref.count, &least, &greatest);
  if (least > tile.last_any || greatest < tile.first_any) return PageVisibility::kHidden;
  const bool whole = ref.count == kPageEntries && least >= tile.first_all && greatest <= tile.last_all;
  return whole ? PageVisibility::kWholly : PageVisibility::kPartly;
}

// A stretch of an item's pages; the unit after its last page stands for
// finishing the item, so that an item without pages is somebody's work too.
struct Share {
  int begin = 0;
  int end = 0;
  bool empty() const { return begin >= end; }
  bool Whole(int num_pages) const { return begin == 0 && end == num_pages + 1; }
};

// One item on the line of work, [start, start + rows * (pages + 1)).
struct ItemSpan {
  int64_t start = 0;
  int rows = 0;
  int num_pages = 0;

  int64_t work() const { return static_cast<int64_t>(rows) * (num_pages + 1); }

  // Thread ith's share of this item, of `total` work on the line.
  Share ShareOf(int ith, int nth, int64_t total) const { return {Cut(ith, nth, total), Cut(ith + 1, nth, total)}; }

 private:
  int Cut(int ith, int nth, int64_t total) const {
    const int64_t at = std::clamp<int64_t>(total * ith / nth - start, 0, work());
    return static_cast<int>(at / rows);
  }
};

}  // namespace pith::kernels

#endif  // PITH_KERNELS_ATTENTION_PLAN_H_
