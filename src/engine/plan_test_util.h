// What tests of plans and recipes share.
#ifndef PITH_ENGINE_PLAN_TEST_UTIL_H_
#define PITH_ENGINE_PLAN_TEST_UTIL_H_

#include "host/model.h"

namespace pith::testing {

// The shape of SmolLM2-135M.
inline ModelInfo SmolInfo() {
  ModelInfo info;
  info.num_layers = 30;
  info.trained_ctx = 8192;
  info.layers.assign(30, LayerShape{.kind = LayerKind::kGlobal,
                                    .num_heads = 9,
                                    .num_kv_heads = 3,
                                    .key_dim = 64,
                                    .value_dim = 64,
                                    .rotation = Rotation(),
                                    .bypasses_block = true});
  return info;
}

}  // namespace pith::testing

#endif  // PITH_ENGINE_PLAN_TEST_UTIL_H_
