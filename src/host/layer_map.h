// Layers that read another layer's cache in place of one of their own (KVSharer, arXiv:2410.18517).
#ifndef PITH_HOST_LAYER_MAP_H_
#define PITH_HOST_LAYER_MAP_H_

#include <span>

#include "host/model.h"
#include "pith/types.h"

namespace pith {

// map: for each layer of the model the one whose cache it reads, itself or one before it that has its own. Layers that
// follow another one have no cache from now on; what the model computes for it is not used. kInvalidArgument: the map
// does not fit the model.
Status ApplyLayerMap(std::span<const int> map, ModelInfo& info);

}  // namespace pith

#endif  // PITH_HOST_LAYER_MAP_H_
