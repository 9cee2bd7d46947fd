#include "lab/eval_row.h"

#include <algorithm>
#include <map>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace pith {
namespace {

using nlohmann::ordered_json;

Status ReadText(const ordered_json& json, const char* field, std::string& to) {
  const auto found = json.find(field);
  if (found == json.end() || !found->is_string())
    return Corrupt(fmt::format("the field \"{}\" is not a string", field));
  to = found->get<std::string>();
  return {};
}

Status ReadNumber(const ordered_json& json, const char* field, double& to) {
  const auto found = json.find(field);
  if (found == json.end() || !found->is_number())
    return Corrupt(fmt::format("the field \"{}\" is not a number", field));
  to = found->get<double>();
  return {};
}

}  // namespace

ordered_json RowToJson(const EvalRow& row) {
  ordered_json json = {{"id", row.id},         {"task", row.task}, {"length", row.length}, {"tokens", row.tokens},
                       {"policy", row.policy}, {"keep", row.keep}, {"kept", row.kept},     {"nll", row.nll},
                       {"kl", row.kl},         {"ok", row.ok},     {"kept_bytes", row.kept_bytes}};
  if (row.long_nll >= 0) {
    json["long_nll"] = row.long_nll;
    json["long_kl"] = row.long_kl;
  }
  return json;
}

Result<EvalRow> RowFromJson(const ordered_json& json) {
  if (!json.is_object()) return Corrupt("this is not a JSON object");
  EvalRow row;
  PITH_RETURN_IF_ERROR(ReadText(json, "id", row.id));
  PITH_RETURN_IF_ERROR(ReadText(json, "task", row.task));
  PITH_RETURN_IF_ERROR(ReadText(json, "policy", row.policy));
  double length = 0, tokens = 0;
  PITH_RETURN_IF_ERROR(ReadNumber(json, "length", length));
  PITH_RETURN_IF_ERROR(ReadNumber(json, "tokens", tokens));
  if (!(length >= 0 && length < 1e9 && tokens >= 0 && tokens < 1e9))
    return Corrupt("a number of tokens is out of range");
  row.length = static_cast<int>(length);
  row.tokens = static_cast<size_t>(tokens);
  PITH_RETURN_IF_ERROR(ReadNumber(json, "keep", row.keep));
  PITH_RETURN_IF_ERROR(ReadNumber(json, "kept", row.kept));
  PITH_RETURN_IF_ERROR(ReadNumber(json, "nll", row.nll));
  PITH_RETURN_IF_ERROR(ReadNumber(json, "kl", row.kl));
  PITH_RETURN_IF_ERROR(ReadNumber(json, "kept_bytes", row.kept_bytes));
  const auto ok = json.find("ok");
  if (ok == json.end() || !ok->is_boolean()) return Corrupt("the field \"ok\" is not a truth value");
  row.ok = ok->get<bool>();
  if (json.contains("long_nll")) {
    PITH_RETURN_IF_ERROR(ReadNumber(json, "long_nll", row.long_nll));
    PITH_RETURN_IF_ERROR(ReadNumber(json, "long_kl", row.long_kl));
  }
  return row;
}

void EvalMean::Add(const EvalRow& row) {
  ++count;
  ok += row.ok ? 1 : 0;
  nll += row.nll;
  kl += row.kl;
  kept += row.kept;
  kept_bytes += row.kept_bytes;
  if (row.long_nll < 0) return;
  ++num_long;
  long_nll += row.long_nll;
  long_kl += row.long_kl;
}

std::vector<TableRow> MakeTable(std::span<const EvalRow> rows) {
  std::vector<TableRow> table;
  std::map<std::pair<std::string, std::pair<std::string, double>>, size_t> index;
  const auto add = [&](const std::string& task, const EvalRow& row) {
    const auto [found, fresh] = index.try_emplace({task, {row.policy, row.keep}}, table.size());
    if (fresh) table.push_back({task, row.policy, row.keep, {}});
    table[found->second].mean.Add(row);
  };
  for (const EvalRow& row : rows) add(row.task, row);
  for (const EvalRow& row : rows) add("all", row);
  std::stable_sort(table.begin(), table.end(), [](const TableRow& a, const TableRow& b) {
    const bool a_all = a.task == "all";
    const bool b_all = b.task == "all";
    if (a_all != b_all) return b_all;
    if (a.task != b.task) return a.task < b.task;
    return a.keep > b.keep;
  });
  return table;
}

ordered_json TableToJson(std::span<const EvalRow> rows) {
  auto table = ordered_json::array();
  for (const TableRow& row : MakeTable(rows)) {
    table.push_back({{"task", row.task},
                     {"policy", row.policy},
                     {"keep", row.keep},
                     {"items", row.mean.count},
                     {"kept", row.mean.Of(row.mean.kept)},
                     {"kept_bytes", row.mean.Of(row.mean.kept_bytes)},
                     {"accuracy", row.mean.accuracy()},
                     {"nll", row.mean.Of(row.mean.nll)},
                     {"kl", row.mean.Of(row.mean.kl)}});
    if (row.mean.num_long == 0) continue;
    table.back()["long_nll"] = row.mean.long_nll / static_cast<double>(row.mean.num_long);
    table.back()["long_kl"] = row.mean.long_kl / static_cast<double>(row.mean.num_long);
  }
  return table;
}

void PrintTable(std::span<const EvalRow> rows) {
  size_t width = 6;
  bool any_long = false;
  for (const EvalRow& row : rows) {
    width = std::max(width, row.policy.size());
    any_long = any_long || row.long_nll >= 0;
  }
  fmt::print("{:<14} {:<{}} {:>6} {:>6} {:>6} {:>9} {:>8} {:>8}{}\n", "task", "recipe", width, "keep", "kept", "bytes",
             "accuracy", "nll", "kl", any_long ? fmt::format(" {:>8} {:>8}", "long nll", "long kl") : "");
  for (const TableRow& row : MakeTable(rows)) {
    const EvalMean& mean = row.mean;
    fmt::print("{:<14} {:<{}} {:>6.3g} {:>6.3f} {:>6.3f} {:>9} {:>8.3f} {:>8.4f}", row.task, row.policy, width,
               row.keep, mean.Of(mean.kept), mean.Of(mean.kept_bytes), fmt::format("{}/{}", mean.ok, mean.count),
               mean.Of(mean.nll), mean.Of(mean.kl));
    if (mean.num_long > 0) {
      const auto num_long = static_cast<double>(mean.num_long);
      fmt::print(" {:>8.3f} {:>8.4f}", mean.long_nll / num_long, mean.long_kl / num_long);
    }
    fmt::print("\n");
  }
}

}  // namespace pith
