#include "evict/learn/train_survival.h"

#include <array>
#include <cstdint>

#include "evict/learn/survival.h"

namespace pith::evict {
namespace {

constexpr size_t kMostSamples = 150'000;  // of one trace
constexpr float kRare = -5;                // a hazard of less than one in a hundred

struct Outcome {
  uint32_t gap;
  bool asked;
};

void Collect(const Trace& trace, Random& random, Samples& samples, std::vector<Outcome>& outcomes) {
  History history(trace.num_objects());
  std::array<float, History::kFeatures> features;
  const double share = static_cast<double>(kMostSamples) / static_cast<double>(trace.num_accesses());
  const auto end = static_cast<uint32_t>(trace.num_requests());
  for (size_t i = 0; i < trace.num_accesses(); ++i) {
    const Access access = trace.At(i);
    history.Record(access, features.data());
    if (random.Uniform() >= share) continue;
    samples.Add(features.data());
    const bool asked = access.next != kNever;
    outcomes.push_back({(asked ? access.next : end) - access.moment, asked});
  }
  samples.EndGroup();
}

}  // namespace

Result<Model> TrainSurvival(const std::vector<Trace>& traces, const FitOptions& options, const TrainHooks& hooks) {
  Random random(options.seed);
  Samples samples(History::kFeatures);
  std::vector<Outcome> outcomes;
  for (const Trace& trace : traces) {
    if (trace.has_prompts())
      return Unsupported("learned needs no training for prompts: of them it learns as they pass");
    Collect(trace, random, samples, outcomes);
  }
  if (samples.size() == 0) return InvalidArgument("there is nothing to learn from");
  Model model;
  model.kind = ModelKind::kSurvival;
  model.net = Net(std::array<uint32_t, 4>{History::kFeatures, options.hidden, options.hidden,
                                          static_cast<uint32_t>(Survival::kBins)});
  model.net.Initialize(random);
  // Gaps that no trace is long enough for teach nothing: of them the network goes on saying that they are rare.
  const Net::Layer& last = model.net.layers().back();
  for (size_t i = last.weights; i < last.biases; ++i) model.net.parameters()[i] = 0;
  for (uint32_t o = 0; o < last.out; ++o) model.net.parameters()[last.biases + o] = kRare;
  Normalize(samples, model);
  const Loss loss = [&](size_t sample, const float* outputs, float* slopes) {
    return Survival::Slopes(outputs, outcomes[sample].gap, outcomes[sample].asked, slopes);
  };
  PITH_RETURN_IF_ERROR(Fit(samples, loss, options, hooks, model));
  return model;
}

}  // namespace pith::evict
