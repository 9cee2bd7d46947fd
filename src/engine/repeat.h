// A second reading of a prompt for recipes that want one (Policy::repeat).
//
//   cache     [prefix | chunk 0 | chunk 1 | ... ]
//   pass i     over the whole of it: instruction, end of the user's turn, the tokens of chunk i
//   observed   what those tokens pay to the entries of chunk i, in a softmax over prefix, chunk i and themselves
//
// Unless the recipe wants to see the whole context, the pass attends to those entries alone (and to up to a page of the
// text's end), so that attention itself tells what is observed.
//
// A pass runs on a fork that is dropped, so all passes start at the same position and nothing of them stays.
#ifndef PITH_ENGINE_REPEAT_H_
#define PITH_ENGINE_REPEAT_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/ledger.h"
#include "host/model.h"
#include "pith/types.h"
#include "policy/policy.h"

namespace pith {

// What a column of value norms holds of an entry whose norm has not been needed yet.
inline constexpr float kUnknownNorm = -1;

// True: the policy's columns are filled by a second reading and live outside pages.
inline bool ObservesRepeat(const Policy& policy) { return (policy.needs() & kNeedRepeat) != 0; }

// Columns that live in pages: the policy's own, but for those of a second reading that does not go block by block, and
// then its value norms if it needs them.
std::vector<ColumnSpec> PageColumns(const Policy& policy, bool rereads_blocks);

// Of a block's repetition, whose queries are part of what a recipe computes with (SharePlan::scratch_bytes).
inline constexpr size_t kBlockReferenceBytes = size_t{8} << 20;

// Every stride-th token's queries of a second reading, after RoPE, in f16.
class ReferenceQueries {
 public:
  // Room for num_tokens tokens of which so many are kept. widths [global layers]: query heads times channels. account:
  // whose bytes they are; null: they are scratch. kOutOfBudget.
  Status Reserve(int num_tokens, int most_kept, std::span<const size_t> widths, MemoryAccount* account);

  bool empty() const { return widths_.empty(); }
  // token: of all passes, counted from 0.
  bool Keeps(int token) const { return token % stride_ == 0 && token / stride_ < capacity_; }
  uint16_t* row(int layer, int token) { return At(layer, token / stride_); }
  // Tokens read and rows kept of them.
  void Count(int num_tokens) { num_tokens_ += num_tokens; }
  int num_tokens() const { return num_tokens_; }
  int num_rows() const { return std::min((num_tokens_ + stride_ - 1) / stride_, capacity_); }
  size_t width(int layer) const { return widths_[static_cast<size_t>(layer)]; }
  // [num_rows(), width(layer)]
  const uint16_t* rows(int layer) const { return const_cast<ReferenceQueries*>(this)->At(layer, 0); }

 private:
  uint16_t* At(int layer, int row) {
    const auto l = static_cast<size_t>(layer);
    return rows_.data() + first_[l] + static_cast<size_t>(row) * widths_[l];
  }

  HeldBytes held_;
  std::vector<uint16_t> rows_;
  std::vector<size_t> widths_, first_;
  int stride_ = 1, capacity_ = 0, num_tokens_ = 0;
};

// Columns of one sequence's entries, or of the newest of each head, that live outside its pages. Their bytes are in the
// ledger.
class RepeatColumns {
 public:
  // entries [global layers][kv heads]: [first, end) in the head; part: positions [from, to) that are repeated.
  // kOutOfBudget.
  static Result<std::shared_ptr<RepeatColumns>> Create(MemoryAccount* account, const Policy& policy, int prefix,
                                                       std::pair<int32_t, int32_t> part,
                                                       std::span<const std::vector<std::pair<int, int>>> entries);

  ReferenceQueries references;  // where the policy needs them

  // True: they are what a second reading for this policy would find again.
  bool Serves(const Policy& policy, int prefix, std::pair<int32_t, int32_t> part) const {
    return *policy.repeat() == options_ && prefix == prefix_ && part == part_ &&
           (!ObservesRepeat(policy) || policy.columns().front().name == name_) &&
           ((policy.needs() & kNeedReferences) == 0 || !references.empty());
  }
  bool has_columns() const { return !heads_.empty(); }
  // What they hold stands in pages now. References stay.
  void ForgetColumns() {
    heads_.clear();
    LedgerVector<float>(values_.get_allocator()).swap(values_);
  }
  // The entries that have columns, [first, end) in their head.
  std::pair<int, int> entries(int layer, int head) const {
    const Place& place = heads_[static_cast<size_t>(layer)][static_cast<size_t>(head)];
    return {place.first, place.first + static_cast<int>(place.count)};
  }
  // [of those]
  std::span<float> column(int layer, int head, int column) {
    const Place& place = heads_[static_cast<size_t>(layer)][static_cast<size_t>(head)];
    return {values_.data() + place.at + static_cast<size_t>(column) * place.count, place.count};
  }
  // Of one of them, and those behind it.
  float* ColumnFrom(int layer, int head, int index, int entry) {
    return column(layer, head, index).data() + (entry - entries(layer, head).first);
  }

 private:
  explicit RepeatColumns(MemoryAccount* account) : values_(LedgerAllocator<float>(account)) {}

  RepeatOptions options_;
  std::string name_;
  int prefix_ = 0;
  std::pair<int32_t, int32_t> part_;
  struct Place {
    size_t at = 0;  // of the first column
    int first = 0;
    size_t count = 0;
  };
  std::vector<std::vector<Place>> heads_;  // [layers][heads]
  LedgerVector<float> values_;
};

// One pass as the observer of its attention needs it; all are positions.
struct RepeatPass {
  int32_t prefix_end = 0;       // entries before it are the prefix
  int32_t from = 0, to = 0;     // the chunk
  int32_t start = 0;            // of the pass's own tokens
  int first_token = 0;          // the first of these, counted over all passes
  bool whole = false;           // all entries are seen
  bool guided = false;          // its own entries take no part in the softmax

  // The softmax that is observed is that of attention.
  bool SeesAll() const { return from <= prefix_end && to == start && !guided; }
};

// What a chat template puts between a user's text and the model's; a blank line where there is no known template.
Result<std::vector<int32_t>> AnswerTokens(const HostModel& model);

// What is put before the chunk's tokens.
class RepeatPrompt {
 public:
  static Result<RepeatPrompt> Make(const HostModel& model);

  // The pass over chunk [from, to) of `tokens`. first: no chunk is before it.
  std::vector<int32_t> Tokens(std::span<const int32_t> tokens, const RepeatPass& pass, int overlap, bool first) const;
  // The most tokens beside the chunk.
  int overhead(int overlap) const;

 private:
  std::vector<int32_t> whole_;   // asks for the context
  std::vector<int32_t> part_;    // asks for what begins with the tokens that follow
  std::vector<int32_t> answer_;  // ends the user's turn and begins the model's
};

}  // namespace pith

#endif  // PITH_ENGINE_REPEAT_H_
