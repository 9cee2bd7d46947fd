// act=delta: entries that do not stay become latents against those that do (DeltaKV, arXiv:2602.08005; cache/latents.h
// says how, and what differs from the authors' code).
//
// The paper takes every tenth token of a block for a reference, and a block is what has left the newest `recent`
// tokens. Here the scorer chooses: `score=stride` as the paper does, any other one those that matter to it. References
// are read as they are, not through a latent of their own (the paper's variant with raw centers).
#include <algorithm>
#include <cmath>
#include <utility>

#include "policy/act/delta_maps.h"
#include "policy/act/demote.h"
#include "policy/stage.h"

namespace pith {
namespace {

DemoteOptions OptionsOf(const Params& p) {
  DemoteOptions options{.high = PageFormat(), .share = p.Real("share"), .recent = p.Int("recent")};
  auto latents = static_cast<uint8_t>(std::clamp(std::lround(p.Real("latent") * 256), 1L, 255L));
  if (!p.Word("path").empty()) {
    if (auto maps = DeltaMaps::Load(p.Word("path"))) options.maps = std::move(*maps), latents = options.maps->latents();
  }
  options.low = PageFormat::Latents(latents, static_cast<uint8_t>(p.Int("k")));
  return options;
}

class Delta final : public Action {
 public:
  explicit Delta(const DemoteOptions& options) : options_(options) {}
  const DemoteOptions* demote() const override { return &options_; }

 private:
  DemoteOptions options_;
};

}  // namespace

StageInfo<Action> DeltaStage() {
  return {
      "entries that do not stay become latents: their difference to entries that do, in few numbers; none is dropped",
      {TextParam("path",
                 "what latents are made with, as `pith tune delta` writes it; without it each head finds its "
                 "own at its first latents"),
       RealParam("share", 0.1, 0, 1,
                 "of the entries that latents refer to, which stay; fewer where bytes do not hold "
                 "them"),
       IntParam("recent", 128, 0, 1 << 20, "newest entries that stay, too"),
       RealParam("latent", 0.168, 0.004, 1,
                 "numbers of a latent, over those of a key and a value; a file says it "
                 "itself"),
       IntParam("k", 4, 1, 8, "entries that a latent refers to")},
      [](const Params& p) -> std::unique_ptr<Action> { return std::make_unique<Delta>(OptionsOf(p)); },
      8,
      [](const Params& p) -> Status {
        if (p.Word("path").empty()) return {};
        PITH_RETURN_IF_ERROR(DeltaMaps::Load(p.Word("path")));
        return {};
      }};
}

}  // namespace pith
