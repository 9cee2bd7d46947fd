// Random numbers that are the same on every machine.
#ifndef PITH_EVICT_RANDOM_H_
#define PITH_EVICT_RANDOM_H_

#include <cstdint>

namespace pith::evict {

// SplitMix64 (Steele, Lea and Flood 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // In [0, 1).
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }
  // In [0, limit), limit > 0.
  uint32_t Below(size_t limit) {
    return static_cast<uint32_t>(static_cast<uint64_t>((static_cast<unsigned __int128>(Next()) * limit) >> 64));
  }

 private:
  uint64_t state_;
};

}  // namespace pith::evict

#endif  // PITH_EVICT_RANDOM_H_
