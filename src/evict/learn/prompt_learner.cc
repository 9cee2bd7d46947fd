#include "evict/learn/prompt_learner.h"

#include <algorithm>

#include "evict/learn/fast_math.h"

namespace pith::evict {
namespace {

constexpr float kFirstHazard = -5;  // less than one in a hundred, in each bin
constexpr float kClip = 1;          // of a batch's gradient

// Counts on a scale of about -1 to 1.
float Scaled(uint64_t count) { return FastLog2(1 + static_cast<float>(count)) / 8 - 1; }

Net Untaught(size_t inputs, uint32_t hidden) {
  Net net(
      std::array<uint32_t, 4>{static_cast<uint32_t>(inputs), hidden, hidden, static_cast<uint32_t>(Survival::kBins)});
  Random random(1);
  net.Initialize(random);
  const Net::Layer& last = net.layers().back();
  for (size_t i = last.weights; i < last.biases; ++i) net.parameters()[i] = 0;
  for (uint32_t o = 0; o < last.out; ++o) net.parameters()[last.biases + o] = kFirstHazard;
  return net;
}

}  // namespace

PromptLearner::PromptLearner(size_t num_objects, const PromptLearnerOptions& options)
    : options_(options),
      net_(Untaught(kFeatures, options.hidden)),
      buffers_(net_, kBatch),
      adam_(net_.parameters().size()),
      blocks_(num_objects),
      samples_(options.kept),
      gradient_(net_.parameters().size(), 0.0f),
      rows_(kBatch * kFeatures),
      slopes_(kBatch * net_.output_stride(), 0.0f) {}

PromptLearner::Sample* PromptLearner::Find(uint32_t prompt) {
  if (prompt == kNone) return nullptr;
  Sample& sample = samples_[prompt % options_.kept];
  return sample.prompt == prompt ? &sample : nullptr;
}

// `known`: leading blocks that were asked for before.
void PromptLearner::Describe(const Access& deepest, uint32_t known, Sample& sample) {
  const uint32_t chain = deepest.chain;
  sample.prompt = deepest.moment;
  sample.gap = 0;
  sample.chain = chain;
  sample.turn = 0;
  sample.pause = 0;
  sample.tokens = std::max(chain, deepest.prompt->input_tokens);
  sample.answer = deepest.prompt->output_tokens;
  // One block is what everybody's prompt may begin with; more are somebody's conversation.
  const Block* end = known > 0 ? &blocks_[deepest.blocks[chain - known]] : nullptr;
  const Sample* before = known >= 2 ? Find(end->prompt) : nullptr;
  if (before != nullptr) {
    sample.pause = std::max(1u, deepest.moment - before->prompt);
    // Its last block was not full.
    if (known + 1 >= before->chain) sample.turn = before->turn + 1;
  }
  const uint64_t stood = uint64_t{known} * block_tokens_;
  const uint64_t said = before == nullptr ? 0 : uint64_t{before->tokens} + before->answer;
  size_t f = 0;
  auto& features = sample.features;
  features[f++] = Scaled(sample.tokens);
  features[f++] = Scaled(sample.answer);
  features[f++] = Scaled(sample.tokens > stood ? sample.tokens - stood : 0);
  features[f++] = Scaled(known);
  features[f++] = static_cast<float>(known) / static_cast<float>(chain);
  features[f++] = FastLog2(1 + static_cast<float>(sample.turn)) / 2;
  features[f++] = before != nullptr ? 1.0f : 0.0f;
  features[f++] = before != nullptr ? Scaled(sample.pause) : 0;
  features[f++] = before != nullptr && before->pause != 0 ? Scaled(before->pause) : 0;
  features[f++] = before != nullptr ? Scaled(before->answer) : 0;
  features[f++] = before != nullptr ? Scaled(sample.tokens > said ? sample.tokens - said : 0) : 0;
  features[f++] = before != nullptr ? FastLog2(1 + static_cast<float>(before->turn)) / 2 : 0;
  features[f++] = end != nullptr ? Scaled(end->count) : 0;
}

const Survival::Curve& PromptLearner::Watch(const Access& deepest) {
  const uint32_t chain = deepest.chain;
  const uint32_t now = deepest.moment;
  const auto block = [&](uint32_t depth) -> Block& { return blocks_[deepest.blocks[chain - 1 - depth]]; };
  uint32_t known = 0;
  while (known < chain && block(known).count > 0) ++known;
  block_tokens_ = std::max(block_tokens_, (deepest.prompt->input_tokens + chain - 1) / chain);
  Sample& sample = samples_[now % options_.kept];
  Describe(deepest, known, sample);
  const uint32_t tokens = deepest.prompt->input_tokens;
  sample.partial = tokens != 0 && tokens < uint64_t{chain} * block_tokens_;
  for (uint32_t depth = 0; depth < chain; ++depth) Resolve(block(depth), depth, now);
  if (sample.partial) block(chain - 1).waiting = now;
  const uint32_t whole = chain - (sample.partial ? 1 : 0);
  sample.teaches = whole >= 2;
  if (sample.teaches) block(whole - 1).waiting = now;
  if (options_.rate > 0 && seen_ > 0) Learn(now);
  ++seen_;
  curve_ = Survival::CurveOf(Forward(net_, sample.features.data(), 1, buffers_));
  deepest_ = curve_;
  if (sample.partial) {
    const double again = static_cast<double>(partial_again_ + 1) / static_cast<double>(whole_again_ + 20);
    for (float& hazard : deepest_) hazard *= static_cast<float>(std::min(1.0, again));
  }
  return curve_;
}

// The prompt `now` asks for the block, at this depth.
void PromptLearner::Resolve(Block& block, uint32_t depth, uint32_t now) {
  if (Sample* waiting = Find(block.waiting); waiting != nullptr) {
    if (waiting->partial && depth + 1 == waiting->chain) {
      ++partial_again_;
    } else {
      ++whole_again_;
      waiting->gap = std::max(1u, now - waiting->prompt);
    }
  }
  block.waiting = kNone;
  block.prompt = now;
  ++block.count;
}

void PromptLearner::Learn(uint32_t now) {
  const size_t stride = net_.output_stride();
  const uint32_t remembered = std::min(seen_, options_.kept - 1);
  for (uint32_t round = 0; round < options_.batches; ++round) {
    std::ranges::fill(slopes_, 0.0f);
    std::array<const Sample*, kBatch> batch{};
    for (size_t b = 0; b < kBatch; ++b) {
      const auto back = 1 + static_cast<uint32_t>(random_.Uniform() * remembered);
      batch[b] = &samples_[(now - back) % options_.kept];
      std::ranges::copy(batch[b]->features, rows_.begin() + static_cast<ptrdiff_t>(b * kFeatures));
    }
    const float* outputs = Forward(net_, rows_.data(), kBatch, buffers_);
    for (size_t b = 0; b < kBatch; ++b) {
      const Sample& sample = *batch[b];
      if (!sample.teaches) continue;
      const bool asked = sample.gap != 0;
      float* slopes = slopes_.data() + b * stride;
      Survival::Slopes(outputs + b * stride, asked ? sample.gap : now - sample.prompt, asked, slopes);
      for (size_t k = 0; k < Survival::kBins; ++k) slopes[k] /= kBatch;
    }
    Backward(net_, rows_.data(), slopes_.data(), kBatch, buffers_, gradient_);
    adam_.Step(net_.parameters(), gradient_, options_.rate, 1e-4f, kClip);
  }
}

}  // namespace pith::evict
