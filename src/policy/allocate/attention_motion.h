// How spread out a layer's attention is and how much it moves (CAKE, arXiv:2503.12491).
#ifndef PITH_POLICY_ALLOCATE_ATTENTION_MOTION_H_
#define PITH_POLICY_ALLOCATE_ATTENTION_MOTION_H_

#include "policy/stage.h"

namespace pith {

// Sums over query heads and over the entries before the window.
struct AttentionMotion {
  double entropy = 0;   // of all rows of the window
  double variance = 0;  // over the window's queries, unbiased
};
AttentionMotion MotionOf(const LayerInputs& inputs, int window);

}  // namespace pith

#endif  // PITH_POLICY_ALLOCATE_ATTENTION_MOTION_H_
