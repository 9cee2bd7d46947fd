// `pith eval --perturbation`: what eviction does to the output of attention, head by head.
//
// A task is read to its end by the full cache: context, question and answer. The queries q_t of its last T tokens,
// which no recipe has seen, then attend twice in every layer, at the same layer input: over everything, o = A V, and
// over what the recipe kept of the context together with all entries of question and answer, o' = A' V'. With W_h the
// slice of the output projection that belongs to query head h (the identity where the file has none by that name):
//
//   error of a head    sqrt( sum_t |(o_th - o'_th) W_h|^2 / sum_t |o_th W_h|^2 )
//   error of a layer   the same with the sum over heads inside the norms, which is the layer's output
//
// Each is taken twice: for those later queries, and for the last T queries of the context itself (`observed`), among
// which are the ones that recipes with a window have judged by.
//
// CriticalKV (arXiv:2502.03805, section 3) bounds |(o - o') W|_1 of each head; its claim is that more than 92% of
// heads have less of it than with the recipe that it modifies. heads_lower_l1 counts in that norm.
#ifndef PITH_LAB_PERTURBATION_H_
#define PITH_LAB_PERTURBATION_H_

#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "lab/judge.h"
#include "pith/types.h"

namespace pith {

// |x W_h| of one layer: for each query head the sums over rows of squares and of absolute values, and the squares of
// the sum over heads.
struct OutputNorms {
  std::vector<double> squares;    // [H]
  std::vector<double> absolutes;  // [H]
  double layer_squares = 0;
};

// outputs [T, H, Dv]; projection [hidden, H * Dv] or empty.
OutputNorms MeasureOutputs(std::span<const float> outputs, int num_queries, int num_heads, int value_dim,
                           std::span<const float> projection);

class Perturbation {
 public:
  // options as for Judge.
  static Result<std::unique_ptr<Perturbation>> Create(std::shared_ptr<HostModel> model, JudgeOptions options);

  // Adds one task. kCancelled when options.stopped().
  Status Run(const JudgedTask& task);

  // {"base": first recipe, "items", "queries", "table": [{policy, keep, asked_by: "later" or "observed", error,
  //  layer_error, heads_lower, heads_lower_l1, head_items_lower_l1, layers: [L], heads: [L][H]}]}; shares of heads with
  // less error than the base at the same fraction, null for the base itself.
  nlohmann::ordered_json ToJson() const;
  void Print() const;

 private:
  using Key = std::tuple<size_t, size_t, bool>;  // recipe, kept fraction, observed queries
  // What the full cache gives to one set of queries.
  struct Asked {
    SequenceId queries_of = 0;
    int num_queries = 0;
    std::vector<std::vector<float>> outputs;  // [L][T, H, Dv]
    std::vector<OutputNorms> norms;           // [L]
  };
  struct Errors {
    std::vector<std::vector<double>> heads;  // [item][L * H]
    std::vector<std::vector<double>> heads_l1;
    std::vector<std::vector<double>> layers;  // [item][L]
  };
  struct Row {
    double error = 0, layer_error = 0, lower = 0, lower_l1 = 0, items_lower_l1 = 0;
  };

  Perturbation(std::shared_ptr<HostModel> model, JudgeOptions options);
  Result<Asked> Ask(SequenceId queries_of, int num_tokens);
  Status Compare(const Asked& asked, SequenceId fork, Errors& errors);
  Result<std::vector<std::vector<float>>> Outputs(SequenceId queries_of, SequenceId entries_of, int num_queries);
  OutputNorms Measure(size_t layer, std::span<const float> outputs, int num_queries) const;
  Row Summarise(const Key& key) const;

  std::shared_ptr<HostModel> model_;
  JudgeOptions options_;
  std::vector<int> layers_;  // of the model, that hold a global cache
  std::unique_ptr<Engine> engine_;
  std::map<Key, Errors> errors_;
};

}  // namespace pith

#endif  // PITH_LAB_PERTURBATION_H_
