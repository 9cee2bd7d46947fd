// The rows of one run of `pith eval`, with those that --resume found on disk.
#ifndef PITH_LAB_EVAL_RESULTS_H_
#define PITH_LAB_EVAL_RESULTS_H_

#include <memory>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "lab/eval_log.h"
#include "lab/eval_row.h"
#include "pith/types.h"

namespace pith {

class EvalResults {
 public:
  // log: null without --resume. ids: the tasks of this run, in order; rows of other tasks are left alone.
  EvalResults(std::unique_ptr<EvalLog> log, std::vector<std::string> ids);

  bool Has(const std::string& id, const std::string& policy, double keep) const {
    return keys_.contains({id, policy, keep});
  }
  Status Add(EvalRow row);
  const std::vector<EvalRow>& rows() const { return rows_; }

  // By task, kept fraction and recipe in the order given, as if nothing had been resumed.
  void Sort(std::span<const std::string> recipes);

 private:
  using Key = std::tuple<std::string, std::string, double>;  // id, policy, keep

  std::unique_ptr<EvalLog> log_;
  const std::vector<std::string> ids_;
  std::set<Key> keys_;
  std::vector<EvalRow> rows_;
};

}  // namespace pith

#endif  // PITH_LAB_EVAL_RESULTS_H_
