#include "engine/engine_core.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/cores.h"

namespace pith {
namespace {

// libllama knows 256, of which second readings and recurrent states take one each.
constexpr int kMostSequences = 254;

// What kernels have room for on their stacks.
constexpr int kMostChannels = 1024;

std::vector<CacheLayer> LayersOf(const ModelInfo& info) {
  std::vector<CacheLayer> layers;
  for (const LayerShape& shape : info.layers) {
    if (shape.kind == LayerKind::kNone) {
      layers.emplace_back();
    } else {
      layers.push_back({.num_kv_heads = shape.num_kv_heads,
                        .key_dim = shape.key_dim,
                        .value_dim = shape.value_dim,
                        .global = shape.kind == LayerKind::kGlobal,
                        .rotation = shape.rotation ? &*shape.rotation : nullptr});
    }
  }
  return layers;
}

Status CheckModel(const ModelInfo& info) {
  if (info.use != ModelUse::kText) {
    return InvalidArgument(fmt::format("{} was loaded for its {} alone", info.path,
                                       info.use == ModelUse::kVocabulary ? "vocabulary" : "embeddings"));
  }
  for (const LayerShape& shape : info.layers) {
    if (shape.kind != LayerKind::kNone && std::max(shape.key_dim, shape.value_dim) > kMostChannels) {
      return Unsupported(fmt::format("this model's heads have {} channels, and pith takes {} at most",
                                     std::max(shape.key_dim, shape.value_dim), kMostChannels));
    }
  }
  return {};
}

}  // namespace

Status EngineCore::Init(AttentionSink* sink) {
  info = &model->info();
  PITH_RETURN_IF_ERROR(CheckModel(*info));
  layers = GlobalLayers(*info);
  PITH_RETURN_IF_ERROR(SettleOptions());
  PITH_ASSIGN_OR_RETURN(default_setup, SequenceSetup::Make(*info, options));
  static_cast<SequenceOptions&>(options) = default_setup->options;
  PITH_RETURN_IF_ERROR(OpenLedger());
  cache = KvCache::Create(ledger.get(), LayersOf(*info));
  // Where sequences have states of their own, a second reading takes one more only if it was announced.
  const bool spare = !info->hybrid || default_setup->reads_again;
  slots = SlotPool(options.max_sequences + options.resting_sequences, spare);
  PITH_ASSIGN_OR_RETURN(context, HostContext::Create(*model, plan.block_tokens, slots.count() + (spare ? 1 : 0),
                                                     options.num_threads, sink));
  ops = std::make_unique<LayerOps>(*model, *cache);
  return {};
}

Status EngineCore::SettleOptions() {
  const int last = info->max_positions;
  if (options.num_ctx <= 0) options.num_ctx = last > 0 ? std::min(last, info->trained_ctx) : info->trained_ctx;
  if (last > 0 && options.num_ctx > last) {
    return InvalidArgument(
        fmt::format("the positions of this model end after {} tokens, so that a context of {} cannot be reached", last,
                    options.num_ctx));
  }
  if (options.num_threads <= 0) options.num_threads = PhysicalCores();
  if (options.block_tokens > 4096) return InvalidArgument("a block of more than 4096 tokens is not supported");
  options.max_sequences = std::max(options.max_sequences, 1);
  options.resting_sequences = std::max(options.resting_sequences, 0);
  const int num_slots = options.max_sequences + options.resting_sequences;
  if (num_slots > kMostSequences) {
    return InvalidArgument(fmt::format("an engine holds {} sequences at most, not {}", kMostSequences, num_slots));
  }
  return {};
}

Status EngineCore::OpenLedger() {
  PITH_ASSIGN_OR_RETURN(plan, PlanMemory(*info, *default_setup, options));
  ledger = std::make_unique<Ledger>(plan.budget_bytes);
  if (ledger->TryCharge(MemoryTag::kBlock, plan.block_bytes) &&
      ledger->TryCharge(MemoryTag::kRecurrent, plan.recurrent_bytes) && flight.Open(ledger.get(), plan.flight_bytes)) {
    return {};
  }
  return OutOfBudget("the KV budget does not hold libllama's block");
}

EngineCore::~EngineCore() {
  // The ledger must outlive the pages that are charged to it.
  ops.reset();
  cache.reset();
  if (!flight.is_open()) return;
  flight = FlightBytes();
  ledger->Release(MemoryTag::kBlock, plan.block_bytes);
  ledger->Release(MemoryTag::kRecurrent, plan.recurrent_bytes);
}

}  // namespace pith
