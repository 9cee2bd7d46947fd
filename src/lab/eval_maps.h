// What recipes kept, for the report of `pith eval --html`: budgets by layer and head, and entries over the text.
#ifndef PITH_LAB_EVAL_MAPS_H_
#define PITH_LAB_EVAL_MAPS_H_

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "lab/judge.h"

namespace pith {

class EvalMaps {
 public:
  // num_texts: items of which the report shows the text itself.
  EvalMaps(const HostModel& model, int num_texts);

  // Right after `sequence` was compressed.
  void Look(const Engine& engine, SequenceId sequence, const JudgedTask& task, const std::string& policy, double keep);

  // {"budgets": [{policy, keep, items, share: [L][G]}], "texts": [{id, pieces: [n], kept: [{policy, keep, share}]}]}
  // where a text's share is one character '0'..'9' for each token: tenths of the heads that keep it, 9 for all of them.
  nlohmann::ordered_json ToJson() const;

 private:
  struct Budgets {
    int items = 0;
    std::vector<double> share;  // [L, G], sums over items
  };
  struct Text {
    std::string id;
    std::vector<std::string> pieces;
    std::vector<std::tuple<std::string, double, std::string>> kept;  // policy, keep, share
  };

  const HostModel& model_;
  const size_t num_texts_;
  std::vector<int> heads_;       // kv heads of each layer with a global cache
  std::vector<size_t> first_;    // index of each layer's first head
  std::vector<std::pair<std::string, double>> order_;
  std::map<std::pair<std::string, double>, Budgets> budgets_;
  std::vector<Text> texts_;
};

}  // namespace pith

#endif  // PITH_LAB_EVAL_MAPS_H_
