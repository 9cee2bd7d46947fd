#include "evict/learn/prompt_learner.h"

#include <algorithm>
#include <cmath>

#include "evict/learn/fast_math.h"

namespace pith::evict {
namespace {

constexpr float kFirstHazard = -5;     // of the network, in each bin: less than one in a hundred
constexpr float kFirstShare = 0.015f;  // that is asked for in each bin, before lessons tell
constexpr float kClip = 1;             // of a batch's gradient

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

PromptLearner::Pupil::Pupil(const PromptLearnerOptions& options)
    : options_(options),
      net_(Untaught(kFeatures, options.hidden)),
      buffers_(net_, kBatch),
      adam_(net_.parameters().size()),
      lessons_(options.kept),
      gradient_(net_.parameters().size(), 0.0f),
      rows_(kBatch * kFeatures),
      slopes_(kBatch * net_.output_stride(), 0.0f) {}

PromptLearner::PromptLearner(size_t num_objects, const PromptLearnerOptions& options)
    : options_(options), of_turns_(options), of_forks_(options), blocks_(num_objects), turns_(options.kept) {}

PromptLearner::Turn* PromptLearner::TurnOf(uint32_t prompt) {
  if (prompt == kNone) return nullptr;
  Turn& turn = turns_[prompt % options_.kept];
  return turn.prompt == prompt ? &turn : nullptr;
}

// `known`: leading blocks that were asked for before.
void PromptLearner::Describe(const Access& deepest, uint32_t known, Features& features) {
  const uint32_t chain = deepest.chain;
  const uint32_t now = deepest.moment;
  // One block is what everybody's prompt may begin with; more are somebody's conversation.
  Block* const end = known > 0 ? &blocks_[deepest.blocks[chain - known]] : nullptr;
  const Turn* const found = known >= 2 ? TurnOf(end->prompt) : nullptr;
  const Turn before = found != nullptr ? *found : Turn();  // whose place in the ring may be this one's
  Turn& turn = turns_[now % options_.kept];
  turn = {.prompt = now,
          .chain = chain,
          .tokens = std::max(chain, deepest.prompt->input_tokens),
          .answer = deepest.prompt->output_tokens};
  if (found != nullptr) {
    turn.pause = std::max(1u, now - before.prompt);
    // Its last block was not full.
    if (known + 1 >= before.chain)
      turn.turn = before.turn + 1;
    else
      end->is_fork = true;
  }
  const uint64_t stood = uint64_t{known} * block_tokens_;
  const uint64_t said = uint64_t{before.tokens} + before.answer;
  size_t f = 0;
  features[f++] = Scaled(turn.tokens);
  features[f++] = Scaled(turn.answer);
  features[f++] = Scaled(turn.tokens > stood ? turn.tokens - stood : 0);
  features[f++] = Scaled(known);
  features[f++] = static_cast<float>(known) / static_cast<float>(chain);
  features[f++] = FastLog2(1 + static_cast<float>(turn.turn)) / 2;
  features[f++] = found != nullptr ? 1.0f : 0.0f;
  features[f++] = found != nullptr ? Scaled(turn.pause) : 0;
  features[f++] = before.pause != 0 ? Scaled(before.pause) : 0;
  features[f++] = found != nullptr ? Scaled(before.answer) : 0;
  features[f++] = found != nullptr ? Scaled(turn.tokens > said ? turn.tokens - said : 0) : 0;
  features[f++] = FastLog2(1 + static_cast<float>(before.turn)) / 2;
  features[f++] = end != nullptr ? Scaled(end->count) : 0;
  std::fill(features.begin() + static_cast<ptrdiff_t>(f), features.end(), 0.0f);
}

// Of a block that was asked for before this prompt, beside those of the prompt.
void PromptLearner::DescribeFork(const Block& fork, uint32_t depth, uint32_t now, Features& features) {
  size_t f = kTurnFeatures;
  features[f++] = 1;
  features[f++] = Scaled(fork.count);
  features[f++] = Scaled(now - fork.prompt);
  features[f++] = fork.pause != 0 ? Scaled(fork.pause) : 0;
  features[f++] = Scaled(depth);
}

void PromptLearner::Pupil::Pass(uint32_t now) {
  for (size_t k = 0; k < Survival::kBins; ++k) {
    Past& past = past_[k];
    if (past.next + options_.kept < count_) past.next = count_ - options_.kept;
    for (; past.next < count_; ++past.next) {
      const Lesson& lesson = lessons_[past.next % options_.kept];
      if (now - lesson.prompt < Survival::Begin(k + 1)) break;
      const size_t asked_in = lesson.gap != 0 ? Survival::BinOf(lesson.gap) : Survival::kBins;
      if (asked_in < k) continue;
      ++past.reached;
      past.asked += asked_in == k ? 1 : 0;
    }
  }
}

PromptLearner::Outputs PromptLearner::Pupil::Foresee(const Features& features) {
  const float* const said = Forward(net_, features.data(), 1, buffers_);
  Outputs outputs;
  for (size_t k = 0; k < Survival::kBins; ++k) {
    const auto reached = static_cast<float>(past_[k].reached);
    const float share = (static_cast<float>(past_[k].asked) + kFirstShare * kFirstDoubt) / (reached + kFirstDoubt);
    outputs[k] = std::lerp(std::log(share / (1 - share)), said[k], reached / (reached + kDoubt));
  }
  return outputs;
}

const Survival::Curve& PromptLearner::CurveAt(uint32_t depth) const {
  if (depth == partial_depth_) return partial_;
  for (size_t i = num_forks_; i-- > 0;) {
    if (depth <= forks_[i].depth) return forks_[i].curve;
  }
  return curve_;
}

void PromptLearner::Watch(const Access& deepest) {
  const uint32_t chain = deepest.chain;
  const uint32_t now = deepest.moment;
  const auto block = [&](uint32_t depth) -> Block& { return blocks_[deepest.blocks[chain - 1 - depth]]; };
  uint32_t known = 0;
  while (known < chain && block(known).count > 0) ++known;
  const uint32_t tokens = deepest.prompt->input_tokens;
  block_tokens_ = std::max(block_tokens_, (tokens + chain - 1) / chain);
  const bool partial = tokens != 0 && tokens < uint64_t{chain} * block_tokens_;
  const uint32_t whole = chain - (partial ? 1 : 0);
  Features turn;
  Describe(deepest, known, turn);
  // What the first block leads to is everybody's; the deepest one is the turn's lesson.
  std::array<Features, kMostForks> of_forks;
  num_forks_ = 0;
  for (uint32_t depth = std::min(known, std::max(1u, whole) - 1); depth-- > 1 && num_forks_ < kMostForks;) {
    if (!block(depth).is_fork) continue;
    of_forks[num_forks_] = turn;
    DescribeFork(block(depth), depth, now, of_forks[num_forks_]);
    forks_[num_forks_++].depth = depth;
  }
  for (uint32_t depth = 0; depth < chain; ++depth) Resolve(block(depth), now);
  for (size_t i = 0; i < num_forks_; ++i) Teach(block(forks_[i].depth), true, of_forks[i], now);
  if (whole >= 2) Teach(block(whole - 1), false, turn, now);
  block(chain - 1).ended = partial;
  if (options_.rate > 0) {
    of_turns_.Learn(now);
    of_forks_.Learn(now);
  }
  const Outputs of_turn = of_turns_.Foresee(turn);
  curve_ = Survival::CurveOf(of_turn.data());
  const auto lessons = static_cast<float>(of_forks_.lessons());
  for (size_t i = 0; i < num_forks_; ++i) {
    Outputs of_fork = of_forks_.Foresee(of_forks[i]);
    for (size_t k = 0; k < Survival::kBins; ++k) {
      of_fork[k] = std::lerp(of_turn[k], of_fork[k], lessons / (lessons + kForkDoubt));
    }
    forks_[i].curve = Survival::CurveOf(of_fork.data());
  }
  partial_depth_ = partial ? chain - 1 : kNone;
  if (!partial) return;
  const double again = static_cast<double>(partial_again_ + 1) / static_cast<double>(whole_again_ + 20);
  partial_ = curve_;
  for (float& hazard : partial_) hazard *= static_cast<float>(std::min(1.0, again));
}

// The prompt `now` asks for the block.
void PromptLearner::Resolve(Block& block, uint32_t now) {
  if (block.ended) ++partial_again_;
  if (block.waiting != kNone) {
    (block.as_fork ? of_forks_ : of_turns_).Asked(block.waiting, now);
    if (!block.as_fork) ++whole_again_;
  }
  block.ended = false;
  block.waiting = kNone;
  block.pause = block.count > 0 ? now - block.prompt : 0;
  block.prompt = now;
  ++block.count;
}

void PromptLearner::Teach(Block& block, bool as_fork, const Features& features, uint32_t now) {
  block.waiting = (as_fork ? of_forks_ : of_turns_).Add(features, now);
  block.as_fork = as_fork;
}

uint32_t PromptLearner::Pupil::Add(const Features& features, uint32_t now) {
  lessons_[count_ % options_.kept] = {features, count_, now, 0};
  return count_++;
}

void PromptLearner::Pupil::Asked(uint32_t number, uint32_t now) {
  Lesson& lesson = lessons_[number % options_.kept];
  if (lesson.number == number) lesson.gap = std::max(1u, now - lesson.prompt);
}

void PromptLearner::Pupil::Learn(uint32_t now) {
  Pass(now);
  const size_t stride = net_.output_stride();
  const uint32_t remembered = std::min(count_, options_.kept);
  if (remembered == 0) return;
  for (uint32_t round = 0; round < options_.batches; ++round) {
    std::ranges::fill(slopes_, 0.0f);
    std::array<const Lesson*, kBatch> batch{};
    for (size_t b = 0; b < kBatch; ++b) {
      batch[b] = &lessons_[(count_ - 1 - random_.Below(remembered)) % options_.kept];
      std::ranges::copy(batch[b]->features, rows_.begin() + static_cast<ptrdiff_t>(b * kFeatures));
    }
    const float* outputs = Forward(net_, rows_.data(), kBatch, buffers_);
    for (size_t b = 0; b < kBatch; ++b) {
      const Lesson& lesson = *batch[b];
      const bool asked = lesson.gap != 0;
      float* slopes = slopes_.data() + b * stride;
      Survival::Slopes(outputs + b * stride, asked ? lesson.gap : now - lesson.prompt, asked, slopes);
      for (size_t k = 0; k < Survival::kBins; ++k) slopes[k] /= kBatch;
    }
    Backward(net_, rows_.data(), slopes_.data(), kBatch, buffers_, gradient_);
    adam_.Step(net_.parameters(), gradient_, options_.rate, 1e-4f, kClip);
  }
}

}  // namespace pith::evict
