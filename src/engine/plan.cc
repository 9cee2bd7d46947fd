#include "engine/plan.h"

#include <algorithm>
#include <array>
#include <string>

#include <fmt/format.h>

#include "engine/cache_formats.h"
#include "engine/repeat.h"

namespace pith {
namespace {

constexpr int kP = kPageEntries;
constexpr std::array<int, 5> kBlockSizes = {512, 256, 128, 64, 32};
// Page tables may grow beyond what is in use (vectors double): pointer bytes per page, with room.
constexpr size_t kTableBytesPerPage = PagePool::kTableBytesPerPage + 2 * sizeof(std::byte*);
// A cascade shrinks the layers about so often per block: each time costs a selection over all of them.
constexpr int kCascadeSteps = 8;
// Spare page-table room of each head, so that decoding does not allocate.
constexpr size_t kSpareTableBytesPerHead = 16 * sizeof(std::byte*);

size_t PagesFor(int entries) { return static_cast<size_t>((std::max(entries, 0) + kP - 1) / kP); }

// Heads and pages that a plan must hold, by kind of layer.
struct Shape {
  size_t page_bytes = 0;
  size_t global_heads = 0;
  size_t all_heads = 0;
  size_t window_pages = 0;       // of one sequence, between blocks
  size_t low_page_bytes = 0;     // 0: no low format
  size_t token_pages = 0;        // that all sequences may begin when each head takes a token
  size_t moment_bytes = 0;       // of one sequence's queries
  size_t later_bytes = 0;        // of what later recipes need beside
  size_t widest_layer_heads = 0;
};

size_t LowPageBytes(const std::vector<PlannedLayer>& layers, PageFormat format) {
  size_t bytes = 0;
  for (const PlannedLayer& layer : layers) {
    if (layer.num_kv_heads == 0) continue;
    const PageLayout& own = layer.layout;
    bytes = std::max(bytes, PageLayout::Make(format, own.key_dim, own.value_dim, own.num_columns).page_bytes);
  }
  return bytes;
}

// Beside a fork's pages: what a second reading finds, and its instruction.
size_t RepeatBytes(const Shape& shape, int num_ctx) {
  constexpr int kLongestInstruction = 256;
  return shape.global_heads * static_cast<size_t>(num_ctx) * sizeof(float) +
         shape.all_heads * PagesFor(kLongestInstruction) * shape.page_bytes;
}

Shape ShapeOf(const ModelInfo& info, const std::vector<PlannedLayer>& layers, const EngineOptions& options) {
  const int num_ctx = options.num_ctx;
  Shape shape;
  const PageFormat format = options.recipe.format.value_or(options.format);
  if (format.whole_pages()) shape.low_page_bytes = LowPageBytes(layers, format);
  for (size_t i = 0; i < layers.size(); ++i) {
    const size_t heads = static_cast<size_t>(layers[i].num_kv_heads);
    if (heads == 0) continue;
    shape.page_bytes = std::max(shape.page_bytes, layers[i].layout.page_bytes);
    shape.all_heads += heads;
    shape.widest_layer_heads = std::max(shape.widest_layer_heads, heads);
    if (info.layers[i].kind == LayerKind::kGlobal) {
      shape.global_heads += heads;
    } else {
      // The window, the token that enters it, and a page's worth of entries that wait to be dropped.
      shape.window_pages += heads * (PagesFor(std::min(info.window, num_ctx) + kP) + 1);
    }
  }
  shape.token_pages = static_cast<size_t>(std::max(options.max_sequences, 1)) * (shape.all_heads / kP + 1);
  const auto reads_again = [](const Recipe& recipe) { return recipe.policy != nullptr && recipe.policy->repeat() != nullptr; };
  if (reads_again(options.recipe) || std::any_of(options.later_recipes.begin(), options.later_recipes.end(), reads_again)) {
    shape.later_bytes += RepeatBytes(shape, num_ctx);
  }
  const auto reads_moments = [](const Recipe& recipe) {
    return recipe.policy != nullptr && (recipe.policy->needs() & kNeedQueryMoments) != 0;
  };
  if (reads_moments(options.recipe) || std::ranges::any_of(options.later_recipes, reads_moments)) {
    shape.moment_bytes = QueryMoments::Bytes(MomentsOf(info));
  }
  for (const Recipe& recipe : options.later_recipes) {
    size_t page_bytes = 0;
    for (const PageFormat to : ConversionsOf(recipe)) page_bytes = std::max(page_bytes, LowPageBytes(layers, to) + kTableBytesPerPage);
    const size_t pages = static_cast<size_t>(std::max(options.max_sequences, 1)) * shape.all_heads * (PagesFor(num_ctx) + 1);
    shape.later_bytes += pages * page_bytes;
  }
  return shape;
}

// Pages of a block in flight: of one layer, or of all where eviction comes at the end of the block.
size_t TransientPages(const Shape& shape, const EvictionStyle& style, int block_tokens) {
  const size_t layers = static_cast<size_t>(style.layers_in_flight);
  const size_t heads = style.in_layer ? std::min(layers * shape.widest_layer_heads, shape.all_heads) : shape.all_heads;
  // In a cascade all heads take a token before one of them is rid of any.
  return heads * (PagesFor(block_tokens) + 1) + (style.cascades ? shape.token_pages : 0);
}

// Pages of groups are written anew when entries leave them, so evictions are rarer there.
int SlackFor(size_t pages_per_head, bool low) {
  if (pages_per_head < 2) return kP / 4;
  return kP * static_cast<int>(std::clamp<size_t>(pages_per_head / (low ? 5 : 8), 1, 8));
}

// Divides `bytes` into pages. Returns those that a global head of one sequence may fill.
size_t DividePages(MemoryPlan* plan, const Shape& shape, const EvictionStyle& style, size_t sequences, size_t bytes) {
  const size_t heads = sequences * std::max<size_t>(shape.global_heads, 1), window = sequences * shape.window_pages;
  const size_t transient = TransientPages(shape, style, plan->block_tokens);
  const auto per_head = [heads](size_t pages, size_t needed) { return pages <= needed ? 0 : (pages - needed) / heads; };
  const size_t page_cost = shape.page_bytes + kTableBytesPerPage;
  if (shape.low_page_bytes == 0) {
    plan->num_pages = bytes / page_cost;
    return per_head(plan->num_pages, transient + window);
  }
  // What is new, and each head's page that is not yet full; the rest of the bytes is for full pages.
  plan->num_pages = transient + sequences * shape.all_heads;
  if (bytes <= plan->num_pages * page_cost) return 0;
  plan->num_low_pages = (bytes - plan->num_pages * page_cost) / (shape.low_page_bytes + kTableBytesPerPage);
  return per_head(plan->num_low_pages, window);
}

size_t FixedBytes(const MemoryPlan& plan, const Shape& shape, size_t sequences) {
  return plan.block_bytes + plan.recurrent_bytes + sequences * shape.moment_bytes +
         sequences * shape.all_heads * (KvCache::kHeadBytes + kSpareTableBytesPerHead);
}

// The plan for one block size; keep_entries == 0 if nothing can be kept.
MemoryPlan PlanFor(const ModelInfo& info, const Shape& shape, const EvictionStyle& style, const EngineOptions& options,
                   int block_tokens) {
  const size_t sequences = static_cast<size_t>(std::max(options.max_sequences, 1));
  MemoryPlan plan;
  plan.budget_bytes = options.budget_bytes;
  plan.block_tokens = block_tokens;
  plan.block_bytes = BlockBytes(info, block_tokens);
  plan.recurrent_bytes = info.recurrent_bytes * (sequences + 1);
  plan.moment_bytes = sequences * shape.moment_bytes;
  const size_t fixed = FixedBytes(plan, shape, sequences);
  if (fixed >= plan.budget_bytes) return plan;
  const size_t pages = DividePages(&plan, shape, style, sequences, plan.budget_bytes - fixed);
  const size_t wasted = style.ragged ? 1 : 0;
  if (pages <= wasted) return plan;
  plan.slack_entries = SlackFor(pages - wasted, shape.low_page_bytes > 0);
  plan.keep_entries = static_cast<int>(pages - wasted) * kP - plan.slack_entries;
  return plan;
}

// Room for everything: each sequence up to num_ctx, nothing ever evicted for lack of pages.
size_t UnlimitedBudget(const ModelInfo& info, const Shape& shape, const EngineOptions& options, int block_tokens) {
  const size_t sequences = static_cast<size_t>(std::max(options.max_sequences, 1));
  MemoryPlan plan;
  plan.block_bytes = BlockBytes(info, block_tokens);
  plan.recurrent_bytes = info.recurrent_bytes * (sequences + 1);
  const size_t kept = sequences * shape.all_heads * (PagesFor(options.num_ctx) + 2);
  const size_t in_flight = shape.all_heads * (PagesFor(block_tokens) + 1);
  const size_t page_cost = shape.page_bytes + kTableBytesPerPage;
  size_t pages = (kept + in_flight) * page_cost;
  if (shape.low_page_bytes > 0) {
    pages = kept * (shape.low_page_bytes + kTableBytesPerPage) + (in_flight + sequences * shape.all_heads) * page_cost;
  }
  return FixedBytes(plan, shape, sequences) + shape.later_bytes + pages;
}

}  // namespace

QueryMoments::Shape MomentsOf(const ModelInfo& info) {
  QueryMoments::Shape shape{.num_layers = CountLayers(info, LayerKind::kGlobal)};
  for (const LayerShape& layer : info.layers) {
    if (layer.kind != LayerKind::kGlobal) continue;
    shape.num_heads = std::max(shape.num_heads, layer.num_heads);
    shape.key_dim = std::max(shape.key_dim, layer.key_dim);
  }
  return shape;
}

size_t BlockBytes(const ModelInfo& info, int block_tokens) {
  const size_t cells = static_cast<size_t>((block_tokens + 255) / 256 * 256);
  size_t stored = 0, passing = 0;
  for (const LayerShape& layer : info.layers) {
    if (layer.kind == LayerKind::kNone) continue;
    const int dims = layer.key_dim + (layer.value_in_key ? 0 : layer.value_dim);
    const size_t row_bytes = static_cast<size_t>(layer.num_kv_heads * dims) * sizeof(uint16_t);
    if (layer.bypasses_block) {
      passing = std::max(passing, static_cast<size_t>(block_tokens) * row_bytes);
    } else {
      stored += cells * row_bytes;
    }
  }
  return stored + passing;
}

size_t FullTokenBytes(const ModelInfo& info) {
  size_t bytes = 0;
  for (const LayerShape& layer : info.layers) {
    if (layer.kind == LayerKind::kNone) continue;
    bytes += static_cast<size_t>(layer.num_kv_heads * (layer.key_dim + layer.value_dim)) * sizeof(uint16_t);
  }
  return bytes;
}

Result<MemoryPlan> PlanMemory(const ModelInfo& info, const std::vector<PlannedLayer>& layers, const EvictionStyle& style,
                              const EngineOptions& options) {
  const Shape shape = ShapeOf(info, layers, options);
  EngineOptions wanted = options;
  const bool unlimited = options.budget_bytes == 0;
  MemoryPlan plan;
  const int fixed_block[] = {options.block_tokens};
  const std::span<const int> sizes =
      options.block_tokens > 0 ? std::span<const int>(fixed_block) : std::span<const int>(kBlockSizes);
  for (const int block_tokens : sizes) {
    if (unlimited) wanted.budget_bytes = UnlimitedBudget(info, shape, options, block_tokens);
    const MemoryPlan candidate = PlanFor(info, shape, style, wanted, block_tokens);
    if (candidate.keep_entries > plan.keep_entries) plan = candidate;
    // The largest block whose own memory and entries in flight leave two thirds of the budget to what is kept.
    const size_t in_flight = candidate.block_bytes + TransientPages(shape, style, block_tokens) * shape.page_bytes;
    if (candidate.keep_entries > 0 && in_flight <= wanted.budget_bytes / 3) {
      plan = candidate;
      break;
    }
  }
  if (plan.keep_entries <= 0) {
    const int smallest = sizes.back();
    const size_t sequences = static_cast<size_t>(std::max(options.max_sequences, 1));
    plan.block_bytes = BlockBytes(info, smallest);
    plan.recurrent_bytes = info.recurrent_bytes * (sequences + 1);
    const size_t pages = sequences * (shape.window_pages + shape.global_heads * (style.ragged ? 2 : 1));
    const size_t transient = TransientPages(shape, style, smallest);
    const size_t page_cost = shape.page_bytes + kTableBytesPerPage;
    const size_t least =
        FixedBytes(plan, shape, sequences) +
        (shape.low_page_bytes == 0
             ? (transient + pages + 1) * page_cost
             : (transient + sequences * shape.all_heads) * page_cost + (pages + 1) * (shape.low_page_bytes + kTableBytesPerPage));
    return OutOfBudget(fmt::format("a KV budget of {:.2f} MiB does not hold one block of {} tokens with this model; {:.2f} MiB is "
                                   "the least that does",
                                   static_cast<double>(wanted.budget_bytes) / (1 << 20), smallest,
                                   std::max(0.01, static_cast<double>(least) / (1 << 20) + 0.005)));
  }
  if (options.keep_entries > 0) {
    if (!unlimited && options.keep_entries > plan.keep_entries) {
      return OutOfBudget(fmt::format("the KV budget holds {} entries per head, not {}", plan.keep_entries, options.keep_entries));
    }
    plan.keep_entries = options.keep_entries;
    plan.slack_entries = std::min(plan.slack_entries, std::max(1, options.keep_entries / 8));
  }
  return plan;
}

std::vector<PlannedLayer> LayersOf(const ModelInfo& info, PageFormat entry_format, int num_columns) {
  std::vector<PlannedLayer> layers;
  for (const LayerShape& shape : info.layers) {
    PlannedLayer layer;
    if (shape.kind != LayerKind::kNone) {
      const int columns = shape.kind == LayerKind::kGlobal ? num_columns : 0;
      layer.num_kv_heads = shape.num_kv_heads;
      layer.layout = PageLayout::Make(entry_format, shape.key_dim, shape.value_dim, columns);
    }
    layers.push_back(layer);
  }
  return layers;
}

std::vector<CacheLayer> CacheLayersOf(const ModelInfo& info) {
  std::vector<CacheLayer> layers;
  for (const LayerShape& shape : info.layers) {
    CacheLayer layer;
    if (shape.kind != LayerKind::kNone) {
      layer = {shape.num_kv_heads, shape.key_dim, shape.value_dim, shape.kind == LayerKind::kGlobal};
    }
    layers.push_back(layer);
  }
  return layers;
}

EvictionStyle StyleOf(const ModelInfo& info, const EngineOptions& options) {
  const Policy* policy = options.recipe.policy.get();
  EvictionStyle style;
  style.evicts = options.compress == CompressMode::kBlock && policy != nullptr && !policy->keeps_everything();
  const bool shares = std::any_of(info.layers.begin(), info.layers.end(), [](const LayerShape& layer) { return layer.shared; });
  // Pages in few bits are encoded again whenever entries leave them: once a block must do.
  const bool low = options.recipe.format.value_or(options.format).whole_pages();
  style.cascades = !shares && !low && style.evicts && !policy->layer_local() && policy->cascades();
  style.in_layer = !shares && (!style.evicts || policy->layer_local() || style.cascades);
  if (style.cascades) style.layers_in_flight = std::max(1, CountLayers(info, LayerKind::kGlobal) / kCascadeSteps);
  style.ragged = style.evicts && policy->ragged();
  return style;
}

Result<BudgetSplit> SplitBudget(const ModelInfo& info, const EngineOptions& wanted) {
  const EngineOptions options = Settled(info, wanted);
  PITH_ASSIGN_OR_RETURN(const CacheFormats formats, SettleFormats(options));
  const Policy* policy = options.recipe.policy.get();
  const int num_columns = policy != nullptr ? static_cast<int>(PageColumns(*policy).size()) : 0;
  const std::vector<PlannedLayer> layers = LayersOf(info, formats.entry, num_columns);
  const EvictionStyle style = StyleOf(info, options);
  PITH_ASSIGN_OR_RETURN(const MemoryPlan plan, PlanMemory(info, layers, style, options));
  const Shape shape = ShapeOf(info, layers, options);
  const bool low = shape.low_page_bytes > 0;
  const size_t page_bytes = low ? shape.low_page_bytes : shape.page_bytes;  // of what stays
  BudgetSplit split;
  split.format = formats.low.value_or(formats.entry);
  split.block_tokens = plan.block_tokens;
  split.keep_entries = shape.global_heads > 0 ? plan.keep_entries : 0;
  split.block_bytes = plan.block_bytes;
  split.recurrent_bytes = plan.recurrent_bytes;
  split.table_bytes = FixedBytes(plan, shape, 1) - plan.block_bytes - plan.recurrent_bytes +
                      (plan.num_pages + plan.num_low_pages) * kTableBytesPerPage;
  split.in_flight_bytes = (low ? plan.num_pages : TransientPages(shape, style, plan.block_tokens)) * shape.page_bytes;
  split.window_bytes = shape.window_pages * page_bytes;
  const size_t left = plan.budget_bytes - split.block_bytes - split.recurrent_bytes - split.table_bytes - split.in_flight_bytes -
                      split.window_bytes;
  const size_t per_head = PagesFor(plan.keep_entries + plan.slack_entries) + (style.ragged ? 1 : 0);
  split.global_bytes = std::min(left, shape.global_heads * per_head * page_bytes);
  split.unused_bytes = left - split.global_bytes;
  return split;
}

}  // namespace pith
