// One thread at work on the items of an attention task: steps of pages, their scores, softmax and weighted values.
#ifndef PITH_KERNELS_ATTENTION_WORKER_H_
#define PITH_KERNELS_ATTENTION_WORKER_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/attention.h"
#include "kernels/attention_plan.h"
#include "kernels/attention_space.h"
#include "kernels/key_channels.h"
#include "kernels/observed_steps.h"
#include "kernels/page_kernels.h"

namespace pith::kernels {

// The pages of a tile that some row sees, in steps. With `filter` off (few
// rows, causal) all pages count and their positions are looked at late, after
// they have been prefetched.
class StepWalker {
 public:
  StepWalker(const PageKernels& kernels, const HeadEntries& head, const Tile& tile, bool filter, int step_pages,
             Share share)
      : kernels_(kernels),
        cursor_(head),
        tile_(tile),
        filter_(filter),
        step_pages_(step_pages),
        left_(share.end - share.begin) {
    if (!filter_) cursor_.Skip(share.begin);
    if (filter_) to_skip_ = share.begin;
  }

  struct Step {
    int num_pages = 0;
    PageRef refs[kStepPages];
    bool masked[kStepPages];
  };

  Step Next() {
    Step step;
    PageRef ref;
    while (step.num_pages < step_pages_ && left_ > 0 && cursor_.Next(&ref)) {
      bool masked = false;
      if (filter_) {
        const PageVisibility visibility = Visibility(kernels_, tile_, ref);
        if (visibility == PageVisibility::kHidden) continue;
        if (to_skip_ > 0) {
          --to_skip_;
          continue;
        }
        masked = visibility == PageVisibility::kPartly;
      }
      step.refs[step.num_pages] = ref;
      step.masked[step.num_pages++] = masked;
      --left_;
    }
    return step;
  }

  // Must be called before a step's masked flags are used.
  void Classify(Step* step) const {
    if (filter_) return;
    for (int p = 0; p < step->num_pages; ++p) {
      step->masked[p] = Visibility(kernels_, tile_, step->refs[p]) != PageVisibility::kWholly;
    }
  }

 private:
  const PageKernels& kernels_;
  PageCursor cursor_;
  const Tile& tile_;
  bool filter_;
  int step_pages_;
  int left_;
  int to_skip_ = 0;
};

// Of coded pages, of which nobody knows the size without looking, a half each of what is usual: 4 bits an element.
inline Prefetch HalfOfCoded(const PageRef& ref, size_t half) {
  const auto elements = static_cast<size_t>((ref.layout->key_dim + ref.layout->value_dim) * kPageEntries);
  const size_t bytes = RoundUp(elements / 4, 64);
  return {ref.page + ref.layout->key_offset + half * bytes, bytes};
}
inline Prefetch KeysOf(const PageRef& ref) {
  if (ref.layout->format.coded()) return HalfOfCoded(ref, 0);
  return {ref.page + ref.layout->key_offset, ref.layout->key_bytes()};
}
inline Prefetch ValuesOf(const PageRef& ref) {
  if (ref.layout->format.coded()) return HalfOfCoded(ref, 1);
  return {ref.page + ref.layout->value_offset, ref.layout->value_row_bytes() * static_cast<size_t>(ref.count)};
}

// What kernels fetch while they go through a step's pages, twice: once for keys, once for values.
class Lookahead {
 public:
  // `here` has been fetched already, or not.
  Lookahead(const StepWalker::Step& here, const StepWalker::Step& next, bool fetched)
      : here_(here), next_(next), fetched_(fetched) {}

  // With the p-th page's keys, and with its values. Values follow keys in memory.
  Prefetch WithKeys(int p) const { return fetched_ ? Half(p) : ValuesOf(here_.refs[p]); }
  Prefetch WithValues(int p) const {
    if (fetched_) return Half(here_.num_pages + p);
    if (p >= next_.num_pages) return {};
    const Prefetch keys = KeysOf(next_.refs[p]), values = ValuesOf(next_.refs[p]);
    return {keys.at, static_cast<size_t>(values.at - keys.at) + values.bytes};
  }
  const StepWalker::Step& next() const { return next_; }
  bool FetchesAll() const { return next_.num_pages > 0 && next_.num_pages <= here_.num_pages; }

 private:
  Prefetch Half(int i) const {
    if (i / 2 >= next_.num_pages) return {};
    return i % 2 == 0 ? KeysOf(next_.refs[i / 2]) : ValuesOf(next_.refs[i / 2]);
  }

  const StepWalker::Step& here_;
  const StepWalker::Step& next_;
  const bool fetched_;
};

inline void Fetch(const std::byte* at, size_t bytes) {
  for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(at + line, 0, 2);
}

// The products of one tile in the matrix unit.
class UnitProducts {
 public:
  UnitProducts(const AttentionTask& task, const Geometry& geometry, const PageKernels& kernels, const Workspace& space)
      : geometry_(geometry), kernels_(kernels), space_(space.unit), dim_(static_cast<size_t>(task.key_dim)) {
    static_assert(kTileBlock == kPageEntries && kTileDepth == kPageEntries && kValuePad % kTileBlock == 0);
  }

  // queries: [rows] of [D]. What lies beyond them, and beyond the rows of weights to come, becomes 0.
  void SetQueries(const float* const* queries, int rows, float scale) {
    rows_ = static_cast<size_t>(rows);
    std::memset(space_.queries, 0, 2 * sizeof(uint16_t) * PaddedRows() * space_.depth);
    for (size_t plane = 0; plane < 2; ++plane) {
      uint16_t* const beyond = space_.weights + (plane * PaddedRows() + rows_) * kStepEntries;
      std::memset(beyond, 0, sizeof(uint16_t) * (PaddedRows() - rows_) * kStepEntries);
    }
    for (size_t r = 0; r < rows_; ++r) {
      uint16_t* high = space_.queries + r * space_.depth;
      SplitRow(queries[r], dim_, scale, high, high + PaddedRows() * space_.depth);
    }
  }

  void Convert(const StepWalker::Step& step, KeyChannels pruned) const {
    for (int p = 0; p < step.num_pages; ++p) {
      const PageRef& ref = step.refs[p];
      float* const values = space_.page + kPageEntries * dim_;
      kernels_.ConvertPage(*ref.layout, ref.page, ref.count, space_.page, values, geometry_.acc_stride);
      if (static_cast<size_t>(ref.layout->key_dim) < dim_) {
        SpreadChannels(pruned, kPageEntries, static_cast<int>(dim_), space_.page);
      }
      PackRight(space_.page, dim_, kPageEntries, kPageEntries, KeysOfPage(p));
      PackRight(values, kPageEntries, geometry_.acc_stride, geometry_.acc_stride, ValuesOfPage(p));
    }
  }

  // scores: [rows, kStepEntries]
  void Score(int num_pages, float* scores) const {
    TileProduct product = Left(space_.queries, space_.depth);
    product.group_stride = PackedWords(kTileDepth, kPageEntries);
    product.groups = static_cast<int>(space_.depth / kTileDepth);
    product.sum_stride = kStepEntries;
    for (int p = 0; p < num_pages; ++p) {
      product.right = KeysOfPage(p);
      product.sums = scores + p * kPageEntries;
      MultiplyRows(product);
    }
  }

  // acc [rows, acc_stride] += weights [rows, kStepEntries] times the step's values.
  void Accumulate(int num_pages, const float* weights, float* acc) const {
    const auto count = static_cast<size_t>(num_pages) * kPageEntries;
    const size_t plane = PaddedRows() * kStepEntries;
    for (size_t r = 0; r < rows_; ++r) {
      uint16_t* high = space_.weights + r * kStepEntries;
      SplitRow(weights + r * kStepEntries, count, 1.0f, high, high + plane);
    }
    TileProduct product = Left(space_.weights, kStepEntries);
    product.group_stride = PackedWords(kPageEntries, geometry_.acc_stride);
    product.groups = num_pages;
    product.sum_stride = geometry_.acc_stride;
    product.add = true;
    for (size_t column = 0; column < geometry_.acc_stride; column += kTileBlock) {
      product.right = space_.values + PackedWords(kTileDepth, column);
      product.sums = acc + column;
      MultiplyRows(product);
    }
  }

 private:
  size_t PaddedRows() const { return RoundUp(rows_, kTileBlock); }
  uint32_t* KeysOfPage(int p) const { return space_.keys + static_cast<size_t>(p) * PackedWords(dim_, kPageEntries); }
  uint32_t* ValuesOfPage(int p) const {
    return space_.values + static_cast<size_t>(p) * PackedWords(kPageEntries, geometry_.acc_stride);
  }

  // planes: [2][PaddedRows()][stride]
  TileProduct Left(const uint16_t* planes, size_t stride) const {
    TileProduct product = {};
    product.high = planes;
    product.low = planes + PaddedRows() * stride;
    product.left_stride = stride;
    return product;
  }

  // All rows of a product, in blocks. What a last block has beyond the rows goes elsewhere.
  void MultiplyRows(TileProduct product) const {
    const size_t whole = rows_ / kTileBlock * kTileBlock;
    for (size_t r = 0; r < whole; r += kTileBlock) {
      geometry_.unit->multiply(product);
      product.high += kTileBlock * product.left_stride;
      product.low += kTileBlock * product.left_stride;
      product.sums += kTileBlock * product.sum_stride;
    }
    if (whole == rows_) return;
    alignas(64) float block[kTileBlock][kTileBlock] = {};
    float* const sums = product.sums;
    for (size_t r = 0; product.add && r < rows_ - whole; ++r) {
      std::memcpy(block[r], sums + r * product.sum_stride, sizeof(block[r]));
    }
    const size_t sum_stride = product.sum_stride;
    product.sums = block[0];
    product.sum_stride = kTileBlock;
    geometry_.unit->multiply(product);
    for (size_t r = 0; r < rows_ - whole; ++r) std::memcpy(sums + r * sum_stride, block[r], sizeof(block[r]));
  }

  const Geometry& geometry_;
  const PageKernels& kernels_;
  const UnitSpace& space_;
  const size_t dim_;
  size_t rows_ = 0;
};

// One thread at work on one task.
class Worker {
 public:
  // fetched: the first step's pages have been, by whoever used the thread before.
  Worker(const AttentionTask& task, const Geometry& geometry, const PageKernels& kernels, const Workspace& space,
         bool fetched)
      : task_(task),
        geometry_(geometry),
        kernels_(kernels),
        space_(space),
        unit_(task, geometry, kernels, space),
        fetched_(fetched) {}

  // Leaves the sums over the tile's share in acc. after: what this thread does next, fetched meanwhile; may be empty.
  void Run(const Tile& tile, Share share, const StepWalker::Step& after, const Accumulator& acc) {
    tile_ = &tile;
    acc_ = acc;
    *acc_.seen.num_steps = 0;
    if (with_unit()) geometry_.unit->begin();
    Prepare();
    StepWalker walker(kernels_, task_.heads[tile.head], tile, geometry_.filter, geometry_.step_pages, share);
    StepWalker::Step step = walker.Next();
    while (step.num_pages > 0) {
      const StepWalker::Step next = walker.Next();
      const Lookahead lookahead(step, next.num_pages > 0 ? next : after, fetched_);
      scores_ = weights_ = task_.observed != nullptr ? acc_.seen.WeightsOf(*acc_.seen.num_steps) : space_.scores;
      if (with_unit()) {
        unit_.Convert(step, pruned_);
        unit_.Score(step.num_pages, scores_);
      } else {
        if (!geometry_.direct) Convert(step);
        Score(step, lookahead);
      }
      walker.Classify(&step);
      Softmax(step);
      if (task_.observed != nullptr) Remember(step);
      Rescale();
      with_unit() ? unit_.Accumulate(step.num_pages, weights_, acc_.values) : Accumulate(step, lookahead);
      fetched_ = lookahead.FetchesAll();
      step = next;
    }
    if (with_unit()) geometry_.unit->end();
  }

  // Whether all of `after` has been fetched.
  bool fetched() const { return fetched_; }

 private:
  bool with_unit() const { return geometry_.unit != nullptr; }

  // Rows are cut into blocks of nearly equal size.
  int BlockBegin(int block) const { return space_.block_begins[block]; }

  // A block's part of what all blocks fetch together.
  Prefetch PartOf(const Prefetch& all, int block) const {
    if (num_blocks_ == 1 || all.bytes == 0) return all;
    const auto blocks = static_cast<size_t>(num_blocks_), i = static_cast<size_t>(block);
    const size_t begin = RoundUp(all.bytes * i / blocks, 64), end = RoundUp(all.bytes * (i + 1) / blocks, 64);
    return {all.at + begin, end - begin};
  }

  // Packs the tile's queries and resets its accumulator.
  void Prepare() {
    const int rows = tile_->num_rows();
    for (int r = 0; r < rows; ++r) space_.query_rows[r] = QueryOfRow(task_, tile_->head, tile_->begin + r);
    pruned_ = task_.heads[tile_->head].PrunedChannels(task_.key_dim);
    with_unit() ? unit_.SetQueries(space_.query_rows, rows, QueryScale(task_)) : PackQueries(rows);
    for (int r = 0; r < rows; ++r) {
      const int row = tile_->begin + r;
      const int32_t position = task_.query_positions[row / geometry_.group];
      const int head = tile_->head * geometry_.group + row % geometry_.group;
      const float slope = task_.alibi_slopes != nullptr ? task_.alibi_slopes[head] * kLog2E : 0.0f;
      space_.rules[r] = {FirstVisible(task_, position), position, slope};
      acc_.max[r] = kMinusInf;
      acc_.sum[r] = 0.0f;
    }
    std::memset(acc_.values, 0, sizeof(float) * static_cast<size_t>(rows) * geometry_.acc_stride);
  }

  void PackQueries(int rows) {
    num_blocks_ = (rows + kernels_.block_rows - 1) / kernels_.block_rows;
    for (int block = 0; block <= num_blocks_; ++block)
      space_.block_begins[block] = rows * block / std::max(num_blocks_, 1);
    PackBlocks(space_.query_rows, static_cast<size_t>(task_.key_dim), space_.queries);
    if (in_integers()) RoundQueries(rows);
    if (pruned_.empty()) return;
    for (int r = 0; r < rows; ++r) {
      float* const row = space_.pruned_floats + static_cast<size_t>(r) * pruned_.size();
      for (size_t i = 0; i < pruned_.size(); ++i) row[i] = space_.query_rows[r][pruned_[i]];
      space_.pruned_rows[r] = row;
    }
    PackBlocks(space_.pruned_rows, pruned_.size(), space_.pruned_queries);
  }

  // Whether coded pages are multiplied in integers. Their rows are a tile's all.
  bool in_integers() const {
    const int rows = tile_->num_rows();
    return geometry_.integers && rows > 0 && kernels_.of(Source::kCoded).score_coded[rows] != nullptr;
  }

  void RoundQueries(int rows) {
    constexpr float kGreatest = 32767;
    const float scale = QueryScale(task_);
    const auto dim = static_cast<size_t>(task_.key_dim), stride = dim + dim % 2;
    for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
      float greatest = 0;
      for (size_t d = 0; d < dim; ++d) {
        const float query = space_.query_rows[r][d] * scale;
        space_.coded_floats[r * dim + d] = query;
        greatest = std::max(greatest, std::abs(query));
      }
      space_.coded_units[r] = greatest / kGreatest;
      const float inverse = greatest > 0 ? kGreatest / greatest : 0;
      int16_t* const to = space_.coded_rows + r * stride;
      for (size_t d = 0; d < dim; ++d) {
        to[d] = static_cast<int16_t>(std::lrintf(space_.coded_floats[r * dim + d] * inverse));
      }
      if (dim < stride) to[dim] = 0;
    }
  }

  int16_t* CodedValuesAt(int p) const {
    return space_.coded_values + static_cast<size_t>(p * kPageEntries) * geometry_.acc_stride;
  }
  // The p-th page and those after it, which take less time together. Returns the number of pages.
  int ScoreInIntegers(const StepWalker::Step& step, int p, const Lookahead& lookahead) {
    CodedScoreArgs pages[kStepPages] = {};
    int count = 0;
    for (; p + count < step.num_pages; ++count) {
      const PageRef& ref = step.refs[p + count];
      if (!ref.layout->format.coded() || (count > 0 && ref.layout != pages[0].layout)) break;
      pages[count] = {.layout = ref.layout,
                      .page = ref.page,
                      .queries = space_.coded_floats,
                      .rounded = space_.coded_rows,
                      .units = space_.coded_units,
                      .scores = scores_ + (p + count) * kPageEntries,
                      .values = CodedValuesAt(p + count),
                      .value_steps = space_.coded_steps + (p + count) * kPageEntries,
                      .prefetch = lookahead.WithKeys(p + count),
                      .is_read = false};
    }
    if (count > 0) kernels_.of(Source::kCoded).score_coded[tile_->num_rows()](pages, count);
    for (int i = 0; i < count; ++i) is_scored_[p + i] = pages[i].is_read;
    return count;
  }
  void AccumulateInIntegers(const PageRef& ref, int p) {
    CodedAccumulateArgs args = {};
    args.weights = weights_ + p * kPageEntries;
    args.values = CodedValuesAt(p);
    args.value_steps = space_.coded_steps + p * kPageEntries;
    args.groups = ref.layout->value_groups();
    args.acc = acc_.values;
    args.acc_stride = geometry_.acc_stride;
    kernels_.of(Source::kCoded).accumulate_coded[tile_->num_rows()](args);
  }

  void PackBlocks(const float* const* query_rows, size_t dim, float* blocks) const {
    const float scale = QueryScale(task_);
    for (int block = 0; block < num_blocks_; ++block) {
      const int begin = BlockBegin(block);
      const int block_rows = BlockBegin(block + 1) - begin;
      float* packed = blocks + static_cast<size_t>(begin) * dim;
      for (int r = 0; r < block_rows; ++r) {
        const float* query = query_rows[begin + r];
        for (size_t d = 0; d < dim; ++d)
          packed[d * static_cast<size_t>(block_rows) + static_cast<size_t>(r)] = query[d] * scale;
      }
    }
  }

  float* KeysAt(int p) const { return space_.keys + static_cast<size_t>(p * kPageEntries * task_.key_dim); }
  float* ValuesAt(int p) const { return space_.values + static_cast<size_t>(p * kPageEntries) * geometry_.acc_stride; }

  void Convert(const StepWalker::Step& step) {
    for (int p = 0; p < step.num_pages; ++p) {
      const PageRef& ref = step.refs[p];
      kernels_.ConvertPage(*ref.layout, ref.page, ref.count, KeysAt(p), ValuesAt(p), geometry_.acc_stride);
    }
  }

  // What kernels that read pages as they are stored find instead of coded keys and values: keys of one page at a time,
  // and values of all that the step has.
  static Source ReadAs(KvFormat format) { return IsCoded(format) ? Source::kF32 : SourceOf(format); }
  const void* StoredKeys(const PageRef& ref, int p) const {
    if (!ref.layout->format.coded()) return ref.page + ref.layout->key_offset;
    kernels_.ConvertPage(*ref.layout, ref.page, ref.count, space_.keys, ValuesAt(p), geometry_.acc_stride);
    return space_.keys;
  }
  const void* StoredValues(const PageRef& ref, int p) const {
    return ref.layout->format.coded() ? static_cast<const void*>(ValuesAt(p)) : ref.page + ref.layout->value_offset;
  }

  void Score(const StepWalker::Step& step, const Lookahead& lookahead) {
    std::fill_n(is_scored_, kStepPages, false);
    int next_scored = 0;  // but for those that come with the page before
    for (int p = 0; p < step.num_pages; ++p) {
      const PageRef& ref = step.refs[p];
      ScoreArgs args = {};
      args.key_dim = static_cast<size_t>(ref.layout->key_dim);
      const bool pruned = ref.layout->key_dim < task_.key_dim;
      const float* const queries = pruned ? space_.pruned_queries : space_.queries;
      const float* const* const query_rows = pruned ? space_.pruned_rows : space_.query_rows;
      args.key_scales = ref.page + ref.layout->key_scale_offset;
      const SourceKernels& kernels = kernels_.of(geometry_.direct ? ReadAs(ref.layout->format.key) : Source::kF32);
      Prefetch prefetch;
      if (geometry_.direct) {
        prefetch = lookahead.WithKeys(p);
        Fetch(ref.page + ref.layout->position_offset, sizeof(int32_t) * kPageEntries);
        // Whoever observes writes to them next.
        if (task_.observed != nullptr) {
          Fetch(ref.page + ref.layout->column_offset,
                sizeof(float) * kPageEntries * static_cast<size_t>(ref.layout->num_columns));
        }
        Fetch(ref.page + ref.layout->value_scale_offset, ref.layout->value_scale_bytes());
        // Kernels that find decoded keys fetch nothing.
        if (ref.layout->format.coded() && !in_integers()) Fetch(prefetch.at, prefetch.bytes);
      }
      if (in_integers() && p == next_scored) next_scored = p + std::max(ScoreInIntegers(step, p, lookahead), 1);
      if (is_scored_[p]) continue;
      args.keys = geometry_.direct ? StoredKeys(ref, p) : KeysAt(p);
      for (int block = 0; block < num_blocks_; ++block) {
        const int begin = BlockBegin(block);
        args.queries = queries + static_cast<size_t>(begin) * args.key_dim;
        args.query_rows = query_rows + begin;
        args.query_scale = QueryScale(task_);
        args.scores = scores_ + begin * kStepEntries + p * kPageEntries;
        args.prefetch = PartOf(prefetch, block);
        kernels.score[BlockBegin(block + 1) - begin](args);
      }
    }
  }

  // What weights of a page are multiplied with, or null.
  const float* ValueScales(const PageRef& ref) const {
    if (!geometry_.direct || !HasEntryScales(ref.layout->format.value)) return nullptr;
    return reinterpret_cast<const float*>(ref.page + ref.layout->value_scale_offset);
  }

  void Softmax(const StepWalker::Step& step) {
    StepPage pages[kStepPages];
    for (int p = 0; p < step.num_pages; ++p) {
      const PageRef& ref = step.refs[p];
      pages[p] = {ref.layout->positions(ref.page), task_.observed == nullptr ? ValueScales(ref) : nullptr, ref.count,
                  step.masked[p]};
    }
    SoftmaxArgs args = {};
    args.scores = scores_;
    args.rows = tile_->num_rows();
    args.rules = space_.rules;
    args.pages = pages;
    args.num_pages = step.num_pages;
    args.soft_cap = task_.soft_cap * kLog2E;
    args.alibi = task_.alibi_slopes != nullptr;
    args.max = acc_.max;
    args.sum = acc_.sum;
    args.alpha = space_.alpha;
    kernels_.softmax(args);
  }

  // Leaves the step's weights where they are; those that values need scaled go elsewhere.
  void Remember(const StepWalker::Step& step) {
    const int rows = tile_->num_rows();
    std::memcpy(acc_.seen.MaximaOf(*acc_.seen.num_steps), acc_.max, sizeof(float) * static_cast<size_t>(rows));
    ObservedSteps::Step& seen = acc_.seen.steps[(*acc_.seen.num_steps)++];
    seen.num_pages = step.num_pages;
    bool scaled = false;
    for (int p = 0; p < step.num_pages; ++p) {
      seen.first_entries[p] = step.refs[p].first_entry;
      scaled |= ValueScales(step.refs[p]) != nullptr;
    }
    if (!scaled) return;
    weights_ = space_.scores;
    std::memcpy(weights_, scores_, sizeof(float) * static_cast<size_t>(rows) * kStepEntries);
    for (int p = 0; p < step.num_pages; ++p) {
      const float* scales = ValueScales(step.refs[p]);
      for (int r = 0; r < rows && scales != nullptr; ++r) {
        float* at = weights_ + r * kStepEntries + p * kPageEntries;
        for (int j = 0; j < kPageEntries; ++j) at[j] *= scales[j];
      }
    }
  }

  // What was accumulated under former maxima.
  void Rescale() {
    for (int r = 0; r < tile_->num_rows(); ++r) {
      if (space_.alpha[r] == 1.0f) continue;
      kernels_.scale(acc_.values + static_cast<size_t>(r) * geometry_.acc_stride, geometry_.acc_stride,
                     space_.alpha[r]);
    }
  }

  void Accumulate(const StepWalker::Step& step, const Lookahead& lookahead) {
    AccumulateArgs args = {};
    args.value_dim = static_cast<size_t>(task_.value_dim);
    args.acc_stride = geometry_.acc_stride;
    if (!geometry_.direct) {
      args.count = step.num_pages * kPageEntries;
      args.values = space_.values;
      args.value_stride = geometry_.acc_stride;
      AccumulateBlocks(Source::kF32, weights_, args);
      return;
    }
    for (int p = 0; p < step.num_pages; ++p) {
      const PageRef& ref = step.refs[p];
      args.count = ref.count;
      args.values = StoredValues(ref, p);
      const bool grouped = IsGrouped(ref.layout->format.value);
      args.value_stride = ref.layout->format.coded() ? geometry_.acc_stride
                          : grouped                  ? ref.layout->value_row_bytes()
                                                     : args.value_dim;
      args.value_scales = ref.page + ref.layout->value_scale_offset;
      args.prefetch = lookahead.WithValues(p);
      if (ref.layout->format.coded()) Fetch(args.prefetch.at, args.prefetch.bytes);
      if (p < lookahead.next().num_pages) {
        const PageRef& after = lookahead.next().refs[p];
        Fetch(after.page + after.layout->key_scale_offset, after.layout->key_scale_bytes());
      }
      if (is_scored_[p]) {
        AccumulateInIntegers(ref, p);
      } else {
        AccumulateBlocks(ReadAs(ref.layout->format.value), weights_ + p * kPageEntries, args);
      }
    }
  }

  void AccumulateBlocks(Source source, const float* weights, AccumulateArgs args) {
    const Prefetch prefetch = args.prefetch;
    for (int block = 0; block < num_blocks_; ++block) {
      const int begin = BlockBegin(block);
      args.weights = weights + begin * kStepEntries;
      args.acc = acc_.values + static_cast<size_t>(begin) * geometry_.acc_stride;
      args.prefetch = PartOf(prefetch, block);
      kernels_.of(source).accumulate[BlockBegin(block + 1) - begin](args);
    }
  }

  const AttentionTask& task_;
  const Geometry& geometry_;
  const PageKernels& kernels_;
  const Workspace& space_;
  UnitProducts unit_;
  const Tile* tile_ = nullptr;
  KeyChannels pruned_;  // of the tile's head
  int num_blocks_ = 0;
  Accumulator acc_;
  bool fetched_;  // the step at hand, while the one before it was computed
  bool is_scored_[kStepPages] = {};  // pages of the step at hand, in integers
  float* scores_ = nullptr;   // of the step at hand: [rows, kStepEntries], weights after the softmax
  float* weights_ = nullptr;  // what values are multiplied with
};

}  // namespace pith::kernels

#endif  // PITH_KERNELS_ATTENTION_WORKER_H_
