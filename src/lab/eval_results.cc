#include "lab/eval_results.h"

#include <algorithm>
#include <map>

namespace pith {

EvalResults::EvalResults(std::unique_ptr<EvalLog> log, std::vector<std::string> ids)
    : log_(std::move(log)), ids_(std::move(ids)) {
  if (log_ == nullptr) return;
  const std::set<std::string> wanted(ids_.begin(), ids_.end());
  for (const EvalRow& row : log_->rows()) {
    if (wanted.contains(row.id) && keys_.insert({row.id, row.policy, row.keep}).second) rows_.push_back(row);
  }
}

Status EvalResults::Add(EvalRow row) {
  if (log_ != nullptr) PITH_RETURN_IF_ERROR(log_->Append(row));
  keys_.insert({row.id, row.policy, row.keep});
  rows_.push_back(std::move(row));
  return {};
}

void EvalResults::Sort(std::span<const std::string> recipes) {
  std::map<std::string, size_t> place;
  for (const std::string& id : ids_) place.emplace(id, place.size());
  std::map<std::string, size_t> order = {{"full", 0}};
  for (const std::string& name : recipes) order.emplace(name, order.size());
  const auto rank = [&](const EvalRow& row) {
    const auto found = order.find(row.policy);
    return std::tuple(place.at(row.id), -row.keep, found == order.end() ? order.size() : found->second, row.policy);
  };
  std::stable_sort(rows_.begin(), rows_.end(), [&](const EvalRow& a, const EvalRow& b) { return rank(a) < rank(b); });
}

}  // namespace pith
