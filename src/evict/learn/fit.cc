#include "evict/learn/fit.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <span>

#include "base/byte_io.h"

namespace pith::evict {

void Normalize(Samples& samples, Model& model) {
  const size_t inputs = samples.inputs();
  std::vector<double> sum(inputs, 0);
  std::vector<double> square(inputs, 0);
  size_t begin = 0;
  for (const size_t end : samples.ends()) {
    const double weight = 1.0 / static_cast<double>(end - begin);
    for (size_t s = begin; s < end; ++s) {
      for (size_t i = 0; i < inputs; ++i) {
        const double x = samples.row(s)[i];
        sum[i] += weight * x;
        square[i] += weight * x * x;
      }
    }
    begin = end;
  }
  const auto groups = static_cast<double>(samples.ends().size());
  model.mean.resize(inputs);
  model.deviation.resize(inputs);
  for (size_t i = 0; i < inputs; ++i) {
    const double mean = sum[i] / groups;
    const double variance = square[i] / groups - mean * mean;
    model.mean[i] = static_cast<float>(mean);
    // What never changes stays what it is.
    model.deviation[i] = variance > 1e-6 ? static_cast<float>(std::sqrt(variance)) : 1.0f;
  }
  for (size_t s = 0; s < samples.size(); ++s) model.Normalize(samples.row(s), samples.row(s));
}

namespace {

// Batches of so many steps are drawn from one seed, so that a training can go on at the beginning of any.
constexpr uint64_t kBlock = 500;

class Batches {
 public:
  Batches(const Samples& samples, const FitOptions& options)
      : samples_(samples), options_(options), rows_(options.batch * samples.inputs()), chosen_(options.batch) {}

  void Draw(uint64_t step) {
    if (step % kBlock == 0) random_ = Random(options_.seed * 1'000'003 + step / kBlock);
    const std::vector<size_t>& ends = samples_.ends();
    for (size_t b = 0; b < chosen_.size(); ++b) {
      const size_t group = random_.Below(ends.size());
      const size_t begin = group == 0 ? 0 : ends[group - 1];
      chosen_[b] = begin + random_.Below(ends[group] - begin);
      std::copy_n(samples_.row(chosen_[b]), samples_.inputs(), rows_.data() + b * samples_.inputs());
    }
  }
  const float* rows() const { return rows_.data(); }
  size_t sample(size_t b) const { return chosen_[b]; }

 private:
  const Samples& samples_;
  const FitOptions& options_;
  Random random_{0};
  std::vector<float> rows_;
  std::vector<size_t> chosen_;
};

uint64_t Fingerprint(const Samples& samples, const FitOptions& options) {
  Hash64 hash;
  const double numbers[] = {static_cast<double>(options.seed), static_cast<double>(options.steps),
                            static_cast<double>(options.batch), static_cast<double>(options.hidden), options.rate,
                            options.decay};
  hash.Add(std::as_bytes(std::span(numbers)));
  hash.Add(std::as_bytes(std::span(samples.row(0), std::min<size_t>(samples.size(), 10000) * samples.inputs())));
  hash.Add(std::as_bytes(std::span(samples.ends())));
  return hash.value();
}

}  // namespace

Status Fit(const Samples& normalized, const Loss& loss, const FitOptions& options, const TrainHooks& hooks,
           Model& model) {
  Net& net = model.net;
  const size_t stride = net.output_stride();
  NetBuffers buffers(net, options.batch);
  Adam adam(net.parameters().size());
  std::vector<float> gradient(net.parameters().size(), 0.0f);
  std::vector<float> slopes(options.batch * stride, 0.0f);
  Batches batches(normalized, options);
  const uint64_t fingerprint = Fingerprint(normalized, options);
  TrainProgress progress{0, options.steps, 0, 0};
  if (hooks.from != nullptr) {
    const Checkpoint& from = *hooks.from;
    if (from.fingerprint != fingerprint || from.counters.size() != 1 || from.counters[0] % kBlock != 0 ||
        from.arrays.size() != 3 || std::ranges::any_of(from.arrays, [&](const std::vector<float>& array) {
          return array.size() != gradient.size();
        })) {
      return InvalidArgument("the saved state is of another training: other traces, evictor or options");
    }
    progress.step = adam.steps() = from.counters[0];
    net.parameters() = from.arrays[0];
    adam.first() = from.arrays[1];
    adam.second() = from.arrays[2];
  }
  for (double total = 0; progress.step < options.steps;) {
    batches.Draw(progress.step);
    const float* outputs = Forward(net, batches.rows(), options.batch, buffers);
    double sum = 0;
    for (size_t b = 0; b < options.batch; ++b) {
      sum += loss(batches.sample(b), outputs + b * stride, slopes.data() + b * stride);
    }
    total += sum / options.batch;
    for (float& slope : slopes) slope /= static_cast<float>(options.batch);
    Backward(net, batches.rows(), slopes.data(), options.batch, buffers, gradient);
    const double done = static_cast<double>(progress.step) / static_cast<double>(options.steps);
    const auto rate = static_cast<float>(0.5 * options.rate * (1 + std::cos(done * std::numbers::pi)));
    adam.Step(net.parameters(), gradient, rate, options.decay, 1.0f);
    ++progress.step;
    if (progress.step % kBlock != 0 && progress.step != options.steps) continue;
    progress.loss = total / static_cast<double>((progress.step - 1) % kBlock + 1);
    total = 0;
    if (hooks.save && progress.step % kBlock == 0) {
      PITH_RETURN_IF_ERROR(
          hooks.save({fingerprint, {progress.step}, {net.parameters(), adam.first(), adam.second()}}));
    }
    if (hooks.progress && !hooks.progress(progress)) return Cancelled("the training was stopped");
  }
  return {};
}

}  // namespace pith::evict
