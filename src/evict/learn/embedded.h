// The models that the program carries.
#ifndef PITH_EVICT_LEARN_EMBEDDED_H_
#define PITH_EVICT_LEARN_EMBEDDED_H_

#include <string_view>

#include "evict/learn/model_file.h"

namespace pith::evict {

std::string_view EmbeddedModel(ModelKind kind);

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_EMBEDDED_H_
