#include "evict/learn/online_survival.h"

#include <algorithm>
#include <cmath>

namespace pith::evict {

OnlineSurvival::OnlineSurvival(const Net& net, size_t num_objects, const OnlineOptions& options)
    : options_(options), inputs_(net.inputs()), samples_(options.kept), features_(options.kept * net.inputs()),
      last_(num_objects, kNone), buffers_(net, kBatch), adam_(net.parameters().size()),
      gradient_(net.parameters().size(), 0.0f), rows_(kBatch * net.inputs()),
      slopes_(kBatch * net.output_stride(), 0.0f) {}

void OnlineSurvival::Watch(uint32_t object, uint32_t moment, const float* inputs, Net& net) {
  if (last_[object] != kNone) {
    Sample& sample = samples_[last_[object] % options_.kept];
    if (last_[object] + options_.kept > count_ && sample.object == object) {
      sample.gap = std::max(1u, moment - sample.moment);
    }
    last_[object] = kNone;
  }
  if (random_.Uniform() < options_.share) {
    samples_[count_ % options_.kept] = {object, moment, 0};
    std::copy_n(inputs, inputs_, features_.data() + (count_ % options_.kept) * inputs_);
    last_[object] = count_++;
  }
  for (size_t bin = 0; bin < Survival::kBins; ++bin) {
    uint64_t& next = next_[bin];
    if (next + options_.kept < count_) next = count_ - options_.kept;  // forgotten before it has passed
    // At most a few each time, so that no request waits for long.
    for (int few = 0; few < 4 && next < count_; ++few, ++next) {
      const Sample& sample = samples_[next % options_.kept];
      if (moment - sample.moment < Survival::Begin(bin + 1)) break;
      if (sample.gap != 0 && Survival::BinOf(sample.gap) < bin) continue;
      if (random_.Uniform() < options_.taught) Teach(bin, sample, next % options_.kept, net);
    }
  }
}

void OnlineSurvival::Teach(size_t bin, const Sample& sample, size_t slot, Net& net) {
  std::copy_n(features_.data() + slot * inputs_, inputs_, rows_.data() + batch_ * inputs_);
  bins_[batch_] = static_cast<uint8_t>(bin);
  asked_[batch_] = sample.gap != 0 && Survival::BinOf(sample.gap) == bin;
  if (++batch_ < kBatch) return;
  batch_ = 0;
  const float* outputs = Forward(net, rows_.data(), kBatch, buffers_);
  const size_t stride = net.output_stride();
  std::ranges::fill(slopes_, 0.0f);
  for (size_t b = 0; b < kBatch; ++b) {
    const size_t at = b * stride + bins_[b];
    slopes_[at] = (1 / (1 + std::exp(-outputs[at])) - (asked_[b] != 0 ? 1.0f : 0.0f)) / kBatch;
  }
  Backward(net, rows_.data(), slopes_.data(), kBatch, buffers_, gradient_);
  adam_.Step(net.parameters(), gradient_, options_.rate, 0, 1.0f);
}

}  // namespace pith::evict
