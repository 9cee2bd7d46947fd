#include "engine/eviction_schedule.h"

#include <algorithm>

#include "kernels/page_layout.h"

namespace pith {
namespace {

class InLayerSchedule final : public EvictionSchedule {
 public:
  size_t HeadsInFlight(size_t widest_layer_heads, size_t all_heads) const override {
    return std::min(widest_layer_heads, all_heads);
  }
  bool FinishesLayers() const override { return true; }
  bool EvictsLayers() const override { return true; }
};

class CascadeSchedule final : public EvictionSchedule {
 public:
  explicit CascadeSchedule(int num_layers) : num_layers_(num_layers) {}

  size_t HeadsInFlight(size_t widest_layer_heads, size_t all_heads) const override {
    return std::min(static_cast<size_t>(num_layers_) * widest_layer_heads, all_heads);
  }
  // All heads take a token before one of them is rid of any.
  size_t TokenPages(size_t all_heads) const override { return all_heads / kPageEntries + 1; }
  bool FinishesLayers() const override { return true; }
  int LayersInCascade() const override { return num_layers_; }

 private:
  int num_layers_;
};

class BetweenBlocksSchedule final : public EvictionSchedule {
 public:
  size_t HeadsInFlight(size_t widest_layer_heads, size_t all_heads) const override {
    return std::min(widest_layer_heads, all_heads);
  }
  // What a repetition finds, and the tables of the fork that reads it.
  size_t TokenPages(size_t all_heads) const override { return all_heads / 8 + 1; }
  bool FinishesLayers() const override { return true; }
  bool EvictsAfterBlock() const override { return false; }
};

class AfterBlockSchedule final : public EvictionSchedule {
 public:
  size_t HeadsInFlight(size_t, size_t all_heads) const override { return all_heads; }
  bool FinishesLayers() const override { return false; }
};

}  // namespace

std::shared_ptr<const EvictionSchedule> EvictionSchedule::InLayer() {
  static const auto schedule = std::make_shared<const InLayerSchedule>();
  return schedule;
}

std::shared_ptr<const EvictionSchedule> EvictionSchedule::Cascade(int num_layers) {
  return std::make_shared<const CascadeSchedule>(num_layers);
}

std::shared_ptr<const EvictionSchedule> EvictionSchedule::AfterBlock() {
  static const auto schedule = std::make_shared<const AfterBlockSchedule>();
  return schedule;
}

std::shared_ptr<const EvictionSchedule> EvictionSchedule::BetweenBlocks() {
  static const auto schedule = std::make_shared<const BetweenBlocksSchedule>();
  return schedule;
}

}  // namespace pith
