// Keys at unit length as columns, for kernels that go through many keys abreast.
#ifndef PITH_POLICY_TERMS_KEY_COLUMNS_H_
#define PITH_POLICY_TERMS_KEY_COLUMNS_H_

#include <cstddef>
#include <span>
#include <vector>

namespace pith {

struct KeyColumns {
  size_t stride = 0;           // from channel to channel: a multiple of kernels::kColumnStride
  std::vector<float> units;    // [dim, stride], zeros beyond the last key
  std::vector<float> lengths;  // [n]
};

// keys: [.., dim], of which those in `which` become the columns, in that order. A key of no length stays 0; otherwise
// `epsilon` is added to lengths before keys are divided by them.
KeyColumns UnitColumns(const float* keys, size_t dim, std::span<const size_t> which, float epsilon = 0);

}  // namespace pith

#endif  // PITH_POLICY_TERMS_KEY_COLUMNS_H_
