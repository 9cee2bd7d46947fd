#include "evict/learn/history.h"

#include <algorithm>
#include <cmath>

#include "evict/learn/fast_math.h"

namespace pith::evict {
namespace {

// Moments after which a request counts half.
constexpr float kHalfLives[] = {128, 1024, 8192, 65536};
constexpr double kKeep = 1 - 1.0 / 4096;       // of means, by request
constexpr double kKeepOfClass = 1 - 1.0 / 1024;
constexpr float kSizeClass = 1.5f;             // log2 of sizes that make one class

float Log2Of(uint64_t count) { return FastLog2(1 + static_cast<float>(count)); }

}  // namespace

size_t History::ClassOf(float log_size) const {
  const float relative = (log_size - static_cast<float>(log_size_.value())) / kSizeClass + kSizeClasses / 2.0f;
  return static_cast<size_t>(std::clamp(relative, 0.0f, kSizeClasses - 1.0f));
}

// Blocks of a conversation's earlier turns lead a prompt; the turn is one more than that of the prompt that ended
// about where the known ones end.
void History::BeginPrompt(const Access& access) {
  prompt_ = access.moment;
  known_ = 0;
  turn_ = 0;
  log_pause_ = 0;
  if (access.blocks == nullptr) return;
  while (known_ < access.chain && objects_[access.blocks[access.chain - 1 - known_]].count > 0) ++known_;
  if (known_ < 2) return;
  const Object& deepest = objects_[access.blocks[access.chain - known_]];
  log_pause_ = Log2Of(access.moment - deepest.last);
  if (deepest.chain <= known_ + 1) turn_ = static_cast<uint16_t>(std::min(deepest.turn + 1, 1000));
}

void History::Record(const Access& access, float* features) {
  Object& object = objects_[access.object];
  if (access.prompt != nullptr && access.moment != prompt_) BeginPrompt(access);
  const uint32_t now = access.moment;
  const bool again = object.count > 0;
  const uint32_t gap = again ? now - object.last : 0;
  const float log_gap = Log2Of(gap);
  const float log_size = FastLog2(static_cast<float>(std::max<uint64_t>(1, access.size)));
  // Means of before, so that a first request does not see itself.
  const size_t size_class = ClassOf(log_size);
  SizeClass& of_size = classes_[size_class];

  if (!again) object.first = now;
  ++object.count;
  size_t f = 0;
  features[f++] = again ? 1.0f : 0.0f;
  features[f++] = log_gap;
  features[f++] = Log2Of(object.gaps[0]);
  features[f++] = Log2Of(object.gaps[1]);
  features[f++] = FastLog2(static_cast<float>(object.count));
  features[f++] = Log2Of(now - object.first);
  features[f++] = again ? Log2Of((now - object.first) / (object.count - 1)) : 0;
  for (size_t r = 0; r < kRates; ++r) {
    object.rates[r] = object.rates[r] * FastExp2(-static_cast<float>(gap) / kHalfLives[r]) + 1;
    features[f++] = FastLog2(object.rates[r]);
  }
  const double mean = log_size_.value();
  features[f++] = requests_ > 0 ? log_size - static_cast<float>(mean) : 0;
  features[f++] = static_cast<float>(std::sqrt(std::max(0.0, log_size_square_.value() - mean * mean)));
  features[f++] = static_cast<float>(again_.value());
  features[f++] = static_cast<float>(gap_.value());
  features[f++] = static_cast<float>(of_size.again.weight > 20 ? of_size.again.value() : again_.value());
  features[f++] = static_cast<float>(of_size.gap.weight > 20 ? of_size.gap.value() : gap_.value());
  features[f++] = Log2Of(now);
  const bool prompt = access.prompt != nullptr;
  features[f++] = prompt ? 1.0f : 0.0f;
  features[f++] = prompt ? Log2Of(access.depth) : 0;
  features[f++] = prompt ? Log2Of(access.chain) : 0;
  features[f++] = prompt ? Log2Of(access.chain - 1 - access.depth) : 0;
  features[f++] = prompt ? Log2Of(access.prompt->output_tokens) : 0;
  features[f++] = prompt ? static_cast<float>(known_) / static_cast<float>(access.chain) : 0;
  features[f++] = Log2Of(turn_) * (prompt ? 1.0f : 0.0f);
  features[f++] = prompt ? log_pause_ : 0;
  features[f++] = prompt && access.depth < known_ ? 1.0f : 0.0f;

  of_size.again.Add(again ? 1 : 0, kKeepOfClass);
  again_.Add(again ? 1 : 0, kKeep);
  if (again) {
    of_size.gap.Add(log_gap, kKeepOfClass);
    gap_.Add(log_gap, kKeep);
  }
  log_size_.Add(log_size, kKeep);
  log_size_square_.Add(static_cast<double>(log_size) * log_size, kKeep);
  object.gaps[1] = object.gaps[0];
  object.gaps[0] = gap;
  object.last = now;
  object.chain = access.chain;
  object.turn = turn_;
  ++requests_;
}

}  // namespace pith::evict
