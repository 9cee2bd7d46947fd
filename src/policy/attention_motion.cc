#include "policy/attention_motion.h"

#include <vector>

#include "kernels/entropy.h"

namespace pith {

AttentionMotion MotionOf(const LayerInputs& inputs, int window) {
  AttentionMotion motion;
  std::vector<double> mean, squares;
  for (const HeadInputs& head : inputs.heads) {
    const WindowProbs probs(inputs, head, window);
    const int rows = probs.rows();
    const auto columns = static_cast<size_t>(probs.columns());
    for (int g = 0; g < probs.group(); ++g) {
      for (int t = 0; t < rows; ++t) motion.entropy += kernels::Entropy({probs.row(g, t), columns});
      if (rows < 2) continue;
      ColumnVariances(probs, g, mean, squares);
      for (size_t j = 0; j < columns; ++j) motion.variance += squares[j] / (rows - 1);
    }
  }
  return motion;
}

}  // namespace pith
