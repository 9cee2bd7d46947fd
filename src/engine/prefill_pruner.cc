#include "engine/prefill_pruner.h"

#include <algorithm>

#include "base/check.h"
#include "cache/page_entries.h"
#include "kernels/block_bounds.h"
#include "kernels/row_table.h"

namespace pith {
namespace {

size_t PageFloats(int key_dim) { return (static_cast<size_t>(key_dim) * (kP + 2) + 15) / 16 * 16; }

// Rows first_row .. first_row + num_rows - 1 of a task.
kernels::AttentionTask RowsOf(const kernels::AttentionTask& task, int first_row, int num_rows) {
  kernels::AttentionTask part = task;
  part.num_queries = num_rows;
  part.queries += static_cast<size_t>(first_row) * task.query_token_stride;
  part.query_positions += first_row;
  if (part.features != nullptr) part.features += static_cast<size_t>(first_row * task.num_heads * task.rank);
  part.output += static_cast<size_t>(first_row) * task.output_token_stride;
  return part;
}

int NumPages(const kernels::Segment& segment) { return (segment.num_entries + kP - 1) / kP; }
int PageCount(const kernels::Segment& segment, int page) { return std::min(kP, segment.num_entries - page * kP); }
const int32_t* Positions(const kernels::Segment& segment, int page) {
  return segment.layout->positions(segment.pages[page]);
}

}  // namespace

void PrefillPruner::ListBlocks(const kernels::AttentionTask& task, int32_t before) {
  const int pages_per_block = options_.block / kP;
  heads_.resize(static_cast<size_t>(task.num_kv_heads));
  size_t floats = 0;
  for (size_t h = 0; h < heads_.size(); ++h) {
    std::vector<Block>& blocks = heads_[h].blocks;
    blocks.clear();
    for (const kernels::Segment& segment : task.heads[h].segments) {
      const int full_pages = segment.num_entries / kP;
      for (int first = 0; first + pages_per_block <= full_pages; first += pages_per_block) {
        const int32_t last = Positions(segment, first + pages_per_block - 1)[kP - 1];
        if (last >= before) break;
        blocks.push_back({&segment, first, last});
      }
    }
    // Those of one storage format are in order already.
    if (task.heads[h].segments.size() > 1) {
      std::stable_sort(blocks.begin(), blocks.end(),
                       [](const Block& a, const Block& b) { return a.last_position < b.last_position; });
    }
    floats += 2 * kernels::TableFloats(static_cast<int>(blocks.size()), task.key_dim);
  }
  float* at = bounds_.Floats(floats);
  for (Head& head : heads_) {
    const size_t table = kernels::TableFloats(static_cast<int>(head.blocks.size()), task.key_dim);
    head.greatest = at;
    head.least = at + table;
    at += 2 * table;
  }
}

void PrefillPruner::AddStretch(int first_row, int num_rows, bool pruned) {
  if (num_stretches_ > 0 && !pruned && !stretches_[num_stretches_ - 1].pruned) {
    stretches_[num_stretches_ - 1].num_rows += num_rows;
    return;
  }
  if (num_stretches_ == stretches_.size()) stretches_.emplace_back();
  Stretch& stretch = stretches_[num_stretches_++];
  stretch.first_row = first_row;
  stretch.num_rows = num_rows;
  stretch.pruned = pruned;
}

int PrefillPruner::SegmentRows(const kernels::AttentionTask& task, int s) const {
  return std::min(options_.segment, task.num_queries - s * options_.segment);
}

// How many blocks segment s may choose from in each head; false if it chooses all of them anyway.
bool PrefillPruner::PlanSegment(const kernels::AttentionTask& task, int s) {
  const int32_t start = task.query_positions[s * options_.segment];
  bool pruned = false;
  for (int h = 0; h < task.num_kv_heads; ++h) {
    const std::vector<Block>& blocks = heads_[static_cast<size_t>(h)].blocks;
    Choice& own = choice(s, h);
    own.allowed = static_cast<int>(std::partition_point(blocks.begin(), blocks.end(),
                                                        [start](const Block& b) { return b.last_position < start; }) -
                                   blocks.begin());
    const int entries = own.allowed * options_.block;
    own.pruned = entries >= options_.threshold && own.allowed > options_.budget / options_.block;
    pruned |= own.pruned;
  }
  return pruned;
}

void PrefillPruner::Plan(const kernels::AttentionTask& task, const PrunedCall& call, int nth) {
  PITH_DCHECK(task.mask == kernels::MaskKind::kCausal && task.log_sum_exp == nullptr);
  num_stretches_ = 0;
  num_segments_ = num_pruned_ = 0;
  pairs_read_ = pairs_all_ = 0;
  const int segment = options_.segment;
  // Whole segments of sparse rows, and the rest of a block that is no multiple of a segment.
  const int sparse = std::min(call.num_sparse_rows, task.num_queries);
  num_segments_ = call.layer < options_.skip ? 0 : (sparse + segment - 1) / segment;
  const int32_t before = num_segments_ == 0 ? 0 : task.query_positions[(num_segments_ - 1) * segment];
  ListBlocks(task, before);
  const size_t num_choices = static_cast<size_t>(num_segments_) * heads_.size();
  if (choices_.size() < num_choices) choices_.resize(num_choices);
  int row = 0;
  for (int s = 0; s < num_segments_; ++s, row += segment) {
    const bool pruned = PlanSegment(task, s);
    num_pruned_ += pruned;
    AddStretch(row, SegmentRows(task, s), pruned);
  }
  if (row < task.num_queries) AddStretch(row, task.num_queries - row, false);
  size_t scratch = 0;
  for (size_t i = 0; i < num_stretches_; ++i) {
    const kernels::AttentionTask part = RowsOf(task, stretches_[i].first_row, stretches_[i].num_rows);
    scratch = std::max(scratch, kernels::AttentionScratchBytes(part, nth));
  }
  attention_scratch_ = attention_.Bytes(scratch);
  if (num_pruned_ == 0) return;
  const size_t row_floats = static_cast<size_t>(task.num_heads) * static_cast<size_t>(task.key_dim);
  centre_rows_ = centres_.Floats(static_cast<size_t>(num_segments_) * row_floats);
  page_rows_ = pages_.Floats(static_cast<size_t>(nth) * PageFloats(task.key_dim));
}

// Bounds of all blocks, and the middle of each segment's queries.
void PrefillPruner::Summarise(const kernels::AttentionTask& task, const Team& team) {
  const auto dim = static_cast<size_t>(task.key_dim);
  float* keys = page_rows_ + static_cast<size_t>(team.ith) * PageFloats(task.key_dim);
  float* greatest = keys + dim * kP;
  float* least = greatest + dim;
  int64_t total = 0, at = 0;
  for (const Head& head : heads_) total += static_cast<int64_t>(head.blocks.size());
  const int64_t begin = total * team.ith / team.nth, end = total * (team.ith + 1) / team.nth;
  for (const Head& head : heads_) {
    for (size_t j = 0; j < head.blocks.size(); ++j, ++at) {
      if (at < begin || at >= end) continue;
      const Block& block = head.blocks[j];
      kernels::PageBounds(*block.segment->layout, block.segment->pages + block.first_page, options_.block / kP, keys,
                          greatest, least);
      kernels::StoreRow(greatest, task.key_dim, static_cast<int>(j), head.greatest);
      kernels::StoreRow(least, task.key_dim, static_cast<int>(j), head.least);
    }
  }
  for (int item = team.ith; item < num_segments_ * task.num_heads; item += team.nth) {
    const int s = item / task.num_heads, h = item % task.num_heads;
    const float* rows = task.queries + static_cast<size_t>(s * options_.segment) * task.query_token_stride +
                        static_cast<size_t>(h) * task.query_head_stride;
    kernels::RowBounds(rows, task.query_token_stride, SegmentRows(task, s), task.key_dim, greatest, least);
    float* centre = centre_rows_ + static_cast<size_t>(item) * dim;
    for (size_t c = 0; c < dim; ++c) centre[c] = (greatest[c] + least[c]) / 2;
  }
}

void PrefillPruner::Choose(const kernels::AttentionTask& task, const PrunedCall& call, int s, int h) {
  Choice& own = choice(s, h);
  const int32_t position = task.query_positions[s * options_.segment];
  const auto allowed = static_cast<size_t>(own.allowed);
  // The two lowest layers are not fused; in others the blocks must be those of the layer before.
  const bool fuse = options_.fusion && call.complete && call.layer >= 2 && own.layer == call.layer - 1 &&
                    own.position == position && own.criticality.size() == allowed;
  const int group = task.num_heads / task.num_kv_heads;
  const auto dim = static_cast<size_t>(task.key_dim);
  own.scores.resize(static_cast<size_t>(group) * allowed);
  own.fresh.resize(allowed);
  const float* centres = centre_rows_ + (static_cast<size_t>(s) * static_cast<size_t>(task.num_heads) +
                                         static_cast<size_t>(h) * static_cast<size_t>(group)) * dim;
  const Head& head = heads_[static_cast<size_t>(h)];
  kernels::ScoreBounds(centres, group, task.key_dim, head.greatest, head.least, own.allowed, own.scores.data(),
                       allowed);
  BlockCriticality(own.scores.data(), allowed, group, own.fresh);
  if (fuse) FuseCriticality(own.criticality, own.fresh);
  own.criticality.swap(own.fresh);
  own.layer = call.complete ? call.layer : -1;
  own.position = position;
  own.is_chosen.assign(allowed, own.pruned ? 0 : 1);
  if (!own.pruned) return;
  ChooseBlocks(own.criticality, options_.budget / options_.block, options_.keep_first, own.chosen);
  for (const int32_t j : own.chosen) own.is_chosen[static_cast<size_t>(j)] = 1;
}

// The pages that segment s reads of head h: chosen blocks, and what lies in no block, up to its last query.
void PrefillPruner::ListPages(const kernels::AttentionTask& task, int s, int h) {
  Choice& own = choice(s, h);
  const std::span<const kernels::Segment> from = task.heads[h].segments;
  const std::vector<Block>& blocks = heads_[static_cast<size_t>(h)].blocks;
  const int32_t last_query = task.query_positions[s * options_.segment + SegmentRows(task, s) - 1];
  const int pages_per_block = options_.block / kP;
  own.pages.clear();
  own.segments.clear();
  size_t most = 0;
  for (const kernels::Segment& segment : from) most += static_cast<size_t>(NumPages(segment));
  own.pages.reserve(most);  // so that the spans below stay
  for (const kernels::Segment& segment : from) {
    const std::byte* const* first = own.pages.data() + own.pages.size();
    int next = 0, entries = 0;
    for (int j = 0; j < own.allowed; ++j) {
      const Block& block = blocks[static_cast<size_t>(j)];
      if (block.segment != &segment) continue;
      next = block.first_page + pages_per_block;
      if (own.is_chosen[static_cast<size_t>(j)] == 0) continue;
      own.pages.insert(own.pages.end(), segment.pages + block.first_page, segment.pages + next);
      entries += options_.block;
    }
    for (; next < NumPages(segment) && Positions(segment, next)[0] <= last_query; ++next) {
      own.pages.push_back(segment.pages[next]);
      entries += PageCount(segment, next);
    }
    if (entries > 0) own.segments.push_back({segment.layout, first, entries});
  }
}

void PrefillPruner::Run(const kernels::AttentionTask& task, const PrunedCall& call, const Team& team) {
  if (team.ith == 0) Plan(task, call, team.nth);
  team.Sync();
  if (num_pruned_ > 0) {
    Summarise(task, team);
    team.Sync();
    for (int item = team.ith; item < num_segments_ * task.num_kv_heads; item += team.nth) {
      const int s = item / task.num_kv_heads, h = item % task.num_kv_heads;
      Choose(task, call, s, h);
      ListPages(task, s, h);
    }
    team.Sync();
  }
  for (size_t i = 0; i < num_stretches_; ++i) {
    Stretch& stretch = stretches_[i];
    if (team.ith == 0 && stretch.pruned) {
      stretch.heads.resize(heads_.size());
      for (size_t h = 0; h < heads_.size(); ++h) {
        stretch.heads[h].segments = choice(stretch.first_row / options_.segment, static_cast<int>(h)).segments;
        stretch.heads[h].state = task.heads[h].state;
      }
    }
    if (team.ith == 0) {
      for (size_t h = 0; h < heads_.size(); ++h) {
        const kernels::HeadEntries& read = stretch.pruned ? stretch.heads[h] : task.heads[h];
        pairs_read_ += int64_t{read.num_entries()} * stretch.num_rows;
        pairs_all_ += int64_t{task.heads[h].num_entries()} * stretch.num_rows;
      }
    }
    team.Sync();
    kernels::AttentionTask part = RowsOf(task, stretch.first_row, stretch.num_rows);
    if (stretch.pruned) part.heads = stretch.heads.data();
    kernels::RunAttention(part, attention_scratch_, team);
    team.Sync();
  }
}

}  // namespace pith
