// Bytes that are promised to the rows of the next step until recipes have evicted. While a step runs its sequences have
// them; between steps, whoever borrows them.
#ifndef PITH_ENGINE_FLIGHT_H_
#define PITH_ENGINE_FLIGHT_H_

#include <cstddef>
#include <memory>
#include <vector>

#include "base/ledger.h"
#include "engine/sequence.h"

namespace pith {

class FlightBytes {
 public:
  // False: the ledger does not hold them. The ledger outlives this.
  [[nodiscard]] bool Open(Ledger* ledger, size_t bytes) {
    account_ = MemoryAccount::Open(ledger, bytes, bytes);
    bytes_ = bytes;
    return account_ != nullptr;
  }
  // Promises so many from now on. False: they are not there, and nothing has changed.
  [[nodiscard]] bool Promise(size_t bytes) {
    if (!account_->SetLimits(bytes, bytes)) return false;
    bytes_ = bytes;
    return true;
  }
  // Nothing is promised until HoldAgain(), which is false where somebody has taken them.
  void LetGo() { (void)account_->SetLimits(0, 0); }
  [[nodiscard]] bool HoldAgain() { return account_->SetLimits(bytes_, bytes_); }

  bool is_open() const { return account_ != nullptr; }
  size_t bytes() const { return bytes_; }

 private:
  std::unique_ptr<MemoryAccount> account_;
  size_t bytes_ = 0;
};

// While it lives, between steps, sequences may use those bytes.
class FlightLoan {
 public:
  explicit FlightLoan(FlightBytes& flight) : flight_(flight) { flight_.LetGo(); }
  FlightLoan(const FlightLoan&) = delete;
  FlightLoan& operator=(const FlightLoan&) = delete;
  void Lend(Sequence& sequence) {
    if (!sequence.account->SetLimits(sequence.floor_bytes, sequence.ceiling_bytes + flight_.bytes())) return;
    borrowers_.push_back(&sequence);
  }
  ~FlightLoan() {
    for (Sequence* sequence : borrowers_)
      (void)sequence->account->SetLimits(sequence->floor_bytes, sequence->ceiling_bytes);
    (void)flight_.HoldAgain();
  }

 private:
  FlightBytes& flight_;
  std::vector<Sequence*> borrowers_;
};

}  // namespace pith

#endif  // PITH_ENGINE_FLIGHT_H_
