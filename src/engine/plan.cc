#include "engine/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>

#include "cache/page_entries.h"
#include "engine/cache_formats.h"
#include "engine/latent_reader.h"
#include "engine/less_states.h"
#include "engine/query_ring.h"
#include "engine/repeat.h"
#include "policy/act/demote.h"
#include "policy/act/residue.h"

namespace pith {
namespace {

constexpr std::array<int, 5> kBlockSizes = {512, 256, 128, 64, 32};
// Page tables may grow beyond what is in use (vectors double): pointer bytes per page, with room.
constexpr size_t kTableBytesPerPage = PagePool::kTableBytesPerPage + 2 * sizeof(std::byte*);
// Of what recipes compute with while they judge a layer, so much is not charged.
constexpr size_t kFreeScratchBytes = size_t{12} << 20;
// Of an entry, while layers that are compared wait for each other.
constexpr size_t kWaitingNumbers = 5;
// Spare page-table room of each head, so that decoding does not allocate.
constexpr size_t kSpareTableBytesPerHead = 16 * sizeof(std::byte*);

size_t PagesFor(int entries) { return static_cast<size_t>((std::max(entries, 0) + kP - 1) / kP); }

// Heads and pages that a sequence's plan must hold, by kind of layer.
struct Shape {
  size_t page_bytes = 0;
  size_t global_heads = 0;
  size_t all_heads = 0;
  size_t window_pages = 0;       // between blocks
  size_t low_page_bytes = 0;     // 0: no low format
  size_t own_bytes = 0;          // beside pages and what the heads' tables take: SharePlan::fixed_bytes
  size_t moment_bytes = 0;       // in own_bytes
  size_t later_bytes = 0;        // of what later recipes need beside
  size_t widest_layer_heads = 0;
  size_t scratch_bytes = 0;        // of queries that recipes observe, while one layer is judged
  size_t scratch_entry_bytes = 0;  // and for each entry of its heads
  size_t read_entry_bytes = 0;     // of latents that attention reads, for each entry of a layer's heads
  size_t undo_bytes = 0;           // of moments of queries as they were before a step
  size_t undo_entry_bytes = 0;     // of statistics, for an entry of every global head
  int num_ctx = 0;
  bool reads_again = false;                // a recipe may
  const DemoteOptions* demotes = nullptr;  // while text is read
  int whole = 0;                           // with it, of latents: entries of a head that are none in any case
  size_t lowered_page_bytes = 0;           // with it

  // In the high format whatever is lowered: one that is not full, one to grow by, and those beside latents with theirs.
  size_t high_pages() const { return whole > 0 ? 5 + PagesFor(whole) : 2; }
  size_t lowered_page_cost() const { return lowered_page_bytes + kTableBytesPerPage; }
  size_t page_cost() const { return page_bytes + kTableBytesPerPage; }
  size_t low_page_cost() const { return low_page_bytes + kTableBytesPerPage; }
  size_t fixed_bytes() const { return own_bytes + all_heads * (KvCache::kHeadBytes + kSpareTableBytesPerHead); }
};

// Null where nothing goes to fewer bits while text is read, or no layer has entries that may.
const DemoteOptions* DemotionOf(const ModelInfo& info, const ResolvedSequence& sequence) {
  if (sequence.compress != CompressMode::kBlock || CountLayers(info, LayerKind::kGlobal) == 0) return nullptr;
  return sequence.policy().demote();
}

// The largest page of any layer.
size_t PageBytes(const ModelInfo& info, PageFormat format, int num_columns) {
  size_t bytes = 0;
  for (const LayerShape& layer : info.layers) {
    if (layer.kind == LayerKind::kNone || layer.num_kv_heads == 0) continue;
    const int columns = layer.kind == LayerKind::kGlobal ? num_columns : 0;
    bytes = std::max(bytes, PageLayout::Make(format, layer.key_dim, layer.value_dim, columns).planned_bytes());
  }
  return bytes;
}

// What a second reading finds, and the pages of its longest pass.
size_t RepeatBytes(const Shape& shape, int num_ctx, int longest_chunk) {
  constexpr int kLongestInstruction = 256;
  return shape.global_heads * static_cast<size_t>(num_ctx) * sizeof(float) +
         shape.all_heads * PagesFor(std::min(longest_chunk, num_ctx) + kLongestInstruction) * shape.page_cost();
}

// The queries of a second reading that are kept at most.
size_t ReferenceBytes(const ModelInfo& info, const Policy& policy) {
  if (policy.residue() == nullptr) return 0;
  size_t bytes = 0;
  for (const LayerShape& layer : info.layers) {
    if (layer.kind != LayerKind::kGlobal || layer.num_kv_heads == 0) continue;
    // Rows are those of a kv head.
    bytes += static_cast<size_t>(policy.residue()->rows) * static_cast<size_t>(layer.num_kv_heads * layer.key_dim) *
             sizeof(uint16_t);
  }
  return bytes;
}

// A model with recurrent layers takes no step back.
void AddUndo(const ModelInfo& info, const Policy& policy, Shape& shape) {
  if (info.hybrid) return;
  const uint32_t needs = policy.needs();
  if ((needs & kNeedQueryMoments) != 0) shape.undo_bytes = QueryMoments::Bytes(MomentsOf(info));
  if ((needs & kNeedEveryQuery) == 0) return;
  shape.undo_entry_bytes += policy.columns().size() * shape.global_heads * sizeof(float);
}

// The running recipe's, then those for Compress().
template <typename Function>
void ForEachPolicy(const ResolvedSequence& sequence, const Function& function) {
  function(sequence.policy());
  for (const ResolvedRecipe& later : sequence.later_recipes) function(*later.policy);
}

// What the recipe that takes most computes with while it judges a layer: probabilities of its window, and copies.
void AddScratch(const ModelInfo& info, const Policy& policy, int num_ctx, Shape& shape) {
  const uint32_t needs = policy.needs();
  const auto window = static_cast<size_t>(std::min(QueryWindow(policy), num_ctx));
  const bool fits_blocks = policy.residue() != nullptr && !policy.needs_whole_prompt();
  const size_t references = fits_blocks ? kBlockReferenceBytes : 0;
  for (const LayerShape& layer : info.layers) {
    if (layer.kind != LayerKind::kGlobal) continue;
    const auto heads = static_cast<size_t>(layer.num_heads), kv_heads = static_cast<size_t>(layer.num_kv_heads);
    const auto key_dim = static_cast<size_t>(layer.key_dim), value_dim = static_cast<size_t>(layer.value_dim);
    size_t entry = (needs & kNeedWindowProbs) != 0 ? heads * window : 0;
    if ((needs & kNeedKeys) != 0) entry += kv_heads * key_dim;
    if ((needs & (kNeedValues | kNeedValueNorms)) != 0) entry += kv_heads * value_dim;
    // Scores, shares and indices of all layers wait for the last one.
    if (!policy.layer_local()) entry += kWaitingNumbers * shape.global_heads;
    shape.scratch_entry_bytes = std::max(shape.scratch_entry_bytes, entry * sizeof(float));
    shape.scratch_bytes = std::max(shape.scratch_bytes, 2 * window * heads * key_dim * sizeof(float) + references);
  }
}

// What second readings of any of the recipes take.
void AddRepeat(const ModelInfo& info, const ResolvedSequence& sequence, Shape& shape) {
  int chunk = -1;
  size_t references = 0;
  ForEachPolicy(sequence, [&](const Policy& policy) {
    if (policy.repeat() != nullptr) chunk = std::max(chunk, policy.repeat()->chunk);
    references = std::max(references, ReferenceBytes(info, policy));
  });
  if (chunk < 0) return;
  shape.reads_again = true;
  shape.later_bytes += RepeatBytes(shape, sequence.num_ctx, chunk) + references;
  // Its tokens, and the logits that a second reading would end.
  shape.own_bytes +=
      static_cast<size_t>(sequence.num_ctx) * sizeof(int32_t) + static_cast<size_t>(info.num_vocab) * sizeof(float);
}

// What recipes remember beside entries.
void AddRemembered(const ModelInfo& info, const ResolvedSequence& sequence, Shape& shape) {
  bool moments = false, prunes = false;
  size_t state_bytes = 0;  // which recipes share
  size_t map_bytes = 0;    // of latents, of one recipe at a time
  ForEachPolicy(sequence, [&](const Policy& policy) {
    moments = moments || (policy.needs() & kNeedQueryMoments) != 0;
    if (policy.less() != nullptr) state_bytes = StateBytes(info, *policy.less());
    prunes = prunes || policy.prune() != nullptr;
    if (const DemoteOptions* demote = policy.demote(); demote != nullptr && demote->makes_latents()) {
      const LatentCosts costs = CostsOfLatents(info, *demote);
      map_bytes = std::max(map_bytes, costs.map_bytes);
      shape.read_entry_bytes = std::max(shape.read_entry_bytes, costs.read_entry_bytes);
    }
    AddScratch(info, policy, sequence.num_ctx, shape);
    AddUndo(info, policy, shape);
  });
  if (moments) shape.moment_bytes = QueryMoments::Bytes(MomentsOf(info));
  shape.own_bytes +=
      state_bytes + map_bytes + shape.moment_bytes + QueryRing::Bytes(MomentsOf(info), RingWindow(sequence));
  for (const LayerShape& layer : info.layers) {
    // The lists of channels that keys keep.
    if (prunes && layer.kind == LayerKind::kGlobal)
      shape.own_bytes += static_cast<size_t>(layer.num_kv_heads * layer.key_dim) * sizeof(uint16_t);
  }
}

Shape ShapeOf(const ModelInfo& info, const ResolvedSequence& sequence) {
  const int num_ctx = sequence.num_ctx, num_columns = CountColumns(sequence);
  const CacheFormats& formats = sequence.formats;
  Shape shape;
  shape.num_ctx = num_ctx;
  shape.demotes = DemotionOf(info, sequence);
  shape.page_bytes = PageBytes(info, formats.entry, num_columns);
  if (formats.converted) shape.low_page_bytes = PageBytes(info, *formats.converted, num_columns);
  if (shape.demotes != nullptr) {
    shape.lowered_page_bytes = PageBytes(info, shape.demotes->low, num_columns);
    if (shape.demotes->makes_latents()) {
      shape.whole = std::clamp(sequence.recipe.num_running_sinks + shape.demotes->recent, 1, std::max(num_ctx, 1));
    }
  }
  for (const LayerShape& layer : info.layers) {
    if (layer.kind == LayerKind::kNone || layer.num_kv_heads == 0) continue;
    const auto heads = static_cast<size_t>(layer.num_kv_heads);
    shape.all_heads += heads;
    shape.widest_layer_heads = std::max(shape.widest_layer_heads, heads);
    if (layer.kind == LayerKind::kGlobal) {
      shape.global_heads += heads;
    } else {
      // The window, the token that enters it, and a page's worth of entries that wait to be dropped.
      shape.window_pages += heads * (PagesFor(std::min(info.window, num_ctx) + kP) + 1);
    }
  }
  AddRepeat(info, sequence, shape);
  AddRemembered(info, sequence, shape);
  for (const ResolvedRecipe& later : sequence.later_recipes) {
    size_t page_bytes = later.policy->prune() != nullptr ? shape.page_cost() : 0;
    for (const PageFormat to : later.storage.formats) {
      if (to == formats.entry) continue;
      page_bytes = std::max(page_bytes, PageBytes(info, to, num_columns) + kTableBytesPerPage);
    }
    shape.later_bytes += shape.all_heads * (PagesFor(num_ctx) + 1) * page_bytes;
  }
  return shape;
}

// Of one layer, or of all where eviction comes at the end of the block.
FlightShape FlightOf(const Shape& shape, const EvictionStyle& style) {
  return {.heads = style.schedule->HeadsInFlight(shape.widest_layer_heads, shape.all_heads),
          .token_pages = style.schedule->TokenPages(shape.all_heads),
          .page_cost = shape.page_cost()};
}

// Pages of groups are written anew when entries leave them, so evictions are rarer there.
int SlackFor(size_t pages_per_head, bool low) {
  if (pages_per_head < 2) return kP / 4;
  return kP * static_cast<int>(std::clamp<size_t>(pages_per_head / (low ? 5 : 8), 1, 8));
}

// Pages of a share: of the format in which entries arrive, and of the low one.
struct SharePages {
  size_t arriving = 0;
  size_t low = 0;
};

SharePages DividePages(const Shape& shape, size_t bytes) {
  if (bytes <= shape.fixed_bytes() || shape.all_heads == 0) return {};
  bytes -= shape.fixed_bytes();
  if (shape.low_page_bytes == 0) return {.arriving = bytes / shape.page_cost()};
  // Each head's page that is not yet full; the rest of the bytes is for full pages.
  const size_t arriving = shape.all_heads;
  if (bytes <= arriving * shape.page_cost()) return {};
  return {arriving, (bytes - arriving * shape.page_cost()) / shape.low_page_cost()};
}

// Copies of statistics of a sequence with so many entries per head between evictions, and a page that each may begin.
size_t UndoBytes(const Shape& shape, int entries) {
  return shape.undo_bytes + static_cast<size_t>(std::min(entries + kP, shape.num_ctx)) * shape.undo_entry_bytes;
}

// Scratch that is charged, of such a sequence.
size_t ScratchBytes(const Shape& shape, int entries) {
  const auto most = static_cast<size_t>(std::min(entries + kBlockSizes.front(), shape.num_ctx));
  const size_t bytes = shape.scratch_bytes + most * shape.scratch_entry_bytes;
  return bytes - std::min(bytes, kFreeScratchBytes) + most * shape.read_entry_bytes + UndoBytes(shape, entries);
}

// Every entry of the context stays.
SharePlan PlanDemotion(const ModelInfo& info, const Shape& shape, int keep_entries, size_t bytes) {
  SharePlan plan{.fixed_bytes = shape.fixed_bytes()};
  const bool low = shape.low_page_bytes > 0;
  const size_t window = shape.fixed_bytes() + shape.window_pages * (low ? shape.low_page_cost() : shape.page_cost()) +
                        (low ? shape.all_heads * shape.page_cost() : 0);
  if (bytes <= window || shape.global_heads == 0) return plan;
  const double f16_bytes = TokenBytes(info, PageFormat());
  Demotion& demotion = plan.demotion;
  demotion = {.on = true,
              .share = shape.demotes->share,
              .bytes = static_cast<double>(bytes - window) / static_cast<double>(shape.global_heads),
              .high_page = static_cast<double>(low ? shape.low_page_cost() : shape.page_cost()),
              .low_page = static_cast<double>(shape.lowered_page_cost()),
              .f16_entries = static_cast<double>(std::max(keep_entries, 0)),
              .high_cost = TokenBytes(info, shape.demotes->high) / f16_bytes,
              .low_cost = TokenBytes(info, shape.demotes->low) / f16_bytes};
  const double all_low = (static_cast<double>(PagesFor(shape.num_ctx)) + 1) * demotion.low_page +
                         static_cast<double>(shape.high_pages()) * demotion.high_page;
  if (demotion.bytes < all_low) return plan;
  if (shape.demotes->makes_latents()) {
    // Those that latents refer to stay, so their share is what the whole context leaves to them.
    demotion.slack = 3 * kP;
    const double others = std::max(1, shape.num_ctx - shape.whole);
    demotion.share = std::min(demotion.share, std::max(0.0, (demotion.MostHigh(shape.num_ctx) - shape.whole) / others));
    demotion.whole = shape.whole;
  } else {
    demotion.slack = kP;
    const int high = demotion.HighEntries(shape.num_ctx);
    demotion.slack = SlackFor(static_cast<size_t>(high / kP), low);
  }
  plan.slack_entries = demotion.slack;
  plan.keep_entries = shape.num_ctx;
  plan.scratch_bytes = ScratchBytes(shape, shape.num_ctx);
  plan.undo_bytes = UndoBytes(shape, shape.num_ctx);
  return plan;
}

// Of bytes that are the pages' and the tables' alone.
SharePlan PlanPages(const Shape& shape, const EvictionStyle& style, int keep_entries, size_t bytes) {
  SharePlan plan{.fixed_bytes = shape.fixed_bytes()};
  if (shape.all_heads == 0) {  // a model that is recurrent throughout
    plan.keep_entries = std::max(shape.num_ctx, 1);
    return plan;
  }
  const SharePages pages = DividePages(shape, bytes);
  const size_t full = shape.low_page_bytes == 0 ? pages.arriving : pages.low;
  const size_t wasted = style.ragged && shape.global_heads > 0 ? 1 : 0;
  const size_t per_head =
      full <= shape.window_pages ? 0 : (full - shape.window_pages) / std::max<size_t>(shape.global_heads, 1);
  if (per_head <= wasted) return plan;
  plan.slack_entries = SlackFor(per_head - wasted, shape.low_page_bytes > 0);
  plan.keep_entries = static_cast<int>(per_head - wasted) * kP - plan.slack_entries;
  if (keep_entries > 0 && keep_entries <= plan.keep_entries) {
    plan.keep_entries = keep_entries;
    plan.slack_entries = std::min(plan.slack_entries, std::max(1, keep_entries / 8));
  }
  plan.scratch_bytes = ScratchBytes(shape, plan.keep_entries + plan.slack_entries);
  plan.undo_bytes = UndoBytes(shape, plan.keep_entries + plan.slack_entries);
  return plan;
}

// keep_entries: wanted, 0: as many as there is room for.
SharePlan PlanShareOf(const ModelInfo& info, const Shape& shape, const EvictionStyle& style, int keep_entries,
                      size_t bytes) {
  if (shape.demotes != nullptr) {
    const SharePlan plan = PlanDemotion(info, shape, keep_entries, bytes);
    if (plan.scratch_bytes == 0) return plan;
    return PlanDemotion(info, shape, keep_entries, bytes - std::min(bytes, plan.scratch_bytes));
  }
  SharePlan plan = PlanPages(shape, style, keep_entries, bytes);
  if (plan.scratch_bytes == 0) return plan;
  // The more entries, the more scratch: what is left for pages is found by halving, to the byte while it holds nothing.
  size_t least = 0, most = bytes;
  SharePlan fits{.fixed_bytes = shape.fixed_bytes()};
  while (most - least > (fits.keep_entries > 0 ? shape.page_cost() : 1)) {
    const size_t middle = least + (most - least) / 2;
    plan = PlanPages(shape, style, keep_entries, middle);
    if (middle + plan.scratch_bytes <= bytes) {
      least = middle;
      fits = plan;
    } else {
      most = middle;
    }
  }
  return fits;
}

size_t LeastShareOf(const Shape& shape, const EvictionStyle& style) {
  if (shape.demotes != nullptr) {
    const size_t arriving = (shape.low_page_bytes > 0 ? shape.all_heads * shape.page_cost() : 0);
    const size_t high_page = shape.low_page_bytes > 0 ? shape.low_page_cost() : shape.page_cost();
    return shape.fixed_bytes() + ScratchBytes(shape, shape.num_ctx) + arriving + shape.window_pages * high_page +
           shape.global_heads *
               ((PagesFor(shape.num_ctx) + 1) * shape.lowered_page_cost() + shape.high_pages() * high_page) +
           1;
  }
  if (shape.all_heads == 0) return shape.fixed_bytes();
  const size_t pages = shape.window_pages + shape.global_heads * (style.ragged ? 2 : 1) + 1;
  return shape.fixed_bytes() + ScratchBytes(shape, 2 * kP) +
         (shape.low_page_bytes == 0 ? pages * shape.page_cost()
                                    : shape.all_heads * shape.page_cost() + pages * shape.low_page_cost());
}

// What a plan has before shares: the block's own bytes and those of its rows in flight.
MemoryPlan CommonPlan(const ModelInfo& info, const Shape& shape, const EvictionStyle& style,
                      const EngineOptions& options, int block_tokens) {
  const int sequences = std::max(options.max_sequences, 1);
  MemoryPlan plan;
  plan.budget_bytes = options.budget_bytes;
  plan.block_tokens = block_tokens;
  plan.block_bytes = BlockBytes(info, block_tokens);
  // One more to undo a step by, and one for a second reading.
  plan.recurrent_bytes = info.recurrent_bytes * static_cast<size_t>(sequences + std::max(options.resting_sequences, 0) +
                                                                    (shape.reads_again ? 2 : 1));
  plan.moment_bytes = static_cast<size_t>(sequences) * shape.moment_bytes;
  plan.flight_bytes = FlightOf(shape, style).Bytes(block_tokens, sequences);
  return plan;
}

// The plan for one block size, of what there is room for; keep_entries == 0 if nothing can be kept.
MemoryPlan PlanFor(const ModelInfo& info, const Shape& shape, const EvictionStyle& style, const EngineOptions& options,
                   int block_tokens) {
  const auto sequences = static_cast<size_t>(std::max(options.max_sequences, 1));
  MemoryPlan plan = CommonPlan(info, shape, style, options, block_tokens);
  const size_t common = plan.block_bytes + plan.recurrent_bytes + plan.flight_bytes;
  if (common > plan.budget_bytes || (common == plan.budget_bytes && shape.all_heads > 0)) return plan;
  plan.share_bytes = (plan.budget_bytes - common) / sequences;
  if (plan.share_bytes < LeastShareOf(shape, style)) return plan;
  const SharePlan share = PlanShareOf(info, shape, style, 0, plan.share_bytes);
  const SharePages pages = DividePages(shape, plan.share_bytes - std::min(plan.share_bytes, share.scratch_bytes));
  plan.num_pages = plan.flight_bytes / shape.page_cost() + sequences * pages.arriving;
  plan.num_low_pages = sequences * pages.low;
  plan.keep_entries = share.keep_entries;
  plan.slack_entries = share.slack_entries;
  return plan;
}

// Room for everything: each sequence up to num_ctx, nothing ever evicted for lack of pages.
size_t UnlimitedBudget(const ModelInfo& info, const Shape& shape, const EvictionStyle& style,
                       const EngineOptions& options, int block_tokens) {
  const auto sequences = static_cast<size_t>(std::max(options.max_sequences, 1));
  EvictionStyle whole = style;
  whole.schedule = EvictionSchedule::AfterBlock();  // nothing goes before
  const MemoryPlan plan = CommonPlan(info, shape, whole, options, block_tokens);
  const size_t kept = shape.all_heads * (PagesFor(shape.num_ctx) + 2);
  const size_t pages = shape.low_page_bytes == 0 ? kept * shape.page_cost()
                                                 : kept * shape.low_page_cost() + shape.all_heads * shape.page_cost();
  return plan.block_bytes + plan.recurrent_bytes + plan.flight_bytes +
         sequences * (shape.fixed_bytes() + shape.later_bytes + ScratchBytes(shape, shape.num_ctx) + pages +
                      style.schedule->TokenPages(shape.all_heads) * shape.page_cost());
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

int CountColumns(const ResolvedSequence& sequence) {
  size_t count = PageColumns(sequence.policy(), sequence.rereads_blocks()).size();
  for (const ResolvedRecipe& later : sequence.later_recipes) count += PageColumns(*later.policy, false).size();
  return static_cast<int>(count);
}

int RingWindow(const ResolvedSequence& sequence) {
  int window = sequence.keep_queries;
  ForEachPolicy(sequence, [&window](const Policy& policy) { window = std::max(window, QueryWindow(policy)); });
  return sequence.num_ctx > 0 ? std::min(window, sequence.num_ctx) : window;
}

Result<MemoryPlan> PlanMemory(const ModelInfo& info, const ResolvedSequence& sequence, const EngineOptions& options) {
  const EvictionStyle& style = sequence.style;
  const Shape shape = ShapeOf(info, sequence);
  EngineOptions wanted = options;
  const bool unlimited = options.budget_bytes == 0;
  MemoryPlan plan;
  const int fixed_block[] = {options.block_tokens};
  const std::span<const int> sizes =
      options.block_tokens > 0 ? std::span<const int>(fixed_block) : std::span<const int>(kBlockSizes);
  for (const int block_tokens : sizes) {
    if (unlimited) wanted.budget_bytes = UnlimitedBudget(info, shape, style, options, block_tokens);
    const MemoryPlan candidate = PlanFor(info, shape, style, wanted, block_tokens);
    // A block finds its room beside as many entries that have been judged.
    const bool too_long =
        sequence.rereads_blocks() && candidate.keep_entries + candidate.slack_entries < 2 * block_tokens;
    if (too_long && block_tokens != sizes.back()) continue;
    if (candidate.keep_entries > plan.keep_entries) plan = candidate;
    // The largest block whose own memory and entries in flight leave two thirds of the budget to what is kept.
    if (candidate.keep_entries > 0 && candidate.block_bytes + candidate.flight_bytes <= wanted.budget_bytes / 3) {
      plan = candidate;
      break;
    }
  }
  if (plan.keep_entries <= 0) {
    const int smallest = sizes.back();
    plan = CommonPlan(info, shape, style, options, smallest);
    const size_t least = plan.block_bytes + plan.recurrent_bytes + plan.flight_bytes +
                         static_cast<size_t>(std::max(options.max_sequences, 1)) * LeastShareOf(shape, style);
    const auto mib = [](size_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
    const size_t window = QueryRing::Bytes(MomentsOf(info), RingWindow(sequence)) + ScratchBytes(shape, 2 * kP) -
                          UndoBytes(shape, 2 * kP);
    std::string of_window = window < least / 2
                                ? ""
                                : fmt::format(", {:.2f} of them for the window of {} queries that the recipe looks at",
                                              mib(window), RingWindow(sequence));
    if (shape.demotes != nullptr) {
      of_window +=
          fmt::format(": the recipe keeps every one of {} tokens, in {} at least; a shorter context takes less",
                      shape.num_ctx, shape.demotes->low.Name());
    }
    return OutOfBudget(fmt::format(
        "a KV budget of {:.2f} MiB does not hold one block of {} tokens with this model; {:.2f} MiB is the least that "
        "does{}",
        mib(wanted.budget_bytes), smallest, std::max(0.01, mib(least) + 0.005), of_window));
  }
  if (sequence.keep_entries > 0) {
    if (!unlimited && sequence.keep_entries > plan.keep_entries) {
      return OutOfBudget(
          fmt::format("the KV budget holds {} entries per head, not {}", plan.keep_entries, sequence.keep_entries));
    }
    if (shape.demotes == nullptr) plan.keep_entries = sequence.keep_entries;
    plan.slack_entries = std::min(plan.slack_entries, std::max(1, sequence.keep_entries / 8));
  }
  return plan;
}

double Demotion::MostHigh(double n) const {
  const double pages = std::floor((bytes - (n / kP + 1) * low_page) / (high_page - low_page));
  const double most = (pages - 1) * kP - slack;
  return f16_entries > 0 ? std::min(most, (f16_entries - n * low_cost) / (high_cost - low_cost)) : most;
}

int Demotion::HighEntries(double n) const {
  const double first = std::min<double>(n, whole);
  double most = first + share * (n - first) + 1e-9;
  if (whole == 0) most = std::min(most, MostHigh(n));
  return std::clamp(static_cast<int>(most), 0, static_cast<int>(n));
}

size_t RereadBytes(const ModelInfo& info, const ResolvedSequence& sequence, int num_tokens) {
  const Policy& policy = sequence.policy();
  if (policy.repeat() == nullptr || sequence.rereads_blocks()) return 0;
  return RepeatBytes(ShapeOf(info, sequence), num_tokens, policy.repeat()->chunk) + ReferenceBytes(info, policy) +
         static_cast<size_t>(info.num_vocab) * sizeof(float);
}

SharePlan PlanShare(const ModelInfo& info, const ResolvedSequence& sequence, size_t bytes) {
  return PlanShareOf(info, ShapeOf(info, sequence), sequence.style, sequence.keep_entries, bytes);
}

size_t LeastShare(const ModelInfo& info, const ResolvedSequence& sequence) {
  return LeastShareOf(ShapeOf(info, sequence), sequence.style);
}

size_t ShareFor(const ModelInfo& info, const ResolvedSequence& sequence, int num_tokens) {
  const Shape shape = ShapeOf(info, sequence);
  const size_t pages =
      shape.window_pages + shape.global_heads * (PagesFor(num_tokens) + (sequence.style.ragged ? 1 : 0));
  return shape.fixed_bytes() + ScratchBytes(shape, num_tokens) +
         (shape.low_page_bytes == 0 ? pages * shape.page_cost()
                                    : shape.all_heads * shape.page_cost() + pages * shape.low_page_cost());
}

// Each further sequence may begin two pages in each head.
size_t FlightShape::Pages(int num_rows, int num_sequences) const {
  const auto sequences = static_cast<size_t>(num_sequences);
  return heads * (PagesFor(num_rows) + 1 + 2 * (sequences - 1)) + sequences * token_pages;
}

FlightShape FlightOf(const ModelInfo& info, const ResolvedSequence& sequence) {
  return FlightOf(ShapeOf(info, sequence), sequence.style);
}

Result<BudgetSplit> SplitBudget(const ModelInfo& info, const EngineOptions& options) {
  PITH_ASSIGN_OR_RETURN(const ResolvedSequence sequence, Resolve(info, options));
  PITH_ASSIGN_OR_RETURN(const MemoryPlan plan, PlanMemory(info, sequence, options));
  const Shape shape = ShapeOf(info, sequence);
  const bool low = shape.low_page_bytes > 0;
  const size_t page_bytes = low ? shape.low_page_bytes : shape.page_bytes;  // of what stays
  BudgetSplit split;
  split.format = sequence.formats.full();
  split.block_tokens = plan.block_tokens;
  split.keep_entries = shape.global_heads > 0 ? plan.keep_entries : 0;
  split.block_bytes = plan.block_bytes;
  split.recurrent_bytes = plan.recurrent_bytes;
  split.table_bytes = shape.fixed_bytes() + ScratchBytes(shape, plan.keep_entries + plan.slack_entries) +
                      (plan.num_pages + plan.num_low_pages) * kTableBytesPerPage;
  const size_t in_flight = plan.flight_bytes / shape.page_cost();
  split.in_flight_bytes = (low ? plan.num_pages : in_flight) * shape.page_bytes;
  split.window_bytes = shape.window_pages * page_bytes;
  const size_t left = plan.budget_bytes - split.block_bytes - split.recurrent_bytes - split.table_bytes -
                      split.in_flight_bytes - split.window_bytes;
  const size_t per_head = PagesFor(plan.keep_entries + plan.slack_entries) + (sequence.style.ragged ? 1 : 0);
  split.global_bytes = std::min(left, shape.global_heads * per_head * page_bytes);
  split.unused_bytes = left - split.global_bytes;
  return split;
}

}  // namespace pith
