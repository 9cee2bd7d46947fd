// Goes on training a network (evict/learn/survival.h) on the requests that it decides about.
//
// Of the requests a share is kept for a while. Whether the object was asked for again in a bin of gaps is known once
// the bin has passed, and then is learned of that bin alone: short gaps teach soon, long ones late, and none of them
// more often than they come.
#ifndef PITH_EVICT_LEARN_ONLINE_SURVIVAL_H_
#define PITH_EVICT_LEARN_ONLINE_SURVIVAL_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "evict/learn/survival.h"
#include "evict/random.h"

namespace pith::evict {

struct OnlineOptions {
  float rate = 2e-4f;   // Adam; 0: the network stays as it is
  double share = 0.25;  // of the requests that are kept
  size_t kept = 1 << 15;
  double taught = 0.5;  // share of their bins that teach
};

class OnlineSurvival {
 public:
  // num_objects: requests are for numbers below it. Allocates all that it ever needs.
  OnlineSurvival(const Net& net, size_t num_objects, const OnlineOptions& options);

  // To be called with every request, in order; inputs: normalized. May change the network.
  void Watch(uint32_t object, uint32_t moment, const float* inputs, Net& net);
  // The number is another object's from now on.
  void Forget(uint32_t object) { last_[object] = kNone; }

 private:
  static constexpr size_t kBatch = 16;
  static constexpr uint64_t kNone = UINT64_MAX;
  struct Sample {
    uint32_t object = 0;
    uint32_t moment = 0;
    uint32_t gap = 0;  // 0: not asked for again so far
  };

  void Teach(size_t bin, const Sample& sample, size_t slot, Net& net);

  const OnlineOptions options_;
  const size_t inputs_;
  Random random_{1};
  std::vector<Sample> samples_;         // a ring
  std::vector<float> features_;         // of them
  std::vector<uint64_t> last_;          // by object: number of its last sample, if that is its last request
  uint64_t count_ = 0;                  // samples so far
  std::array<uint64_t, Survival::kBins> next_{};  // the first sample whose bin has not passed
  NetBuffers buffers_;
  Adam adam_;
  std::vector<float> gradient_;
  std::vector<float> rows_;
  std::vector<float> slopes_;
  std::array<uint8_t, kBatch> bins_{};
  std::array<uint8_t, kBatch> asked_{};
  size_t batch_ = 0;
};

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_ONLINE_SURVIVAL_H_
