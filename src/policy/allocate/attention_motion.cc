#include "policy/allocate/attention_motion.h"

#include <vector>

#include "base/parallel.h"
#include "kernels/entropy.h"

namespace pith {

AttentionMotion MotionOf(const LayerInputs& inputs, int window) {
  const auto group = static_cast<size_t>(inputs.group);
  std::vector<AttentionMotion> of_heads(inputs.heads.size() * group);  // query heads
  ParallelFor(of_heads.size(), [&](size_t h) {
    std::vector<double> mean, squares;
    AttentionMotion& motion = of_heads[h];
    const WindowProbs probs(inputs, inputs.heads[h / group], window);
    const int g = static_cast<int>(h % group), rows = probs.rows();
    const auto columns = static_cast<size_t>(probs.columns());
    for (int t = 0; t < rows; ++t) motion.entropy += kernels::Entropy({probs.row(g, t), columns});
    if (rows < 2) return;
    ColumnVariances(probs, g, mean, squares);
    for (size_t j = 0; j < columns; ++j) motion.variance += squares[j] / (rows - 1);
  });
  AttentionMotion sum;
  for (const AttentionMotion& motion : of_heads) {
    sum.entropy += motion.entropy;
    sum.variance += motion.variance;
  }
  return sum;
}

}  // namespace pith
