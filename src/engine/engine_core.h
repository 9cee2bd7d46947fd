// What the rooms of an engine share: the model and its context, the budget's plan and ledger, the cache and what is
// done in its layers. Rooms hold it by reference; whatever belongs to one of them alone is not here.
#ifndef PITH_ENGINE_ENGINE_CORE_H_
#define PITH_ENGINE_ENGINE_CORE_H_

#include <chrono>
#include <memory>
#include <utility>

#include "base/ledger.h"
#include "cache/kv_cache.h"
#include "engine/engine.h"
#include "engine/flight.h"
#include "engine/global_layers.h"
#include "engine/layer_ops.h"
#include "engine/plan.h"
#include "engine/sequence.h"
#include "engine/slot_pool.h"
#include "host/context.h"

namespace pith {

using Clock = std::chrono::steady_clock;

inline double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct EngineCore {
  EngineCore() = default;
  EngineCore(std::shared_ptr<HostModel> of_model, const EngineOptions& with)
      : model(std::move(of_model)), options(with) {}
  EngineCore(const EngineCore&) = delete;
  EngineCore& operator=(const EngineCore&) = delete;
  ~EngineCore();

  std::shared_ptr<HostModel> model;
  EngineOptions options;  // with what was left open filled in

  // From Init() on. Unless it says so, nothing of this changes any more.
  const ModelInfo* info = nullptr;                     // the model's
  std::shared_ptr<const SequenceSetup> default_setup;  // of the engine's own options
  MemoryPlan plan;                                     // its block and recurrent bytes may turn out to be more
  std::unique_ptr<Ledger> ledger;                      // what is charged to it changes
  FlightBytes flight;                                  // likewise
  std::unique_ptr<KvCache> cache;                      // likewise
  GlobalLayers layers;
  SlotPool slots;  // of the context; likewise
  std::unique_ptr<HostContext> context;
  std::unique_ptr<LayerOps> ops;
  EngineTimes times;  // likewise

  // sink: whose attention the context's graphs have. kInvalidArgument, kUnsupported: options and model do not go
  // together; kOutOfBudget: the budget holds less than a block.
  Status Init(AttentionSink* sink);

  const LayerShape& shape(int layer) const { return info->layers[static_cast<size_t>(layer)]; }
  int num_kv_heads(int layer) const { return cache->layers()[static_cast<size_t>(layer)].num_kv_heads; }

 private:
  Status SettleOptions();
  Status OpenLedger();
};

}  // namespace pith

#endif  // PITH_ENGINE_ENGINE_CORE_H_
