// Cold-RL: of a few of the least recently used objects those go that the network would rather see gone than kept
// (evict/learn/coldrl.h). Where they do not free enough, or nobody gives numbers, the least recently used ones go.
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "evict/follow.h"
#include "evict/learn/coldrl_cache.h"
#include "evict/registry.h"
#include "evict/sidecar.h"

namespace pith::evict {
namespace {

// Of a network in this process, or in another one.
class ColdRlEvictor final : public Replayed<ColdRlEvictor> {
 public:
  ColdRlEvictor(const Setup& setup, Model model, const ColdRlCacheOptions& options, bool per_byte)
      : Replayed(setup.capacity), network_(std::in_place, std::move(model)), per_byte_(per_byte),
        cache_(setup.num_objects, setup.capacity, options) {}
  ColdRlEvictor(const Setup& setup, std::unique_ptr<SidecarClient> sidecar, const ColdRlCacheOptions& options,
                bool per_byte)
      : Replayed(setup.capacity), sidecar_(std::move(sidecar)), per_byte_(per_byte),
        cache_(setup.num_objects, setup.capacity, options) {}

  bool Contains(uint32_t object) const override { return cache_.Contains(object); }
  uint64_t used_bytes() const override { return cache_.used_bytes(); }
  void OnHit(const Access& access) override { cache_.Hit(access); }
  void OnMiss(const Access& access) override {
    const auto decide = [this](double, const ColdRlCandidate* candidates, const uint32_t*, size_t count,
                               uint32_t* order) {
      const float* const margins = network_ ? network_->Margins(candidates, count) : Ask(candidates, count);
      if (margins == nullptr) return false;
      OrderVictims(candidates, margins, count, per_byte_, order);
      return true;
    };
    cache_.Miss(access, decide, [this](uint32_t object) { Evicted(object); });
  }
  void Erase(uint32_t object) override { cache_.Remove(object); }
  const SidecarCounters* sidecar() const override { return sidecar_ != nullptr ? &sidecar_->counters() : nullptr; }

 private:
  const float* Ask(const ColdRlCandidate* candidates, size_t count) {
    float features[ColdRl::kMostCandidates * ColdRl::kFeatures];
    ColdRl::Features(candidates, count, features);
    return sidecar_->Margins(features, count);
  }

  std::optional<ColdRl> network_;
  std::unique_ptr<SidecarClient> sidecar_;
  const bool per_byte_;
  ColdRlCache cache_;
};

}  // namespace

std::unique_ptr<Evictor> MakeColdRlWith(const Setup& setup, Model model, const ColdRlCacheOptions& options,
                                        bool per_byte) {
  return std::make_unique<ColdRlEvictor>(setup, std::move(model), options, per_byte);
}

Result<std::unique_ptr<Evictor>> MakeColdRl(Params& params, const Setup& setup) {
  static constexpr std::array<std::string_view, 2> kRanks = {"byte", "object"};
  static constexpr std::array<std::string_view, 2> kGuards = {"off", "on"};
  ColdRlCacheOptions options;
  PITH_ASSIGN_OR_RETURN(const std::string path, params.Text("model", ""));
  PITH_ASSIGN_OR_RETURN(const double k, params.Number("k", 16, 2, ColdRl::kMostCandidates));
  PITH_ASSIGN_OR_RETURN(const std::string rank, params.Word("rank", "byte", kRanks));
  PITH_ASSIGN_OR_RETURN(const double hand, params.Number("hand", 1, 0, 1));
  options.candidates = static_cast<size_t>(k);
  options.from_tail = hand < 0.5;
  PITH_ASSIGN_OR_RETURN(const std::string guard, params.Word("guard", "off", kGuards));
  std::unique_ptr<Evictor> evictor;
  PITH_ASSIGN_OR_RETURN(const std::string sidecar, params.Text("sidecar", ""));
  if (!sidecar.empty()) {
    if (!path.empty()) return InvalidArgument("coldrl: the sidecar has the model; give it there");
    PITH_ASSIGN_OR_RETURN(const sockaddr_un address, SidecarAddress(sidecar));
    PITH_ASSIGN_OR_RETURN(const double deadline, params.Number("deadline", 500, 1, 1'000'000));
    evictor = std::make_unique<ColdRlEvictor>(
        setup, std::make_unique<SidecarClient>(address, static_cast<uint32_t>(deadline)), options, rank == "byte");
  } else {
    PITH_ASSIGN_OR_RETURN(Model model, LoadModel(path, ModelKind::kColdRl));
    evictor = MakeColdRlWith(setup, std::move(model), options, rank == "byte");
  }
  return guard == "on" ? Guarded(std::move(evictor), setup) : std::move(evictor);
}

}  // namespace pith::evict
