#include "lab/eval_maps.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <numeric>

#include "base/text.h"

namespace pith {

using nlohmann::ordered_json;

EvalMaps::EvalMaps(const HostModel& model, int num_texts) : model_(model), num_texts_(static_cast<size_t>(num_texts)) {
  size_t first = 0;
  for (const LayerShape& layer : model.info().layers) {
    if (layer.kind != LayerKind::kGlobal) continue;
    heads_.push_back(layer.num_kv_heads);
    first_.push_back(first);
    first += static_cast<size_t>(layer.num_kv_heads);
  }
  first_.push_back(first);
}

void EvalMaps::Look(const Engine& engine, SequenceId sequence, const JudgedTask& task, const std::string& policy,
                    double keep) {
  const size_t num_tokens = task.compressed.size();
  std::vector<int> holders(num_tokens, 0);
  const auto [found, fresh] = budgets_.try_emplace({policy, keep});
  Budgets& budgets = found->second;
  if (fresh) {
    order_.push_back(found->first);
    budgets.share.assign(first_.back(), 0);
  }
  ++budgets.items;
  for (size_t layer = 0; layer < heads_.size(); ++layer) {
    for (int head = 0; head < heads_[layer]; ++head) {
      const std::vector<int32_t> positions = engine.EntryPositions(sequence, static_cast<int>(layer), head);
      budgets.share[first_[layer] + static_cast<size_t>(head)] +=
          static_cast<double>(positions.size()) / static_cast<double>(num_tokens);
      for (const int32_t position : positions) {
        if (position >= 0 && static_cast<size_t>(position) < num_tokens) ++holders[static_cast<size_t>(position)];
      }
    }
  }
  auto text = std::find_if(texts_.begin(), texts_.end(), [&task](const Text& one) { return one.id == task.task.id; });
  if (text == texts_.end()) {
    if (texts_.size() == num_texts_) return;
    Text one{.id = task.task.id, .pieces = {}, .kept = {}};
    // A piece may end inside a character; what is whole is shown with the token that completes it.
    Utf8Stream stream;
    for (const int32_t token : task.compressed) one.pieces.push_back(stream.Push(model_.Piece(token)));
    one.pieces.back() += stream.Flush();
    texts_.push_back(std::move(one));
    text = texts_.end() - 1;
  }
  std::string share;
  for (const int holding : holders) {
    share += static_cast<char>('0' + holding * 9 / std::max(1, static_cast<int>(first_.back())));
  }
  text->kept.emplace_back(policy, keep, std::move(share));
}

ordered_json EvalMaps::ToJson() const {
  auto budgets = ordered_json::array();
  for (const auto& key : order_) {
    const Budgets& one = budgets_.at(key);
    auto layers = ordered_json::array();
    for (size_t layer = 0; layer < heads_.size(); ++layer) {
      auto heads = ordered_json::array();
      for (size_t i = first_[layer]; i < first_[layer + 1]; ++i) heads.push_back(one.share[i] / one.items);
      layers.push_back(std::move(heads));
    }
    budgets.push_back(
        {{"policy", key.first}, {"keep", key.second}, {"items", one.items}, {"share", std::move(layers)}});
  }
  auto texts = ordered_json::array();
  for (const Text& one : texts_) {
    auto kept = ordered_json::array();
    for (const auto& [policy, keep, share] : one.kept) {
      kept.push_back({{"policy", policy}, {"keep", keep}, {"share", share}});
    }
    texts.push_back({{"id", one.id}, {"pieces", one.pieces}, {"kept", std::move(kept)}});
  }
  return {{"budgets", std::move(budgets)}, {"texts", std::move(texts)}};
}

}  // namespace pith
