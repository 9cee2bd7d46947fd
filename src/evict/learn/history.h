// What is remembered of each object's requests, stored or not, and what of it a model sees with a request.
#ifndef PITH_EVICT_LEARN_HISTORY_H_
#define PITH_EVICT_LEARN_HISTORY_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "evict/trace.h"

namespace pith::evict {

class History {
 public:
  static constexpr size_t kFeatures = 27;

  explicit History(size_t num_objects) : objects_(num_objects) {}

  // To be called with every request, in order. Fills kFeatures floats.
  void Record(const Access& access, float* features);
  void Forget(uint32_t object) { objects_[object] = {}; }

  // Requests of the object so far.
  uint32_t count(uint32_t object) const { return objects_[object].count; }

 private:
  static constexpr size_t kRates = 4;
  static constexpr size_t kSizeClasses = 8;
  struct Object {
    uint32_t count = 0;
    uint32_t first = 0;  // moments
    uint32_t last = 0;
    uint32_t gaps[2] = {0, 0};            // the last but one, the last but two
    std::array<float, kRates> rates{};    // requests, decayed by half with each of kHalfLives
    uint32_t chain = 0;                   // blocks of the last prompt that it was in
    uint16_t turn = 0;                    // of that prompt
  };
  // Of all requests so far, older ones fading.
  struct Mean {
    double sum = 0;
    double weight = 0;
    void Add(double value, double keep) {
      sum = sum * keep + value;
      weight = weight * keep + 1;
    }
    double value() const { return weight > 0 ? sum / weight : 0; }
  };
  struct SizeClass {
    Mean again;  // share of requests that are not first ones
    Mean gap;    // log2 of gaps
  };

  void BeginPrompt(const Access& access);
  size_t ClassOf(float log_size) const;

  std::vector<Object> objects_;
  uint64_t requests_ = 0;
  Mean log_size_;
  Mean log_size_square_;
  Mean again_;
  Mean gap_;
  std::array<SizeClass, kSizeClasses> classes_;
  // Of the prompt that passes.
  uint32_t prompt_ = UINT32_MAX;
  uint32_t known_ = 0;  // leading blocks that were asked for before
  uint16_t turn_ = 0;   // prompts before it that it goes on from
  float log_pause_ = 0;  // since the last of them
};

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_HISTORY_H_
