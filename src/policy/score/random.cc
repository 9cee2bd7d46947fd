// A seeded draw per entry: the bracket below every other recipe. An entry keeps its draw for life,
// so the result depends on seed, layer, head and position alone, not on when evictions happen.
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

// SplitMix64, github.com/vigna: one step is a good hash of its state.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

class Random final : public Scorer {
 public:
  explicit Random(uint64_t seed) : seed_(seed) {}

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    for (size_t h = 0; h < scores.heads.size(); ++h) {
      const uint64_t head = Mix(Mix(Mix(inputs.seed ^ seed_) + static_cast<uint64_t>(inputs.layer)) + h);
      for (size_t i = 0; i < scores.heads[h].size(); ++i) {
        const uint64_t draw = Mix(head + static_cast<uint64_t>(inputs.heads[h].positions[i]));
        scores.heads[h][i] = static_cast<float>(draw >> 40) * 0x1p-24F;
      }
    }
  }

 private:
  uint64_t seed_;
};

}  // namespace

StageInfo<Scorer> RandomStage() {
  return {"a seeded draw for each entry",
          {IntParam("seed", 0, 0, 1 << 30, "mixed with the sequence's seed")},
          [](const Params& p) -> std::unique_ptr<Scorer> {
            return std::make_unique<Random>(static_cast<uint64_t>(p.Int("seed")));
          }};
}

}  // namespace pith
