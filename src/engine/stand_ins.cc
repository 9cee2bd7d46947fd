#include "engine/stand_ins.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <numeric>
#include <utility>

#include "base/parallel.h"
#include "cache/page_entries.h"
#include "host/halves.h"
#include "kernels/attention.h"
#include "kernels/group_codec.h"
#include "policy/act/match.h"

namespace pith {
namespace {

constexpr float kLargestHalf = 65504;
// Weights of queries over entries that are held at once while values are refitted; with more, fewer queries are used.
constexpr size_t kMostWeights = size_t{8} << 20;

// One head, from its pages and back.
class HeadStandIns {
 public:
  HeadStandIns(const StandInTask& task, int kv_head, HeadCache& head, std::vector<int32_t>& kept)
      : task_(task),
        head_(head),
        kept_(kept),
        num_entries_(task.num_entries[static_cast<size_t>(kv_head)]),
        key_dim_(static_cast<size_t>(head.layout().key_dim)),
        value_dim_(static_cast<size_t>(head.layout().value_dim)),
        kv_head_(static_cast<size_t>(kv_head)) {}

  Status Run() {
    Divide();
    if (dropped_.empty()) return {};
    if (task_.options.match) return Match();
    if (static_cast<int>(dropped_.size()) <= task_.count) {
      kept_.resize(static_cast<size_t>(num_entries_));
      std::iota(kept_.begin(), kept_.end(), 0);
      return {};
    }
    // Pages of a low format are not written to: places are those beyond.
    places_.assign(std::ranges::lower_bound(dropped_, head_.num_low_entries()), dropped_.end());
    const int count = std::min(task_.count, static_cast<int>(places_.size()));
    Read(1);
    Residues made = MakeResidues(task_.options, count, inputs_);
    if (static_cast<int>(made.members.size()) < task_.count) {
      KeepHeaviest(static_cast<size_t>(task_.count) - made.members.size(), made);
      made = MakeResidues(task_.options, static_cast<int>(made.members.size()), inputs_);
    }
    if (made.members.empty()) return {};
    changed_.clear();
    for (size_t i = 0; i < made.members.size(); ++i) Place(made, i);
    std::ranges::sort(changed_);
    std::vector<int32_t> all(kept_.size() + changed_.size());
    std::ranges::merge(kept_, changed_, all.begin());
    if (task_.options.refits) Refit(all, made.outputs);
    kept_ = std::move(all);
    return Write();
  }

 private:
  // Those that stay speak for the others. Pages of a low format are not written to: then there is nothing to be had.
  Status Match() {
    if (competing_.empty() || head_.num_low_entries() > 0) return {};
    const size_t rows = static_cast<size_t>(task_.references.num_rows() * task_.group);
    Read(std::max<size_t>((rows * kept_.size() + kMostWeights - 1) / kMostWeights, 1));
    if (task_.options.match->pursuit > 0) Pursue();
    const Matched made = MatchKeys(*task_.options.match, inputs_);
    for (size_t i = 0; i < competing_.size(); ++i) {
      std::copy_n(made.keys.data() + i * key_dim_, key_dim_,
                  keys_.data() + static_cast<size_t>(competing_[i]) * key_dim_);
    }
    if (task_.options.refits) Refit(kept_, made.outputs);
    changed_ = competing_;
    return Write();
  }

  // As many others stay as would have, where a pursuit finds so many.
  void Pursue() {
    const size_t count = competing_.size();
    std::vector<int32_t> chosen = PursueKeys(*task_.options.match, count, inputs_);
    for (size_t i = 0; i < competing_.size() && chosen.size() < count; ++i) {
      if (std::ranges::find(chosen, competing_[i]) == chosen.end()) chosen.push_back(competing_[i]);
    }
    std::ranges::sort(chosen);
    std::vector<int32_t> others;
    for (const std::vector<int32_t>* part : {&competing_, &dropped_}) {
      std::ranges::copy_if(*part, std::back_inserter(others),
                           [&](int32_t entry) { return !std::ranges::binary_search(chosen, entry); });
    }
    std::ranges::sort(others);
    competing_ = std::move(chosen);
    dropped_ = std::move(others);
    inputs_.kept = competing_;
    inputs_.dropped = dropped_;
    kept_.clear();
    std::ranges::merge(fixed_, competing_, std::back_inserter(kept_));
  }

  Status Write() {
    for (float& x : keys_) x = std::clamp(x, -kLargestHalf, kLargestHalf);
    for (float& x : values_) x = std::clamp(x, -kLargestHalf, kLargestHalf);
    return head_.Rewrite(changed_, keys_.data(), values_.data());
  }

  // What competes, into what stays and what does not.
  void Divide() {
    std::vector<int32_t> positions(static_cast<size_t>(num_entries_));
    head_.ReadPositions(std::span(positions));
    size_t next = 0;
    for (int32_t i = 0; i < num_entries_; ++i) {
      const bool stays = next < kept_.size() && kept_[next] == i;
      if (stays) ++next;
      if (!stays) dropped_.push_back(i);
      if (stays) (task_.guards(positions[static_cast<size_t>(i)]) ? fixed_ : competing_).push_back(i);
    }
  }

  // Entries, and the queries of every step-th token.
  void Read(size_t step) {
    const auto n = static_cast<size_t>(head_.num_entries());
    keys_.resize(n * key_dim_);
    values_.resize(n * value_dim_);
    head_.ReadKeys(keys_.data());
    head_.ReadValues(values_.data());
    const auto group = static_cast<size_t>(task_.group);
    const size_t tokens = (static_cast<size_t>(task_.references.num_rows()) + step - 1) / step;
    const size_t width = task_.references.width(task_.global_layer);
    queries_.resize(tokens * group * key_dim_);
    for (size_t t = 0; t < tokens; ++t) {
      ToFloats(task_.references.rows(task_.global_layer) + t * step * width + kv_head_ * group * key_dim_,
               group * key_dim_, queries_.data() + t * group * key_dim_);
    }
    inputs_ = {.key_dim = static_cast<int>(key_dim_),
               .value_dim = static_cast<int>(value_dim_),
               .keys = keys_.data(),
               .values = values_.data(),
               .fixed = fixed_,
               .kept = competing_,
               .dropped = dropped_,
               .queries = ViewOf(queries_.data(), tokens * group, key_dim_),
               .scale = task_.scale,
               .soft_cap = task_.soft_cap};
  }

  // So many more that get most attention stay, in the places of clusters that came out empty or have none: heads fill
  // whole pages.
  void KeepHeaviest(size_t count, const Residues& made) {
    std::vector<int32_t> order(dropped_.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, [&](int32_t a, int32_t b) {
      return made.weights[static_cast<size_t>(a)] > made.weights[static_cast<size_t>(b)];
    });
    for (size_t i = 0; i < order.size() && count > 0; ++i) {
      const int32_t entry = dropped_[static_cast<size_t>(order[i])];
      const bool is_place = entry >= head_.num_low_entries();
      if (is_place && places_.size() <= made.members.size()) continue;
      kept_.push_back(entry);
      competing_.push_back(entry);
      if (is_place) std::erase(places_, entry);
      --count;
    }
    std::ranges::sort(kept_);
    std::ranges::sort(competing_);
    std::erase_if(dropped_, [this](int32_t entry) { return std::ranges::binary_search(competing_, entry); });
    inputs_.kept = competing_;
    inputs_.dropped = dropped_;
  }

  // The i-th new entry takes the place of its heaviest member, or the first that is left.
  void Place(const Residues& made, size_t i) {
    auto place = std::ranges::find(places_, made.members[i]);
    if (place == places_.end()) place = places_.begin();
    const auto at = static_cast<size_t>(*place);
    places_.erase(place);
    std::copy_n(made.keys.data() + i * key_dim_, key_dim_, keys_.data() + at * key_dim_);
    std::copy_n(made.values.data() + i * value_dim_, value_dim_, values_.data() + at * value_dim_);
    changed_.push_back(static_cast<int32_t>(at));
  }

  void Refit(const std::vector<int32_t>& all, const std::vector<float>& outputs) {
    std::vector<int32_t> fitted = fixed_;
    // Pages of a low format are not written to.
    const auto first_high = std::ranges::lower_bound(competing_, head_.num_low_entries());
    fitted.insert(fitted.end(), competing_.begin(), first_high);
    const size_t num_fixed = fitted.size();
    fitted.insert(fitted.end(), first_high, competing_.end());
    fitted.insert(fitted.end(), changed_.begin(), changed_.end());
    const std::vector<float> stored = StoredKeys(all);
    std::vector<float> keys(fitted.size() * key_dim_), values(fitted.size() * value_dim_);
    for (size_t i = 0; i < fitted.size(); ++i) {
      const auto at = static_cast<size_t>(std::ranges::lower_bound(all, fitted[i]) - all.begin());
      std::copy_n(stored.data() + at * key_dim_, key_dim_, keys.data() + i * key_dim_);
      std::copy_n(values_.data() + static_cast<size_t>(fitted[i]) * value_dim_, value_dim_,
                  values.data() + i * value_dim_);
    }
    ResidueInputs inputs = inputs_;
    std::vector<float> some_queries, some_outputs;
    Thin(fitted.size(), outputs, some_queries, some_outputs, inputs);
    if (!RefitValues(task_.options.value_ridge, inputs, ViewOf(keys.data(), fitted.size(), key_dim_), num_fixed,
                     some_outputs.empty() ? outputs : some_outputs, values)) {
      return;
    }
    for (size_t i = 0; i < fitted.size(); ++i) {
      std::copy_n(values.data() + i * value_dim_, value_dim_,
                  values_.data() + static_cast<size_t>(fitted[i]) * value_dim_);
    }
    changed_.assign(fitted.begin() + static_cast<ptrdiff_t>(num_fixed), fitted.end());
    std::ranges::sort(changed_);
  }

  // Every other query, or fewer, where there are many entries.
  void Thin(size_t num_entries, const std::vector<float>& outputs, std::vector<float>& some_queries,
            std::vector<float>& some_outputs, ResidueInputs& inputs) const {
    const size_t n = inputs.queries.rows, step = (n * num_entries + kMostWeights - 1) / kMostWeights;
    if (step <= 1) return;
    for (size_t q = 0; q < n; q += step) {
      some_queries.insert(some_queries.end(), inputs.queries.row(q), inputs.queries.row(q) + key_dim_);
      some_outputs.insert(some_outputs.end(), outputs.begin() + static_cast<ptrdiff_t>(q * value_dim_),
                          outputs.begin() + static_cast<ptrdiff_t>((q + 1) * value_dim_));
    }
    inputs.queries = ViewOf(some_queries.data(), some_queries.size() / key_dim_, key_dim_);
  }

  // Keys of the entries that stay as they will be read, whole pages in the format that they are converted to. [all, D]
  std::vector<float> StoredKeys(const std::vector<int32_t>& all) const {
    const int key_dim = head_.layout().key_dim, value_dim = head_.layout().value_dim;
    const PageLayout wide = PageLayout::Make(PageFormat(), key_dim, value_dim, 0);
    const PageLayout low = PageLayout::Make(task_.format.value_or(PageFormat()), key_dim, value_dim, 0);
    std::vector<std::byte> page(wide.page_bytes), converted(low.page_bytes);
    std::vector<float> stored(all.size() * key_dim_);
    for (size_t first = 0; first < all.size(); first += kP) {
      const size_t count = std::min<size_t>(kP, all.size() - first);
      for (size_t i = 0; i < count; ++i) {
        const auto from = static_cast<size_t>(all[first + i]);
        kernels::WriteEntryF32(wide, page.data(), static_cast<int>(i), keys_.data() + from * key_dim_,
                               values_.data() + from * value_dim_, static_cast<int32_t>(i));
      }
      const bool converts = task_.format && count == kP;
      if (converts) kernels::ConvertPage(wide, page.data(), low, converted.data());
      kernels::ReadKeys(converts ? low : wide, converts ? converted.data() : page.data(), static_cast<int>(count),
                        stored.data() + first * key_dim_);
    }
    return stored;
  }

  const StandInTask& task_;
  HeadCache& head_;
  std::vector<int32_t>& kept_;
  const int num_entries_;
  const size_t key_dim_, value_dim_, kv_head_;
  std::vector<int32_t> fixed_, competing_, dropped_;  // what must stay, what else stays, what goes
  std::vector<int32_t> places_, changed_;             // dropped entries that may be written over; entries to be written
  std::vector<float> keys_, values_, queries_;
  ResidueInputs inputs_;
};

}  // namespace

Status MakeStandInEntries(const StandInTask& task, std::span<HeadCache> heads, std::span<std::vector<int32_t>> kept) {
  if (task.references.num_rows() == 0) return {};
  std::vector<Status> made(heads.size());
  ParallelFor(heads.size(), [&](size_t h) {
    made[h] = HeadStandIns(task, task.first_head + static_cast<int>(h), heads[h], kept[h]).Run();
  });
  const auto failed = std::ranges::find_if(made, [](const Status& status) { return !status; });
  return failed == made.end() ? Status() : *failed;
}

}  // namespace pith
