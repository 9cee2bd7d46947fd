#include "evict/learn/one_bit_model.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "evict/learn/fast_math.h"
#include "evict/one_bit.h"

namespace pith::evict {
namespace {

constexpr size_t kMostSamples = 100'000;  // of one trace and capacity

class Watcher {
 public:
  Watcher(const Trace& trace, uint64_t capacity) : trace_(trace), capacity_(capacity), history_(trace.num_objects()) {}

  // Of access i; to be called for all, in order.
  void Next(size_t i, float* inputs) {
    const Access access = trace_.AtNext(i, prompt_);
    history_.Record(access, inputs);
    bytes_ += static_cast<double>(access.size);
    const double objects = static_cast<double>(capacity_) * static_cast<double>(i + 1) / std::max(1.0, bytes_);
    inputs[History::kFeatures] = FastLog2(1 + static_cast<float>(std::min(objects, 1e12)));
  }

 private:
  const Trace& trace_;
  const uint64_t capacity_;
  History history_;
  size_t prompt_ = 0;
  double bytes_ = 0;
};

}  // namespace

std::vector<uint8_t> PredictBits(const Model& model, const Trace& trace, uint64_t capacity, double p_zero) {
  Watcher watcher(trace, capacity);
  NetBuffers buffers(model.net, 1);
  std::vector<uint8_t> bits(trace.num_accesses());
  std::array<float, kOneBitInputs> inputs;
  // P(1) = sigmoid(output)
  const double threshold = p_zero >= 1 ? -1e9 : std::log((1 - p_zero) / std::max(p_zero, 1e-9));
  for (size_t i = 0; i < bits.size(); ++i) {
    watcher.Next(i, inputs.data());
    model.Normalize(inputs.data(), inputs.data());
    bits[i] = !(Forward(model.net, inputs.data(), 1, buffers)[0] < threshold);
  }
  return bits;
}

Result<Model> TrainOneBit(ModelKind kind, const std::vector<Trace>& traces, const std::vector<uint64_t>& capacities,
                          const FitOptions& options, const TrainHooks& hooks) {
  Random random(options.seed);
  Samples samples(kOneBitInputs);
  std::vector<uint8_t> labels;
  std::array<float, kOneBitInputs> inputs;
  for (const Trace& trace : traces) {
    for (const uint64_t capacity : capacities) {
      std::vector<uint8_t> bits;
      if (kind == ModelKind::kPhaseBit) {
        bits = PhaseBits(trace, capacity);
      } else {
        PITH_ASSIGN_OR_RETURN(bits, DiscardBits(trace, capacity));
      }
      Watcher watcher(trace, capacity);
      const double share = static_cast<double>(kMostSamples) / static_cast<double>(bits.size());
      for (size_t i = 0; i < bits.size(); ++i) {
        watcher.Next(i, inputs.data());
        if (random.Uniform() >= share) continue;
        samples.Add(inputs.data());
        labels.push_back(bits[i]);
      }
      samples.EndGroup();
    }
  }
  if (samples.size() == 0) return InvalidArgument("there is nothing to learn from");
  Model model;
  model.kind = kind;
  model.net = Net(std::array<uint32_t, 4>{kOneBitInputs, options.hidden, options.hidden, 1});
  model.net.Initialize(random);
  Normalize(samples, model);
  const Loss loss = [&](size_t sample, const float* outputs, float* slopes) {
    const double p = 1 / (1 + std::exp(-static_cast<double>(outputs[0])));
    slopes[0] = static_cast<float>(p - labels[sample]);
    return -std::log(std::max(labels[sample] != 0 ? p : 1 - p, 1e-9));
  };
  PITH_RETURN_IF_ERROR(Fit(samples, loss, options, hooks, model));
  return model;
}

}  // namespace pith::evict
