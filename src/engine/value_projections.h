// Output projections as the norms of values need them (kernels/projected_norms.h).
#ifndef PITH_ENGINE_VALUE_PROJECTIONS_H_
#define PITH_ENGINE_VALUE_PROJECTIONS_H_

#include <cstddef>
#include <map>
#include <span>
#include <vector>

#include "host/model.h"
#include "kernels/projected_norms.h"

namespace pith {

class ValueProjections {
 public:
  // A small model's stay; those of a large one would take a tenth of its weights' memory.
  static constexpr size_t kMostKeptBytes = size_t{32} << 20;

  explicit ValueProjections(const HostModel& model, size_t most_kept_bytes = kMostKeptBytes)
      : model_(model), most_kept_bytes_(most_kept_bytes) {}

  // One for each kv head of a layer; none if the model's files have no such tensor. Valid until the next call. For one
  // thread, outside of tasks of loops (base/parallel.h), which it shares with its team.
  std::span<const kernels::PackedProjection> Of(int layer);

 private:
  std::vector<kernels::PackedProjection> Pack(int layer) const;

  const HostModel& model_;
  const size_t most_kept_bytes_;
  std::map<int, std::vector<kernels::PackedProjection>> kept_;
  size_t kept_bytes_ = 0;
  std::vector<kernels::PackedProjection> latest_;  // of a layer that is not kept
};

}  // namespace pith

#endif  // PITH_ENGINE_VALUE_PROJECTIONS_H_
