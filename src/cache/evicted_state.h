// What a head knows of entries that are gone (act=less): sums over them, of constant size (kernels/feature_maps.h). It
// cannot forget one of them again.
#ifndef PITH_CACHE_EVICTED_STATE_H_
#define PITH_CACHE_EVICTED_STATE_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/byte_io.h"
#include "base/ledger.h"
#include "pith/types.h"

namespace pith {

class EvictedState {
 public:
  // Nothing is charged before Hold(). account: of the head's sequence.
  explicit EvictedState(MemoryAccount* account) : numbers_(LedgerAllocator<float>(account)) {}

  // Room for states of so many features, empty. kOutOfBudget: the account does not hold it.
  Status Hold(int rank, int value_dim);
  int rank() const { return rank_; }  // 0: the head has none
  size_t bytes() const { return numbers_.size() * sizeof(float); }

  // Entries that it has taken in; it changes nothing of attention while there are none.
  int64_t num_entries() const { return num_entries_; }
  // [rank, Dv] sums, then [rank] masses; null while it is empty.
  const float* numbers() const { return num_entries_ > 0 ? numbers_.data() : nullptr; }

  // Another state of the same size, of `count` entries that leave the cache now.
  void Add(std::span<const float> other, int64_t count);
  // That of another head of the same size.
  void CopyFrom(const EvictedState& other);
  void Clear();

  void Save(ByteWriter& writer) const;
  // kCorrupt: not what Save() writes for a head with most `num_entries` entries that are gone.
  Status Restore(ByteReader& reader, int64_t most_entries);
  Status Verify() const;

 private:
  LedgerVector<float> numbers_;
  int rank_ = 0;
  int64_t num_entries_ = 0;
};

}  // namespace pith

#endif  // PITH_CACHE_EVICTED_STATE_H_
