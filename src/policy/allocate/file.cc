// Fixed shares of layers, found by whatever search, from a JSON file: {"layers": [3, 2.5, 1, ...]}, one
// number for each layer that holds a global cache. Only their ratios count: the budget is shared in
// proportion, rounded so that the sum is exact.
#include "policy/allocate/layer_shares.h"
#include "policy/learn/layer_budgets.h"
#include "policy/stage.h"

namespace pith {
namespace {

Result<std::vector<double>> Read(const Params& p) {
  if (p.Word("path").empty()) return InvalidArgument("alloc=file needs a file, as in alloc=file:budgets.json");
  return ReadLayerNumbers(p.Word("path"), "layers", 0);
}

class File final : public Allocator {
 public:
  File(std::string path, std::vector<double> shares, bool pair)
      : path_(std::move(path)), shares_(std::move(shares)), pair_(pair) {}

  bool layer_local() const override { return false; }
  bool ragged() const override { return true; }
  Status CheckLayers(int num_layers) const override {
    return CheckLayerCount("file", path_, shares_.size(), num_layers);
  }

  void Allocate(std::span<const LayerScores> layers, const Budget& budget, Allocation& out) const override {
    std::vector<double> shares = shares_;
    shares.resize(layers.size(), 0.0);
    const auto total = static_cast<int64_t>(budget.keep) * static_cast<int64_t>(layers.size());
    AllocateLayers(layers, budget, ShareByWeights(total, shares, 0), pair_, out);
  }

 private:
  std::string path_;
  std::vector<double> shares_;
  bool pair_;
};

}  // namespace

StageInfo<Allocator> FileStage() {
  return {"fixed shares of layers from a JSON file, {\"layers\": [one number per layer]}",
          {TextParam("path", "the file; spaces and commas cannot stand in its name"),
           ChoiceParam("level", "uniform|pair", "the same for every head of a layer, or heads compete")},
          [](const Params& p) -> std::unique_ptr<Allocator> {
            Result<std::vector<double>> shares = Read(p);
            return std::make_unique<File>(p.Word("path"), shares ? std::move(*shares) : std::vector<double>(),
                                          p.Choice("level") == 1);
          },
          0,
          [](const Params& p) -> Status {
            PITH_RETURN_IF_ERROR(Read(p));
            return {};
          }};
}

}  // namespace pith
