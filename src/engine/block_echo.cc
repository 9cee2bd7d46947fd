#include "engine/block_echo.h"

#include <algorithm>
#include <numeric>

#include "cache/page_entries.h"
#include "engine/entry_counts.h"
#include "engine/layer_ops.h"
#include "engine/second_reading.h"
#include "host/halves.h"

namespace pith {
namespace {

// Of fewer rows each is paid much, as there are no others: they wait for a repetition.
constexpr int kLeastRows = 16;
// Where entries stand in, of those that were read: with fewer that may stay, a repetition says better what they do.
constexpr double kMuch = 0.6;
// Whose probabilities are held at once.
constexpr int kRowsAtOnce = 32;

}  // namespace

bool BlockEcho::Wants(const RowGroup& group) {
  const SequenceSetup& setup = *group.sequence->setup;
  if (!setup.rereads_blocks() || !setup.policy().repeat()->by_echo || group.num_rows < kLeastRows ||
      !group.sequence->evicts_while_running()) {
    return false;
  }
  if (setup.policy().residue() == nullptr) return true;
  const int most = setup.keep_entries > 0 ? setup.keep_entries : group.sequence->most_entries();
  return most >= kMuch * (group.start + group.num_rows);
}

bool BlockEcho::CanObserve(std::span<const HeadCache> heads, const RowGroup& group, int layer) const {
  const int column = group.sequence->setup->active.front().first_column;
  return core_.shape(layer).rotation && std::ranges::all_of(heads, [&](const HeadCache& head) {
           const int before = head.num_entries() - group.num_rows - 1;
           return head.num_lower_entries() == 0 &&
                  (before < 0 ||
                   head.layout_of(before).column(head.page_of(before), column)[before % kP] < kNotRepeated);
         });
}

void BlockEcho::DescribeHead(const HeadCache& cache, const RowGroup& group, size_t h) {
  Head& head = heads_[h];
  const ResolvedRecipe& recipe = group.sequence->setup->active.front().recipe;
  const int count = cache.num_entries(), low = cache.num_low_entries();
  // With what stands before the block in its first page.
  const int begin = (count - num_rows_) / kP * kP;
  const int prefix = std::min(EntriesBefore(cache, PrefixOf(*group.sequence, recipe)), low > 0 ? low : begin);
  head.first = count - num_rows_ - begin;
  head.segments.clear();
  if (begin >= prefix && prefix > 0) {
    head.segments.push_back({&cache.layout_of(0), cache.pages().data(), prefix});
    head.first += prefix;
  }
  head.segments.push_back({&cache.layout(), cache.pages().data() + begin / kP, count - begin});
  head.segments.push_back({&cache.layout(), head.echo_pages.data(), num_rows_});
  entries_[h] = {};
  entries_[h].segments = head.segments;
}

void BlockEcho::MakeRoomForRows() {
  const int group = task_.num_heads / task_.num_kv_heads;
  size_t total = 0;
  for (const kernels::HeadEntries& head : entries_) {
    total += static_cast<size_t>(group * kRowsAtOnce * head.num_entries());
  }
  float* at = probability_buffer_.Floats(total);
  probabilities_.resize(entries_.size());
  for (size_t h = 0; h < entries_.size(); ++h) {
    probabilities_[h] = at;
    at += static_cast<size_t>(group * kRowsAtOnce * entries_[h].num_entries());
  }
}

void BlockEcho::Describe(const AttentionCall& call, const RowGroup& group) {
  const LayerShape& shape = core_.shape(call.cache_layer);
  const LayerOps::LayerParams& params = core_.ops->params(call.cache_layer);
  const std::span<const HeadCache> caches =
      std::as_const(*core_.cache).heads(group.sequence->cache_id, call.cache_layer);
  observes_ = CanObserve(caches, group, call.cache_layer);
  if (!observes_) return;
  num_rows_ = group.num_rows;
  positions_.resize(static_cast<size_t>(num_rows_)), echo_positions_.resize(static_cast<size_t>(num_rows_));
  std::iota(positions_.begin(), positions_.end(), group.start);
  std::iota(echo_positions_.begin(), echo_positions_.end(), group.start + num_rows_);
  factors_.resize(2 * shape.rotation->pairs.size());
  shape.rotation->TurnOn(num_rows_, factors_);

  heads_.resize(std::max(heads_.size(), caches.size()));
  entries_.resize(caches.size());
  const auto num_pages = static_cast<size_t>((num_rows_ + kP - 1) / kP);
  const size_t page_bytes = caches.front().layout().page_bytes;
  std::byte* page = page_buffer_.Bytes(caches.size() * num_pages * page_bytes);
  for (size_t h = 0; h < caches.size(); ++h) {
    heads_[h].echo_pages.resize(num_pages);
    for (std::byte*& of_head : heads_[h].echo_pages) of_head = page, page += page_bytes;
    DescribeHead(caches[h], group, h);
  }
  task_ = {};
  task_.num_heads = shape.num_heads;
  task_.num_kv_heads = shape.num_kv_heads;
  task_.key_dim = shape.key_dim;
  task_.value_dim = shape.value_dim;
  task_.query_head_stride = static_cast<size_t>(shape.key_dim);
  task_.query_token_stride = static_cast<size_t>(shape.num_heads * shape.key_dim);
  task_.queries = query_buffer_.Floats(kRowsAtOnce * task_.query_token_stride);
  task_.heads = entries_.data();
  task_.scale = params.scale;
  task_.soft_cap = params.soft_cap;
  task_.alibi_slopes = params.alibi_slopes;
  task_.sinks = params.sinks;
  MakeRoomForRows();
  DescribeKept(group, core_.layers.IndexOf(call.cache_layer));
}

void BlockEcho::DescribeKept(const RowGroup& group, int global_layer) {
  keeps_ = nullptr;
  const Policy& policy = *group.sequence->setup->active.front().recipe.policy;
  if (policy.residue() == nullptr) return;
  auto kept = std::ranges::find(kept_, group.sequence, &Kept::sequence);
  if (global_layer == 0) {
    if (kept == kept_.end()) kept = kept_.insert(kept, Kept{.sequence = group.sequence, .queries = {}});
    kept->num_layers = 0;
    kept->queries = {};
    ReserveBlockReferences(core_, *group.sequence, policy, num_rows_, kept->queries);
    kept->queries.Count(num_rows_);
  }
  if (kept == kept_.end() || kept->num_layers != global_layer || kept->queries.empty()) return;
  ++kept->num_layers;
  keeps_ = &kept->queries;
}

ReferenceQueries BlockEcho::TakeQueries(const Sequence& sequence) {
  const auto kept = std::ranges::find(kept_, &sequence, &Kept::sequence);
  if (kept == kept_.end()) return {};
  ReferenceQueries queries = std::move(kept->queries);
  const bool are_all = kept->num_layers == core_.layers.count();
  kept_.erase(kept);
  return are_all ? std::move(queries) : ReferenceQueries();
}

void BlockEcho::WriteEcho(const AttentionCall& call, const RowGroup& group, const Team& team) {
  const Rotation& rotation = *core_.shape(call.cache_layer).rotation;
  const auto dim = static_cast<size_t>(task_.key_dim);
  std::vector<float> key(dim);
  std::vector<uint16_t> halves(dim);
  for (size_t h = 0; h < entries_.size(); ++h) {
    const PageLayout& layout = *heads_[h].segments.back().layout;
    for (size_t page = 0; page < heads_[h].echo_pages.size(); ++page) {
      if ((h * heads_[h].echo_pages.size() + page) % static_cast<size_t>(team.nth) != static_cast<size_t>(team.ith))
        continue;
      const int first = static_cast<int>(page) * kP, end = std::min(first + kP, num_rows_);
      for (int t = first; t < end; ++t) {
        const auto row = static_cast<size_t>(group.first_row + t);
        ToFloats(call.keys + row * call.key_token_stride + h * call.key_head_stride, dim, key.data());
        rotation.Apply(factors_, key.data());
        ToHalves(key.data(), dim, halves.data());
        kernels::WriteEntryF16(layout, heads_[h].echo_pages[page], t - first, halves.data(),
                               call.values + row * call.value_token_stride + h * call.value_head_stride,
                               echo_positions_[static_cast<size_t>(t)]);
      }
    }
  }
}

void BlockEcho::TurnQueries(const AttentionCall& call, const RowGroup& group, int from, int count, const Team& team) {
  const Rotation& rotation = *core_.shape(call.cache_layer).rotation;
  const int global = core_.layers.IndexOf(call.cache_layer);
  for (int t = team.ith; t < count; t += team.nth) {
    uint16_t* kept = keeps_ != nullptr && keeps_->Keeps(from + t) ? keeps_->row(global, from + t) : nullptr;
    float* to = query_buffer_.Floats(0) + static_cast<size_t>(t) * task_.query_token_stride;
    for (int h = 0; h < task_.num_heads; ++h, to += task_.query_head_stride) {
      const float* query = call.queries + static_cast<size_t>(group.first_row + from + t) * call.query_token_stride +
                           static_cast<size_t>(h) * call.query_head_stride;
      std::copy_n(query, task_.key_dim, to);
      rotation.Apply(factors_, to);
      if (kept != nullptr) ToHalves(to, static_cast<size_t>(task_.key_dim), kept + h * task_.key_dim);
    }
  }
}

void BlockEcho::ObserveHead(const Policy& policy, int layer, size_t h, int from, int count) {
  Head& head = heads_[h];
  const std::vector<ColumnSpec> columns = policy.columns();
  const auto rows = static_cast<size_t>(num_rows_), all = static_cast<size_t>(entries_[h].num_entries());
  const int group = task_.num_heads / task_.num_kv_heads;
  if (from == 0) {
    head.columns.clear();
    for (const ColumnSpec& column : columns) head.columns.resize(head.columns.size() + rows, column.initial);
  }
  head.paid.resize(static_cast<size_t>(group * count) * rows);
  for (size_t row = 0; row < static_cast<size_t>(group * count); ++row) {
    std::copy_n(probabilities_[h] + row * all + head.first, rows, head.paid.data() + row * rows);
  }
  head.column_pointers.clear();
  for (size_t c = 0; c < columns.size(); ++c) head.column_pointers.push_back(head.columns.data() + c * rows);
  policy.Observe(
      Observation{
          .layer = layer,
          .kv_head = static_cast<int>(h),
          .group = group,
          .num_queries = count,
          .num_entries = num_rows_,
          .probabilities = head.paid.data(),
          .query_positions = std::span(echo_positions_).subspan(static_cast<size_t>(from), static_cast<size_t>(count)),
          .positions = positions_},
      head.column_pointers);
}

void BlockEcho::WriteColumns(const ActiveRecipe& active, size_t h, HeadCache& cache) const {
  const int first = cache.num_entries() - num_rows_;
  for (int i = 0; i < num_rows_; ++i) {
    const int entry = first + i;
    for (size_t c = 0; c < heads_[h].column_pointers.size(); ++c) {
      cache.layout_of(entry).column(cache.page_of(entry), active.first_column + static_cast<int>(c))[entry % kP] =
          heads_[h].column_pointers[c][i];
    }
  }
}

void BlockEcho::Observe(const AttentionCall& call, const RowGroup& group, const Team& team) {
  team.One([&] { Describe(call, group); });
  if (!observes_) return team.Sync();
  const ActiveRecipe& active = group.sequence->setup->active.front();
  const std::span<HeadCache> caches = core_.cache->heads(group.sequence->cache_id, call.cache_layer);
  WriteEcho(call, group, team);
  for (int from = 0; from < num_rows_; from += kRowsAtOnce) {
    const int count = std::min(kRowsAtOnce, num_rows_ - from);
    if (team.ith == 0) {
      task_.num_queries = count;
      task_.query_positions = echo_positions_.data() + from;
    }
    team.All([&] { TurnQueries(call, group, from, count, team); });
    team.All([&] { kernels::RunProbabilities(task_, probabilities_.data(), team); });
    team.All([&] {
      for (size_t h = static_cast<size_t>(team.ith); h < caches.size(); h += static_cast<size_t>(team.nth)) {
        ObserveHead(*active.recipe.policy, call.cache_layer, h, from, count);
        if (from + count == num_rows_) WriteColumns(active, h, caches[h]);
      }
    });
  }
}

}  // namespace pith
