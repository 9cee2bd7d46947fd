#include "evict/learn/train_coldrl.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <numeric>
#include <span>
#include <string>
#include <utility>

#include "base/byte_io.h"
#include "evict/learn/coldrl_cache.h"
#include "evict/learn/transitions.h"

namespace pith::evict {
namespace {

constexpr size_t kInputs = ColdRl::kInputs;
constexpr size_t kFeatures = ColdRl::kFeatures;

struct Cache {
  const Trace* trace = nullptr;
  uint64_t capacity = 0;
  double gap = 0;  // s between two decisions about the same object, about
  size_t learnt() const { return trace->num_accesses() * 7 / 10; }  // accesses; the rest is kept aside
};

// LRU decides: the features' mean and deviation, and the time between decisions.
class Survey {
 public:
  void Decide(double time, const ColdRlCandidate* candidates, const uint32_t*, size_t count, uint32_t* order) {
    if (!times_.empty()) gaps_.push_back(time - times_.back());
    times_.push_back(time);
    float all[ColdRl::kMostCandidates * kFeatures];
    ColdRl::Features(candidates, count, all);
    for (size_t c = 0; c < count; ++c) {
      const float* const features = all + c * kFeatures;
      for (size_t f = 0; f < kFeatures; ++f) {
        if (std::isnan(features[f])) continue;
        ++known_[f];
        sum_[f] += features[f];
        square_[f] += static_cast<double>(features[f]) * features[f];
      }
    }
    std::iota(order, order + count, 0u);
  }
  void Left(uint32_t) {}

  double MedianGap() {
    if (gaps_.empty()) return 0;
    std::ranges::nth_element(gaps_, gaps_.begin() + static_cast<std::ptrdiff_t>(gaps_.size() / 2));
    return gaps_[gaps_.size() / 2];
  }
  bool empty() const { return times_.empty(); }
  // Each survey counts the same.
  void AddTo(std::array<double, kFeatures>& mean, std::array<double, kFeatures>& square) const {
    for (size_t f = 0; f < kFeatures; ++f) {
      const double n = std::max(1.0, known_[f]);
      mean[f] += sum_[f] / n;
      square[f] += square_[f] / n;
    }
  }

 private:
  std::array<double, kFeatures> known_{};
  std::array<double, kFeatures> sum_{};
  std::array<double, kFeatures> square_{};
  std::vector<double> times_;
  std::vector<double> gaps_;
};

// Decides by a mixture of rules and remembers what became of each candidate.
class Collector {
 public:
  Collector(const Cache& cache, ColdRl& network, const ColdRlOptions& options, Random& random, Transitions& memory)
      : cache_(cache), network_(network), options_(options), random_(random), memory_(memory),
        open_(cache.trace->num_objects()),
        replay_(*cache.trace, cache.capacity, options.cache, options.with_ttl, *this) {}

  void Run() {
    replay_.Run(cache_.learnt());
    for (uint32_t object = 0; object < open_.size(); ++object) Close(object, nullptr);
  }

  void Decide(double time, const ColdRlCandidate* candidates, const uint32_t* which, size_t count, uint32_t* order) {
    float inputs[ColdRl::kMostCandidates * kInputs];
    network_.Inputs(candidates, count, inputs);
    for (size_t c = 0; c < count; ++c) {
      const float* state = inputs + c * kInputs;
      Close(which[c], state);
      Transition gone;
      std::copy_n(state, kInputs, gone.state);
      std::copy_n(state, kInputs, gone.next);
      gone.evict = true;
      gone.reward = -CostOfEviction(which[c], time, time + candidates[c].ttl);
      memory_.Add(gone, random_);
      Open& open = open_[which[c]];
      std::copy_n(state, kInputs, open.state);
      open.time = time;
      open.hits = replay_.cache().hits(which[c]);
      open.is_open = true;
    }
    Order(candidates, count, order);
  }
  // Whom the rules chose, or who fell out of the cache beside them, tells nothing of being kept.
  void Left(uint32_t object) { open_[object].is_open = false; }

 private:
  struct Open {
    float state[kInputs];
    double time = 0;
    uint32_t hits = 0;
    bool is_open = false;
  };

  // next: its state as a candidate again; null: the trace is over.
  void Close(uint32_t object, const float* next) {
    Open& open = open_[object];
    if (!open.is_open) return;
    open.is_open = false;
    Transition kept;
    std::copy_n(open.state, kInputs, kept.state);
    std::copy_n(next != nullptr ? next : open.state, kInputs, kept.next);
    kept.reward = static_cast<float>(replay_.cache().hits(object) - open.hits);
    if (next != nullptr) kept.discount = Discount(replay_.time() - open.time);
    memory_.Add(kept, random_);
  }

  // Less, the later the miss.
  float CostOfEviction(uint32_t object, double now, double expires) const {
    const Trace& trace = *cache_.trace;
    const uint32_t next = replay_.cache().next(object);
    if (next == kNever) return 0;
    const double time = trace.has_prompts() ? trace.prompts[next].time : trace.time[next];
    return options_.with_ttl && time > expires ? 0 : Discount(time - now);
  }
  float Discount(double seconds) const {
    return static_cast<float>(std::pow(static_cast<double>(options_.gamma), cache_.gap > 0 ? seconds / cache_.gap : 1));
  }

  void Order(const ColdRlCandidate* candidates, size_t count, uint32_t* order) {
    const double lot = random_.Uniform();
    std::array<double, ColdRl::kMostCandidates> worth{};
    if (lot < 0.4) {  // LRU: as they stand
    } else if (lot < 0.6) {
      for (size_t c = 0; c < count; ++c) worth[c] = (1 + candidates[c].hits) / std::max(1.0, candidates[c].size);
    } else if (lot < 0.7) {
      for (size_t c = 0; c < count; ++c) worth[c] = -candidates[c].size;
    } else if (lot < 0.8) {
      for (size_t c = 0; c < count; ++c) worth[c] = random_.Uniform();
    } else if (const float* margins = network_.Margins(candidates, count); margins != nullptr) {
      OrderVictims(candidates, margins, count, /*per_byte=*/true, order);
      return;
    }
    std::iota(order, order + count, 0u);
    std::stable_sort(order, order + count, [&](uint32_t a, uint32_t b) { return worth[a] < worth[b]; });
  }

  const Cache& cache_;
  ColdRl& network_;
  const ColdRlOptions& options_;
  Random& random_;
  Transitions& memory_;
  std::vector<Open> open_;
  ColdRlReplay<Collector> replay_;
};

// Hits on what is kept aside, when the network decides.
class Judge {
 public:
  explicit Judge(ColdRl& network) : network_(network) {}
  void Decide(double, const ColdRlCandidate* candidates, const uint32_t*, size_t count, uint32_t* order) {
    const float* margins = network_.Margins(candidates, count);
    if (margins != nullptr) {
      OrderVictims(candidates, margins, count, /*per_byte=*/true, order);
    } else {
      std::iota(order, order + count, 0u);
    }
  }
  void Left(uint32_t) {}

 private:
  ColdRl& network_;
};

class Training {
 public:
  Training(std::vector<Cache> caches, const ColdRlOptions& options, Model model)
      : caches_(std::move(caches)), options_(options), network_(std::move(model)), target_(network_.model().net),
        best_(network_.model().net.parameters()), adam_(best_.size()), gradient_(best_.size(), 0.0f),
        buffers_(target_, options.batch), next_buffers_(target_, options.batch),
        target_buffers_(target_, options.batch),
        states_(options.batch * kInputs), nexts_(options.batch * kInputs),
        slopes_(options.batch * target_.output_stride(), 0.0f), chosen_(options.batch) {}

  Result<Model> Run(const TrainHooks& hooks) {
    const uint64_t fingerprint = Fingerprint();
    if (hooks.from != nullptr) PITH_RETURN_IF_ERROR(Restore(*hooks.from, fingerprint));
    while (epoch_ < options_.epochs && epoch_ - best_epoch_ < options_.patience) {
      const double loss = Epoch();
      const double ratio = HitRatio();
      ++epoch_;
      if (ratio > best_ratio_) {
        best_ratio_ = static_cast<float>(ratio);
        best_epoch_ = epoch_;
        best_ = net().parameters();
      }
      if (hooks.save) PITH_RETURN_IF_ERROR(hooks.save(State(fingerprint)));
      if (hooks.progress && !hooks.progress({epoch_, options_.epochs, loss, ratio})) {
        return Cancelled("the training was stopped");
      }
    }
    net().parameters() = best_;
    return network_.model();
  }

 private:
  Net& net() { return network_.model().net; }

  double Epoch() {
    // Of its own, so that a training goes on at any epoch as if it had never stopped.
    Random random(options_.seed * 1'000'003 + epoch_);
    Transitions memory(options_.memory);
    for (const Cache& cache : caches_) Collector(cache, network_, options_, random, memory).Run();
    if (memory.size() == 0) return 0;
    memory.Start();
    double loss = 0;
    for (uint32_t step = 0; step < options_.steps; ++step) loss += Step(memory, random);
    return loss / options_.steps;
  }

  double Step(Transitions& memory, Random& random) {
    for (size_t b = 0; b < chosen_.size(); ++b) {
      chosen_[b] = memory.Draw(random);
      std::copy_n(memory[chosen_[b]].state, kInputs, states_.data() + b * kInputs);
      std::copy_n(memory[chosen_[b]].next, kInputs, nexts_.data() + b * kInputs);
    }
    const size_t stride = target_.output_stride();
    const float* q = Forward(net(), states_.data(), chosen_.size(), buffers_);
    const float* next = Forward(net(), nexts_.data(), chosen_.size(), next_buffers_);
    const float* judged = Forward(target_, nexts_.data(), chosen_.size(), target_buffers_);
    const double done = static_cast<double>(adam_.steps()) / (static_cast<double>(options_.epochs) * options_.steps);
    const double beta = 0.4 + 0.6 * done;
    double loss = 0;
    for (size_t b = 0; b < chosen_.size(); ++b) {
      const Transition& t = memory[chosen_[b]];
      const float* choice = next + b * stride;
      const float* value = judged + b * stride;
      // Double DQN: the network chooses, the slower one says what the choice is worth.
      const float later = ColdRl::Evict(choice) > ColdRl::Keep(choice) ? ColdRl::Evict(value) : ColdRl::Keep(value);
      const float* now = q + b * stride;
      const float error = (t.evict ? ColdRl::Evict(now) : ColdRl::Keep(now)) - (t.reward + t.discount * later);
      const double share = memory.priority(chosen_[b]) / memory.total() * static_cast<double>(memory.size());
      const auto weight = static_cast<float>(std::min(1.0, std::pow(share, -beta)));
      // Huber's loss.
      const float slope = weight * std::clamp(error, -1.0f, 1.0f) / static_cast<float>(chosen_.size());
      float* slopes = slopes_.data() + b * stride;
      slopes[0] = slope;
      slopes[1] = (t.evict ? -0.5f : 0.5f) * slope;
      slopes[2] = -slopes[1];
      loss += std::abs(error) < 1 ? 0.5 * error * error : std::abs(error) - 0.5;
      memory.SetError(chosen_[b], error);
    }
    Backward(net(), states_.data(), slopes_.data(), chosen_.size(), buffers_, gradient_);
    const auto rate = static_cast<float>(0.5 * options_.rate * (1 + std::cos(done * std::numbers::pi)));
    adam_.Step(net().parameters(), gradient_, rate, options_.decay, 1.0f);
    for (size_t i = 0; i < best_.size(); ++i) {
      target_.parameters()[i] += options_.tau * (net().parameters()[i] - target_.parameters()[i]);
    }
    return loss / static_cast<double>(chosen_.size());
  }

  double HitRatio() {
    double sum = 0;
    for (const Cache& cache : caches_) {
      Judge judge(network_);
      ColdRlReplay<Judge> replay(*cache.trace, cache.capacity, options_.cache, options_.with_ttl, judge);
      replay.Run(cache.learnt());
      const size_t end = cache.trace->num_accesses();
      sum += static_cast<double>(replay.Run(end)) / static_cast<double>(std::max<size_t>(1, end - cache.learnt()));
    }
    return sum / static_cast<double>(caches_.size());
  }

  uint64_t Fingerprint() const {
    Hash64 hash;
    const double numbers[] = {static_cast<double>(options_.seed), static_cast<double>(options_.epochs),
                              static_cast<double>(options_.steps), static_cast<double>(options_.batch),
                              static_cast<double>(options_.hidden), static_cast<double>(options_.cache.candidates),
                              options_.cache.from_tail ? 1.0 : 0.0,
                              static_cast<double>(options_.memory), options_.gamma, options_.rate, options_.decay,
                              options_.tau, options_.with_ttl ? 1.0 : 0.0};
    hash.Add(std::as_bytes(std::span(numbers)));
    for (const Cache& cache : caches_) {
      hash.Add(std::as_bytes(std::span(&cache.capacity, 1)));
      hash.Add(std::as_bytes(std::span(cache.trace->object)));
    }
    return hash.value();
  }

  Checkpoint State(uint64_t fingerprint) {
    return {fingerprint,
            {epoch_, best_epoch_, adam_.steps()},
            {net().parameters(), target_.parameters(), best_, adam_.first(), adam_.second(), {best_ratio_}}};
  }

  Status Restore(const Checkpoint& from, uint64_t fingerprint) {
    bool fits = from.fingerprint == fingerprint && from.counters.size() == 3 && from.arrays.size() == 6 &&
                from.arrays[5].size() == 1;
    for (size_t a = 0; fits && a < 5; ++a) fits = from.arrays[a].size() == best_.size();
    if (!fits) return InvalidArgument("the saved state is of another training: other traces, evictor or options");
    epoch_ = from.counters[0];
    best_epoch_ = from.counters[1];
    adam_.steps() = from.counters[2];
    net().parameters() = from.arrays[0];
    target_.parameters() = from.arrays[1];
    best_ = from.arrays[2];
    adam_.first() = from.arrays[3];
    adam_.second() = from.arrays[4];
    best_ratio_ = from.arrays[5][0];
    return {};
  }

  const std::vector<Cache> caches_;
  const ColdRlOptions& options_;
  ColdRl network_;
  Net target_;
  std::vector<float> best_;  // parameters
  float best_ratio_ = -1;
  uint64_t epoch_ = 0;
  uint64_t best_epoch_ = 0;
  Adam adam_;
  std::vector<float> gradient_;
  NetBuffers buffers_;
  NetBuffers next_buffers_;
  NetBuffers target_buffers_;
  std::vector<float> states_;
  std::vector<float> nexts_;
  std::vector<float> slopes_;
  std::vector<size_t> chosen_;
};

}  // namespace

Result<Model> TrainColdRl(const std::vector<Trace>& traces, const std::vector<uint64_t>& capacities,
                          const ColdRlOptions& options, const TrainHooks& hooks) {
  std::vector<Cache> caches;
  std::array<double, kFeatures> mean{};
  std::array<double, kFeatures> square{};
  for (const Trace& trace : traces) {
    for (const uint64_t capacity : capacities) {
      Cache cache{&trace, capacity};
      Survey survey;
      ColdRlReplay<Survey> replay(trace, capacity, options.cache, options.with_ttl, survey);
      replay.Run(cache.learnt());
      if (survey.empty()) continue;  // nothing to decide
      // The hand is back after so many decisions.
      const double round = static_cast<double>(replay.cache().stored()) / static_cast<double>(options.cache.candidates);
      cache.gap = survey.MedianGap() * std::max(1.0, round);
      survey.AddTo(mean, square);
      caches.push_back(cache);
    }
  }
  if (caches.empty()) return InvalidArgument("no cache of these sizes evicts anything from these traces");
  Model model;
  model.kind = ModelKind::kColdRl;
  model.net = Net(std::array<uint32_t, 4>{kInputs, options.hidden, options.hidden, ColdRl::kOutputs});
  Random random(options.seed);
  model.net.Initialize(random);
  for (size_t i = 0; i < kInputs; ++i) {
    const double m = mean[i % kFeatures] / static_cast<double>(caches.size());
    const double variance = square[i % kFeatures] / static_cast<double>(caches.size()) - m * m;
    model.mean.push_back(static_cast<float>(m));
    model.deviation.push_back(variance > 1e-6 ? static_cast<float>(std::sqrt(variance)) : 1.0f);
  }
  return Training(std::move(caches), options, std::move(model)).Run(hooks);
}

}  // namespace pith::evict
