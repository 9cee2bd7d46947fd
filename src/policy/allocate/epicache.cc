// Layers by the sensitivity of their keys (EpiCache, arXiv:2509.17396, part B): a layer whose keys change
// more when far tokens are hidden gets more. The cosines come from a JSON file, {"similarity": [...]},
// one for each layer that holds a global cache (policy/learn/key_stability.h says how to measure).
//
// form=rescaled (ours) keeps the code's weights and its floor of a quarter, and rescales to the exact
// total. form=code is the authors', whose sum exceeds the budget: what is too much is then taken from
// the largest. form=paper has no floor.
#include "policy/allocate/layer_shares.h"
#include "policy/learn/layer_budgets.h"
#include "policy/stage.h"

namespace pith {
namespace {

Result<std::vector<double>> Read(const Params& p) {
  if (p.Word("path").empty())
    return InvalidArgument("alloc=epicache needs a file, as in alloc=epicache:similarity.json");
  return ReadLayerNumbers(p.Word("path"), "similarity", -1);
}

class EpiCache final : public Allocator {
 public:
  EpiCache(const Params& p, std::vector<double> similarities)
      : path_(p.Word("path")),
        similarities_(std::move(similarities)),
        alpha_(p.Real("alpha")),
        form_(static_cast<EpiCacheForm>(p.Choice("form"))),
        pair_(p.Choice("level") == 0) {}

  bool layer_local() const override { return false; }
  Status CheckLayers(int num_layers) const override {
    return CheckLayerCount("epicache", path_, similarities_.size(), num_layers);
  }

  void Allocate(std::span<const LayerScores> layers, const Budget& budget, Allocation& out) const override {
    std::vector<double> similarities = similarities_;
    similarities.resize(layers.size(), 1.0);
    AllocateLayers(layers, budget, EpiCacheBudgets(similarities, budget.keep, alpha_, form_), pair_, out);
  }

 private:
  std::string path_;
  std::vector<double> similarities_;
  double alpha_;
  EpiCacheForm form_;
  bool pair_;
};

}  // namespace

StageInfo<Allocator> EpiCacheStage() {
  return {"layers whose keys depend on far tokens get more, from a JSON file, {\"similarity\": [one per layer]}",
          {TextParam("path", "the file; spaces and commas cannot stand in its name"),
           RealParam("alpha", 1.1, 0, 100, "sharpness; 0 is uniform"),
           ChoiceParam("form", "rescaled|code|paper", "exact sum, the released code, or the paper"),
           ChoiceParam("level", "pair|uniform", "heads of a layer compete, or each has the same")},
          [](const Params& p) -> std::unique_ptr<Allocator> {
            Result<std::vector<double>> similarities = Read(p);
            return std::make_unique<EpiCache>(p, similarities ? std::move(*similarities) : std::vector<double>());
          },
          0,
          [](const Params& p) -> Status {
            PITH_RETURN_IF_ERROR(Read(p));
            return {};
          }};
}

}  // namespace pith
