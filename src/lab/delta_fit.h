// What act=delta reads, fitted to a model's own keys and values.
#ifndef PITH_LAB_DELTA_FIT_H_
#define PITH_LAB_DELTA_FIT_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "pith/types.h"
#include "policy/act/delta_maps.h"

namespace pith {

struct DeltaFitOptions {
  double latent = 0.168;  // numbers of a latent, over those of a key and a value
  int every = 10;           // tokens from one reference to the next
  int references = 4;       // of a latent
};

struct FittedDelta {
  std::shared_ptr<const DeltaMaps> maps;
  // Of each layer with a global cache, on the text's second half by maps of its first: the mean square of what is left
  // of keys and values, each over the mean square of themselves: by the references alone, and with latents.
  std::vector<double> error_without, error_with;
};

// Reads a text; the principal axes of what its entries differ by from the references nearest to them, head by head.
// progress: of layers. kUnsupported: keys are rotated in a form that cannot be undone. kInvalidArgument: a text of less
// than 256 tokens.
Result<FittedDelta> FitDelta(std::shared_ptr<HostModel> model, std::span<const int32_t> tokens,
                             const DeltaFitOptions& options, int num_threads, const Progress& progress);

}  // namespace pith

#endif  // PITH_LAB_DELTA_FIT_H_
