// Attention output projections, read from the GGUF on first use.
#ifndef PITH_HOST_OUTPUT_PROJECTION_H_
#define PITH_HOST_OUTPUT_PROJECTION_H_

#include <map>
#include <mutex>
#include <span>
#include <vector>

#include "host/model.h"

namespace pith {

class OutputProjections {
 public:
  // [hidden, heads * Dv] float32, dequantised once; empty if the file has no such tensor.
  std::span<const float> Get(const ModelInfo& info, int layer);

 private:
  std::mutex mutex_;
  std::map<int, std::vector<float>> weights_;
};

}  // namespace pith

#endif  // PITH_HOST_OUTPUT_PROJECTION_H_
