// What alloc=epicache reads: how much the keys of each layer change when far tokens are hidden (EpiCache,
// arXiv:2509.17396, part B).
#ifndef PITH_LAB_SENSITIVITY_H_
#define PITH_LAB_SENSITIVITY_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "pith/types.h"

namespace pith {

struct SensitivityOptions {
  int block = 4096;     // tokens that see one another, causally
  int first = 128;      // tokens that all see
  int previous = 2048;  // last tokens of the block before, which a block sees, too
  int window = 100;     // tokens whose keys are one vector
  int num_threads = 1;
};

// The mean cosine of each layer with a global cache, between keys of a text that is read whole and one whose far tokens
// are hidden: what a block may not see has been dropped before it is read. kInvalidArgument: the text is one block, so
// that nothing is hidden.
Result<std::vector<double>> MeasureSensitivity(std::shared_ptr<HostModel> model, std::span<const int32_t> tokens,
                                               const SensitivityOptions& options, const Progress& progress);

}  // namespace pith

#endif  // PITH_LAB_SENSITIVITY_H_
