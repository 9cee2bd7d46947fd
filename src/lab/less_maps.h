// What act=less reads, fitted to a model's own queries and keys (policy/learn/less_fit.h).
#ifndef PITH_LAB_LESS_MAPS_H_
#define PITH_LAB_LESS_MAPS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "pith/types.h"
#include "policy/act/less.h"
#include "policy/learn/less_fit.h"

namespace pith {

struct FittedMaps {
  std::shared_ptr<const LessMaps> maps;
  // Of each layer with a global cache: mean squared error of a head's outputs on queries that nothing was fitted to,
  // without states and with them.
  std::vector<double> error_without, error_with;
};

// Reads a text; its second half's queries are fitted to its first half's entries, head by head. progress: of layers and
// of a first step that reads. kUnsupported: layers of the model share their caches. kInvalidArgument: FitLess().
Result<FittedMaps> FitMaps(std::shared_ptr<HostModel> model, std::span<const int32_t> tokens,
                           const LessFitOptions& options, int num_threads, const Progress& progress);

}  // namespace pith

#endif  // PITH_LAB_LESS_MAPS_H_
