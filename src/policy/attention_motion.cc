#include "policy/attention_motion.h"

#include <cmath>

namespace pith {

AttentionMotion MotionOf(const LayerInputs& inputs, int window) {
  AttentionMotion motion;
  for (const HeadInputs& head : inputs.heads) {
    const WindowProbs probs(inputs, head, window);
    const int rows = probs.rows();
    for (int g = 0; g < probs.group(); ++g) {
      for (size_t j = 0; j < static_cast<size_t>(probs.columns()); ++j) {
        double sum = 0;
        for (int t = 0; t < rows; ++t) {
          const double a = static_cast<double>(probs.row(g, t)[j]);
          motion.entropy -= a * std::log(a + 1e-10);
          sum += a;
        }
        double squares = 0;
        for (int t = 0; t < rows; ++t) {
          const double d = static_cast<double>(probs.row(g, t)[j]) - sum / rows;
          squares += d * d;
        }
        if (rows > 1) motion.variance += squares / (rows - 1);
      }
    }
  }
  return motion;
}

}  // namespace pith
