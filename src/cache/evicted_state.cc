#include "cache/evicted_state.h"

#include <algorithm>
#include <cmath>
#include <new>

#include "base/check.h"
#include "kernels/feature_maps.h"

namespace pith {

Status EvictedState::Hold(int rank, int value_dim) {
  try {
    numbers_.assign(kernels::StateFloats(rank, value_dim), 0.0F);
  } catch (const std::bad_alloc&) {
    return OutOfBudget("the KV budget does not hold the states of entries that are gone");
  }
  rank_ = rank;
  return {};
}

void EvictedState::Add(std::span<const float> other, int64_t count) {
  PITH_CHECK(other.size() == numbers_.size());
  for (size_t i = 0; i < other.size(); ++i) numbers_[i] += other[i];
  num_entries_ += count;
}

void EvictedState::CopyFrom(const EvictedState& other) {
  PITH_CHECK(other.numbers_.size() == numbers_.size());
  std::copy(other.numbers_.begin(), other.numbers_.end(), numbers_.begin());
  num_entries_ = other.num_entries_;
}

void EvictedState::Clear() {
  std::fill(numbers_.begin(), numbers_.end(), 0.0F);
  num_entries_ = 0;
}

void EvictedState::Save(ByteWriter& writer) const {
  writer.Number(num_entries_);
  writer.Array(std::span<const float>(numbers_.data(), numbers_.size()));
}

Status EvictedState::Restore(ByteReader& reader, int64_t most_entries) {
  if (!reader.Number(num_entries_) || !reader.Array(std::span<float>(numbers_.data(), numbers_.size()))) {
    return Corrupt("it ends within its cache");
  }
  if (num_entries_ > most_entries || !Verify()) {
    return Corrupt("a state of entries that are gone is none");
  }
  return {};
}

Status EvictedState::Verify() const {
  const auto masses = numbers_.end() - rank_;
  const bool finite = std::all_of(numbers_.begin(), numbers_.end(), [](float x) { return std::isfinite(x); });
  if (!finite || std::any_of(masses, numbers_.end(), [](float mass) { return mass < 0; })) {
    return Corrupt("cache: a state of entries that are gone holds what is no mass");
  }
  const bool empty = std::all_of(numbers_.begin(), numbers_.end(), [](float x) { return x == 0; });
  if (num_entries_ < 0 || (num_entries_ == 0 && !empty)) {
    return Corrupt("cache: a state knows of entries that it has not taken in");
  }
  return {};
}

}  // namespace pith
