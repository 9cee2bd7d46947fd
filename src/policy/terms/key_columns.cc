#include "policy/terms/key_columns.h"

#include <cmath>

#include "base/parallel.h"
#include "kernels/column_products.h"
#include "policy/terms/dot.h"

namespace pith {
namespace {

constexpr size_t kLine = kernels::kColumnStride;

}  // namespace

KeyColumns UnitColumns(const float* keys, size_t dim, std::span<const size_t> which, float epsilon) {
  KeyColumns out;
  out.stride = (which.size() + kLine - 1) / kLine * kLine;
  out.units.assign(dim * out.stride, 0.0F);
  out.lengths.resize(which.size());
  // Some keys at a time, so that the lines that their elements go to stay in the cache.
  ParallelStretches(which.size(), kLine, [&](size_t begin, size_t end) {
    float scales[kLine];
    for (size_t i = begin; i < end; ++i) {
      const float* key = keys + which[i] * dim;
      const float squares = Dot(key, key, dim);
      out.lengths[i] = std::sqrt(squares);
      scales[i - begin] = squares > 0 ? 1 / (out.lengths[i] + epsilon) : 0;
    }
    for (size_t d = 0; d < dim; ++d) {
      float* column = out.units.data() + d * out.stride;
      for (size_t i = begin; i < end; ++i) column[i] = keys[which[i] * dim + d] * scales[i - begin];
    }
  });
  return out;
}

}  // namespace pith
