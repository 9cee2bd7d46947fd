// How an attention task is cut into tiles and steps, and the memory in which a thread works on one.
#ifndef PITH_KERNELS_ATTENTION_SPACE_H_
#define PITH_KERNELS_ATTENTION_SPACE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/attention.h"
#include "kernels/attention_plan.h"
#include "kernels/observed_steps.h"
#include "kernels/page_kernels.h"
#include "kernels/tile_products.h"

namespace pith::kernels {

// Up to here conversion to float32 costs more than it saves.
inline constexpr int kMaxDirectRows = 16;
// Tiles of other formats in one of coded pages.
inline constexpr int kDecodedTiles = 4;

constexpr size_t RoundUp(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// How a task is cut up; a function of its shapes and of the machine.
struct Geometry {
  int group = 0;      // G
  int head_rows = 0;  // T * G
  bool direct = false;
  bool filter = false;  // pages that no row of a tile sees are passed over beforehand
  const TileUnit* unit = nullptr;  // what multiplies, unless vectors do
  int tile_rows = 0;
  int num_tiles = 0;  // per kv head
  int step_pages = 0;
  size_t acc_stride = 0;
  size_t num_steps = 0;  // of a tile at most, where it is observed
  bool prunes = false;   // some head has keys of fewer channels
  bool decodes = false;  // some head has coded pages
  bool integers = false;  // which are multiplied in integers where the target can

  explicit Geometry(const AttentionTask& task) {
    group = task.num_heads / task.num_kv_heads;
    head_rows = task.num_queries * group;
    direct = head_rows <= kMaxDirectRows;
    filter = !direct || task.mask != MaskKind::kCausal;
    if (!direct) unit = GetTileUnit();
    // Wide heads: smaller tiles and steps, so that a step stays in the L2 cache.
    const bool wide = task.key_dim + task.value_dim > 320;
    tile_rows = direct ? std::max(head_rows, 1) : !wide ? 96 : unit != nullptr ? 64 : 48;
    for (int h = 0; task.heads != nullptr && h < task.num_kv_heads; ++h) {
      prunes |= !task.heads[h].PrunedChannels(task.key_dim).empty();
      for (const Segment& segment : task.heads[h].segments) {
        decodes |= segment.num_entries > 0 && segment.layout->format.coded();
      }
    }
    // Each tile decodes its pages.
    if (decodes && !direct && task.observed == nullptr) tile_rows *= kDecodedTiles;
    // The query heads of a group are observed together.
    if (task.observed != nullptr && !direct) tile_rows = std::max(tile_rows / group, 1) * group;
    // Sums of products of 16 and 8 bits fit 32.
    integers = decodes && direct && tile_rows <= kMaxCodedRows && task.key_dim <= 512;
    num_tiles = (head_rows + tile_rows - 1) / tile_rows;
    step_pages = direct || !wide ? kStepPages : 2;
    acc_stride = RoundUp(static_cast<size_t>(task.value_dim), kValuePad);
    for (int h = 0; task.observed != nullptr && h < task.num_kv_heads; ++h) {
      const int steps = (PageCursor::NumPages(task.heads[h]) + step_pages - 1) / step_pages;
      num_steps = std::max(num_steps, static_cast<size_t>(steps));
    }
  }

  Tile MakeTile(const AttentionTask& task, int head, int tile) const {
    return Tile::Make(task, head, tile * tile_rows, std::min((tile + 1) * tile_rows, head_rows));
  }
};

// What the matrix unit reads.
struct UnitSpace {
  size_t depth;       // channels of a key, with zeros up to a whole number of steps
  uint16_t* queries;  // [2 planes][rows][depth]; rows up to a whole number of blocks
  uint16_t* weights;  // [2 planes][rows][kStepEntries]
  float* page;        // keys [D, P] and values [P, acc_stride] on their way
  uint32_t* keys;     // [step_pages] of PackedWords(depth, P)
  uint32_t* values;   // [step_pages] of PackedWords(P, acc_stride)
};

// Running results of a tile's rows.
struct Accumulator {
  float* values = nullptr;  // [rows, acc_stride]
  float* max = nullptr;     // [rows]
  float* sum = nullptr;     // [rows]
  ObservedSteps seen;
};

// Memory that is dealt out in lines of the cache. base may be null when only the size is asked for.
class Dealer {
 public:
  explicit Dealer(std::byte* base) : base_(base) {}

  template <typename T>
  void Take(size_t count, T** result) {
    *result = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + taken_);
    taken_ += RoundUp(count * sizeof(T), 64);
  }

  void Take(const Geometry& geometry, Accumulator* acc) {
    const auto rows = static_cast<size_t>(geometry.tile_rows);
    Take(rows * geometry.acc_stride, &acc->values);
    Take(rows, &acc->max);
    Take(rows, &acc->sum);
    acc->seen.tile_rows = rows;
    Take(geometry.num_steps * rows * kStepEntries, &acc->seen.weights);
    Take(geometry.num_steps * rows, &acc->seen.maxima);
    Take(geometry.num_steps, &acc->seen.steps);
    Take(1, &acc->seen.num_steps);
  }

  size_t taken() const { return taken_; }

 private:
  std::byte* base_;
  size_t taken_ = 0;
};

// What one part of a task leaves behind for the next phase, where other threads read it.
struct PartSpace {
  int64_t* total;       // [1] work on the task's line
  int32_t* item_pages;  // [items] pages that some row of the item sees
  float* observed;      // ObservedSums
  Accumulator partial[2];  // of an item begun by an earlier part, and of one left to a later
  size_t bytes;

  PartSpace(const AttentionTask& task, const Geometry& geometry, std::byte* base) {
    Dealer dealer(base);
    dealer.Take(1, &total);
    dealer.Take(static_cast<size_t>(task.num_kv_heads) * static_cast<size_t>(geometry.num_tiles), &item_pages);
    dealer.Take(ObservedSums::Floats(task), &observed);
    for (Accumulator& acc : partial) dealer.Take(geometry, &acc);
    bytes = dealer.taken();
  }
};

// What a thread needs while it works on an item. One for all tasks and parts that the thread goes through.
struct Workspace {
  float* queries;       // blocks of [D, R], unless with a unit
  const float** query_rows;  // [rows] of [D], before scaling
  // The same of the channels that a head's pruned pages hold, where a head has any.
  float* pruned_queries;
  const float** pruned_rows;
  float* pruned_floats;  // what pruned_rows point to
  int* block_begins;    // [blocks + 1] rows
  float* scores;        // [rows, kStepEntries]
  float* alpha;         // [rows]
  RowRule* rules;       // [rows]
  float* keys;          // [step_pages, D, P], unless with a unit; direct: only where some pages are coded
  float* values;        // [step_pages * P, acc_stride], likewise
  // Of coded pages in integers (CodedScoreArgs), where rows are few.
  float* coded_floats;    // [rows, D]
  int16_t* coded_rows;    // [rows, D rounded up to 2]
  float* coded_units;     // [rows]
  int16_t* coded_values;  // [step_pages * P, acc_stride]
  float* coded_steps;     // [step_pages * P]
  UnitSpace unit;
  float* factors;       // [2][rows], where tiles are observed
  Accumulator whole;
  size_t bytes;

  Workspace(const AttentionTask& task, const Geometry& geometry, std::byte* base) {
    Dealer dealer(base);
    const auto rows = static_cast<size_t>(geometry.tile_rows);
    const auto dim = static_cast<size_t>(task.key_dim);
    const bool converts = geometry.unit == nullptr && (!geometry.direct || geometry.decodes);
    const size_t step = converts ? static_cast<size_t>(geometry.step_pages) * kPageEntries : 0;
    dealer.Take(geometry.unit == nullptr ? rows * dim : 0, &queries);
    dealer.Take(rows, &query_rows);
    const size_t pruned = geometry.prunes && geometry.unit == nullptr ? rows : 0;
    dealer.Take(pruned * dim, &pruned_queries);
    dealer.Take(pruned, &pruned_rows);
    dealer.Take(pruned * dim, &pruned_floats);
    dealer.Take(rows + 1, &block_begins);
    dealer.Take(rows * kStepEntries, &scores);
    dealer.Take(rows, &alpha);
    dealer.Take(rows, &rules);
    dealer.Take(step * dim, &keys);
    dealer.Take(step * geometry.acc_stride, &values);
    const size_t coded = geometry.integers ? rows : 0, coded_step = geometry.integers ? step : 0;
    dealer.Take(coded * dim, &coded_floats);
    dealer.Take(coded * (dim + dim % 2), &coded_rows);
    dealer.Take(coded, &coded_units);
    dealer.Take(coded_step * geometry.acc_stride, &coded_values);
    dealer.Take(coded_step, &coded_steps);
    if (geometry.unit != nullptr) TakeUnitSpace(geometry, dim, &dealer);
    dealer.Take(task.observed != nullptr ? 2 * rows : 0, &factors);
    dealer.Take(geometry, &whole);
    bytes = dealer.taken();
  }

 private:
  void TakeUnitSpace(const Geometry& geometry, size_t dim, Dealer* dealer) {
    const size_t rows = RoundUp(static_cast<size_t>(geometry.tile_rows), kTileBlock);
    const auto pages = static_cast<size_t>(geometry.step_pages);
    unit.depth = RoundUp(dim, kTileDepth);
    dealer->Take(2 * rows * unit.depth, &unit.queries);
    dealer->Take(2 * rows * kStepEntries, &unit.weights);
    dealer->Take(kPageEntries * (dim + geometry.acc_stride), &unit.page);
    dealer->Take(pages * PackedWords(dim, kPageEntries), &unit.keys);
    dealer->Take(pages * PackedWords(kPageEntries, geometry.acc_stride), &unit.values);
  }
};

}  // namespace pith::kernels

#endif  // PITH_KERNELS_ATTENTION_SPACE_H_
