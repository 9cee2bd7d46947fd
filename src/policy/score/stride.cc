// Entries at equal distances, as DeltaKV chooses those that others refer to (arXiv:2602.08005): every so many tokens
// one.
//
// Where more or fewer than these may stay, they are added, or left out, as evenly: in the order of the digits of their
// number to the base 2, read backwards (van der Corput).
#include <cstdint>

#include "policy/stage.h"

namespace pith {
namespace {

// In [0, 1).
float Backwards(uint32_t number) {
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= (number >> i & 1) << (31 - i);
  return static_cast<float>(bits >> 8) / static_cast<float>(1 << 24);
}

class Stride final : public Scorer {
 public:
  explicit Stride(uint32_t every) : every_(every) {}

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    for (size_t h = 0; h < scores.heads.size(); ++h) {
      const std::span<const int32_t> positions = inputs.heads[h].positions;
      for (size_t i = 0; i < positions.size(); ++i) {
        const auto position = static_cast<uint32_t>(positions[i]);
        scores.heads[h][i] = position % every_ == 0 ? 2 - Backwards(position / every_) : 1 - Backwards(position);
      }
    }
  }

 private:
  uint32_t every_;
};

}  // namespace

StageInfo<Scorer> StrideStage() {
  return {"entries at equal distances",
          {IntParam("every", 10, 1, 4096, "tokens from one to the next")},
          [](const Params& p) -> std::unique_ptr<Scorer> {
            return std::make_unique<Stride>(static_cast<uint32_t>(p.Int("every")));
          }};
}

}  // namespace pith
