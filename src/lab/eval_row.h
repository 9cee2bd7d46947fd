// Results of `pith eval`: one row per item, recipe and kept fraction, their means and their JSON.
#ifndef PITH_LAB_EVAL_ROW_H_
#define PITH_LAB_EVAL_ROW_H_

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pith/types.h"

namespace pith {

struct EvalRow {
  std::string id;
  std::string task;
  int length = 0;
  size_t tokens = 0;
  std::string policy;
  double keep = 1;
  double kept = 1;        // share of the compressed part's entries that stay
  double nll = 0;         // mean over the target's tokens, nats
  double kl = 0;          // mean KL(full cache || compressed) over the same positions, nats
  bool ok = false;        // every target token was the likeliest
  double kept_bytes = 1;  // share of the full f16 cache's bytes
  // Decoding under a budget: the same two means over the generated text. Negative: there was none.
  double long_nll = -1;
  double long_kl = -1;
};

nlohmann::ordered_json RowToJson(const EvalRow& row);
// kCorrupt with one sentence about the field that is missing or of the wrong kind.
Result<EvalRow> RowFromJson(const nlohmann::ordered_json& json);

struct EvalMean {
  int64_t count = 0;
  int64_t ok = 0;
  int64_t num_long = 0;
  double nll = 0, kl = 0, kept = 0, kept_bytes = 0;  // sums
  double long_nll = 0, long_kl = 0;                  // sums over num_long rows

  void Add(const EvalRow& row);
  double Of(double sum) const { return count == 0 ? 0 : sum / static_cast<double>(count); }
  double accuracy() const { return Of(static_cast<double>(ok)); }
};

struct TableRow {
  std::string task;  // "all" for every task together
  std::string policy;
  double keep = 1;
  EvalMean mean;
};

// Per task, and over all of them; policies and fractions in the order they came.
std::vector<TableRow> MakeTable(std::span<const EvalRow> rows);

nlohmann::ordered_json TableToJson(std::span<const EvalRow> rows);
void PrintTable(std::span<const EvalRow> rows);

}  // namespace pith

#endif  // PITH_LAB_EVAL_ROW_H_
