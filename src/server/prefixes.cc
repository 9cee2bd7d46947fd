#include "server/prefixes.h"

#include <algorithm>
#include <utility>

namespace pith::server {
namespace {

// A fork whose pages are another's holds few bytes of its own; it would be worth any price.
constexpr double kLeastBytesPerToken = 64;

}  // namespace

size_t CommonTokens(std::span<const int32_t> a, std::span<const int32_t> b) {
  const size_t length = std::min(a.size(), b.size());
  return static_cast<size_t>(
      std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(length), b.begin()).first - a.begin());
}

Result<SequenceId> ForkBeside(Engine& engine, SequenceId source) {
  const SequenceStats before = engine.stats(source);
  PITH_RETURN_IF_ERROR(engine.SetBudget(source, 1, before.ceiling_bytes));
  Result<SequenceId> fork = engine.Fork(source);
  const Status promised = engine.SetBudget(source, before.floor_bytes, before.ceiling_bytes);
  if (promised || !fork) return fork;
  engine.Free(*fork);
  (void)engine.SetBudget(source, before.floor_bytes, before.ceiling_bytes);  // what the fork took is there again
  return tl::unexpected<Error>(promised.error());
}

double PrefixStore::PriorityOf(const Prefix& prefix) const {
  const auto tokens = static_cast<double>(prefix.tokens.size());
  const double worth = tokens / std::max(static_cast<double>(prefix.bytes), kLeastBytesPerToken * tokens);
  // What others are likely to begin with, too, counts twice.
  return clock_ + (prefix.checkpoint ? 2 : 1) * worth;
}

void PrefixStore::Add(Prefix prefix) {
  prefix.priority = PriorityOf(prefix);
  prefixes_.push_back(std::move(prefix));
}

void PrefixStore::Touch(int index) {
  Prefix prefix = std::move(prefixes_[static_cast<size_t>(index)]);
  prefixes_.erase(prefixes_.begin() + index);
  Add(std::move(prefix));
}

Prefix PrefixStore::Take(int index) {
  Prefix prefix = std::move(prefixes_[static_cast<size_t>(index)]);
  prefixes_.erase(prefixes_.begin() + index);
  return prefix;
}

std::optional<Prefix> PrefixStore::TakeVictim() {
  const auto least = std::ranges::min_element(prefixes_, {}, &Prefix::priority);  // the oldest of equals
  if (least == prefixes_.end()) return std::nullopt;
  clock_ = least->priority;
  return Take(static_cast<int>(least - prefixes_.begin()));
}

}  // namespace pith::server
