// What Cold-RL computes beside its network, of sixteen candidates at a time, for the instructions that the processor
// has. The same bits on every one.
#ifndef PITH_EVICT_LEARN_COLDRL_LANES_H_
#define PITH_EVICT_LEARN_COLDRL_LANES_H_

#include <cstddef>
#include <cstdint>

namespace pith::evict {

// values [rows, kLanes]: ln(1 + x) takes the place of each x; NaN stays. Negative ones count as 0.
void TakeLogarithms(float* values, size_t rows);

// features [rows, kLanes] -> inputs [rows, kLanes]: (x - mean) / deviation of the row, cut at +-5; NaN, which stands
// for "unknown", becomes 0.
void Standardize(const float* features, const float* mean, const float* deviation, size_t rows, float* inputs);

// places: how many of `count` <= 2 * kLanes worths are less than each one, or equal and before it. worths has room for
// 2 * kLanes floats.
void PlacesOf(const float* worths, size_t count, uint32_t* places);

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_COLDRL_LANES_H_
