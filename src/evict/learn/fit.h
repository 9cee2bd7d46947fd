// Fits a network to samples, one batch after the other, in an order that the seed fixes.
#ifndef PITH_EVICT_LEARN_FIT_H_
#define PITH_EVICT_LEARN_FIT_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "evict/learn/checkpoint.h"
#include "evict/learn/model_file.h"
#include "pith/types.h"

namespace pith::evict {

struct FitOptions {
  uint64_t seed = 1;
  uint64_t steps = 20000;
  uint32_t batch = 64;
  uint32_t hidden = 32;  // width of the two inner layers
  float rate = 2e-3f;    // falls to 0 along a cosine
  float decay = 1e-5f;
};

// Samples in groups, from which batches are drawn alike.
class Samples {
 public:
  explicit Samples(size_t inputs) : inputs_(inputs) {}
  size_t inputs() const { return inputs_; }
  size_t size() const { return features_.size() / inputs_; }
  // Row `size()`; the caller remembers what belongs to it.
  void Add(const float* features) { features_.insert(features_.end(), features, features + inputs_); }
  void EndGroup() {
    if (size() > (ends_.empty() ? 0 : ends_.back())) ends_.push_back(size());
  }
  const std::vector<size_t>& ends() const { return ends_; }
  const float* row(size_t i) const { return features_.data() + i * inputs_; }
  float* row(size_t i) { return features_.data() + i * inputs_; }

 private:
  const size_t inputs_;
  std::vector<float> features_;
  std::vector<size_t> ends_;  // of groups
};

// Mean and deviation by input, each group counting the same; the samples are then normalized in place.
void Normalize(Samples& samples, Model& model);

// loss(sample, outputs, slopes): fills the slopes of one sample's loss and gives it.
using Loss = std::function<double(size_t, const float*, float*)>;

// model.net is what it begins with.
Status Fit(const Samples& normalized, const Loss& loss, const FitOptions& options, const TrainHooks& hooks,
           Model& model);

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_FIT_H_
