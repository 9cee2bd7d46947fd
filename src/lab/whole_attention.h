// What is measured of the layers that recipes act on needs one.
#ifndef PITH_LAB_WHOLE_ATTENTION_H_
#define PITH_LAB_WHOLE_ATTENTION_H_

#include <string_view>

#include <fmt/format.h>

#include "host/model.h"

namespace pith {

// what: "maps are fitted to", in the sentence of a model whose layers all slide or are recurrent.
inline Status CheckHasWholeAttention(const ModelInfo& info, std::string_view what) {
  if (CountLayers(info, LayerKind::kGlobal) > 0) return {};
  return Unsupported(fmt::format("{} layers with whole attention, and this model has none", what));
}

}  // namespace pith

#endif  // PITH_LAB_WHOLE_ATTENTION_H_
