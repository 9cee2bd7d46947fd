#include "evict/learn/coldrl_lanes.h"

#include "evict/learn/fast_math.h"
#include "evict/learn/lanes.h"

// Compiled without contraction of a * b + c, as net.cc is.
namespace pith::evict {
namespace {

constexpr float kLn2 = 0.693147f;
constexpr float kMostValue = 1e12f;  // an infinite time to live is no more than a long one
constexpr float kMostInput = 5;

template <typename L>
[[gnu::always_inline]] inline void LogarithmsBody(float* values, size_t rows) {
  using V = typename L::Floats;
  const V least{};
  const V most = V{} + kMostValue;
  for (float* at = values; at < values + rows * kLanes; at += L::kWidth) {
    const V x = At<L>(at).values;
    const V some = x < least ? least : x;
    const V cut = some > most ? most : some;
    V log;
    FastLog2<L>(1 + cut, log);
    Store<L>(at, x == x ? kLn2 * log : x);
  }
}

template <typename L>
[[gnu::always_inline]] inline void StandardizeBody(const float* features, const float* mean, const float* deviation,
                                                   size_t rows, float* inputs) {
  using V = typename L::Floats;
  const V most = V{} + kMostInput;
  const V least = V{} - kMostInput;
  for (size_t row = 0; row < rows; ++row) {
    for (size_t at = row * kLanes; at < (row + 1) * kLanes; at += L::kWidth) {
      const V z = (At<L>(features + at).values - mean[row]) / deviation[row];
      const V some = z < least ? least : z;
      const V cut = some > most ? most : some;
      Store<L>(inputs + at, z == z ? cut : V{});
    }
  }
}

template <typename L>
[[gnu::always_inline]] inline void PlacesBody(const float* worths, size_t count, uint32_t* places) {
  using V = typename L::Floats;
  const V one = V{} + 1;
  V number;
  for (size_t i = 0; i < L::kWidth; ++i) number[i] = static_cast<float>(i);
  for (size_t first = 0; first < count; first += L::kWidth, number += static_cast<float>(L::kWidth)) {
    const V own = At<L>(worths + first).values;
    V before{};
    V at{};
    for (size_t other = 0; other < count; ++other, at += 1) {
      const V worth = V{} + worths[other];
      const V later = at < number ? one : V{};
      const V tie = worth == own ? later : V{};
      before += worth < own ? one : tie;
    }
    for (size_t i = 0; i < L::kWidth; ++i) places[first + i] = static_cast<uint32_t>(before[i]);
  }
}

#define PITH_COLDRL_BODIES(suffix, attributes, vector)                                                               \
  attributes void Logarithms##suffix(float* values, size_t rows) { LogarithmsBody<vector>(values, rows); }           \
  attributes void Standardize##suffix(const float* features, const float* mean, const float* deviation, size_t rows, \
                                      float* inputs) {                                                               \
    StandardizeBody<vector>(features, mean, deviation, rows, inputs);                                                \
  }                                                                                                                  \
  attributes void Places##suffix(const float* worths, size_t count, uint32_t* places) {                              \
    PlacesBody<vector>(worths, count, places);                                                                       \
  }

PITH_COLDRL_BODIES(Any, , Lanes4)
#if defined(__x86_64__)
// No wider: comparisons of 64 bytes are taken lane by lane by GCC 12.
PITH_COLDRL_BODIES(Avx2, [[gnu::target("avx2")]], Lanes8)
#endif

struct Bodies {
  decltype(&LogarithmsAny) logarithms = LogarithmsAny;
  decltype(&StandardizeAny) standardize = StandardizeAny;
  decltype(&PlacesAny) places = PlacesAny;
};

const Bodies& BestBodies() {
  static const Bodies bodies = [] {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) return Bodies{LogarithmsAvx2, StandardizeAvx2, PlacesAvx2};
#endif
    return Bodies{};
  }();
  return bodies;
}

}  // namespace

void TakeLogarithms(float* values, size_t rows) { BestBodies().logarithms(values, rows); }

void Standardize(const float* features, const float* mean, const float* deviation, size_t rows, float* inputs) {
  BestBodies().standardize(features, mean, deviation, rows, inputs);
}

void PlacesOf(const float* worths, size_t count, uint32_t* places) { BestBodies().places(worths, count, places); }

}  // namespace pith::evict
