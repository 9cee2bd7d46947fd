// The tables of pith bench. They are made of the JSON of a run, so that a file
// of results says as much as the run itself did.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/text.h"
#include "lab/bench_report.h"

namespace pith {
namespace {

using Json = nlohmann::ordered_json;
using Cells = std::vector<std::string>;

// A Markdown table whose columns are aligned in the source too; all but the first `left` are numbers.
std::string Table(const std::vector<Cells>& rows, size_t left) {
  std::vector<size_t> widths(rows.front().size(), 3);
  for (const Cells& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (size_t r = 0; r < rows.size(); ++r) {
    text += '|';
    for (size_t i = 0; i < widths.size(); ++i) {
      text +=
          i < left ? fmt::format(" {:<{}} |", rows[r][i], widths[i]) : fmt::format(" {:>{}} |", rows[r][i], widths[i]);
    }
    text += '\n';
    if (r > 0) continue;
    text += '|';
    for (size_t i = 0; i < widths.size(); ++i) {
      text += ' ' + std::string(widths[i] - (i < left ? 0 : 1), '-') + (i < left ? " |" : ": |");
    }
    text += '\n';
  }
  return text;
}

std::string EngineName(const Json& row) {
  std::string name = row.at("engine");
  if (name == "libllama") name += row.at("flash_attention").get<bool>() ? ", FA on" : ", FA off";
  return name;
}

std::string Part(const Json& test, const char* part) {
  const Json& parts = test.at("ms_per_token");
  return parts.contains(part) ? fmt::format("{:.2f}", parts.at(part).get<double>()) : "";
}

std::string Optional(const Json& test, const char* field, const char* format) {
  return test.contains(field) ? fmt::format(fmt::runtime(format), test.at(field).get<double>()) : "";
}

bool Varies(const Json& run, const char* field) {
  for (const Json& row : run.at("rows")) {
    if (row.at(field) != run.at("rows").front().at(field)) return true;
  }
  return false;
}

std::string Machine(const Json& run) {
  const Json& machine = run.at("machine");
  std::string features;
  for (const Json& feature : machine.at("features"))
    features += (features.empty() ? "" : " ") + feature.get<std::string>();
  std::string text =
      fmt::format("{}; {}, {} cores, {} of memory ({}); SIMD target {}; pith {} {}; {}.\n",
                  run.at("model").get<std::string>(), machine.at("cpu").get<std::string>(),
                  machine.at("cores").get<int>(), FormatBytes(machine.at("memory_bytes").get<size_t>()), features,
                  machine.at("simd_target").get<std::string>(), machine.at("pith").get<std::string>(),
                  machine.at("commit").get<std::string>(), machine.at("libllama").get<std::string>());
  for (const Json& roofline : run.at("roofline")) {
    text += fmt::format("Roofline, {} threads: {:.1f} GB/s read, {:.0f} GFLOP/s float32",
                        roofline.at("threads").get<int>(), roofline.at("read_bytes_per_second").get<double>() / 1e9,
                        roofline.at("f32_flops").get<double>() / 1e9);
    const double bf16 = roofline.at("bf16_flops");
    text += bf16 > 0 ? fmt::format(", {:.0f} GFLOP/s bf16.\n", bf16 / 1e9) : std::string(".\n");
  }
  if (run.at("busy").get<bool>()) {
    text += fmt::format("**The machine was busy**: a thread got {:.0f}% of its time; these figures say little.\n",
                        100 * run.at("free_share").get<double>());
  }
  return text;
}

// What tells the rows of one test apart.
std::string KeyOf(const Json& row, const Json& test) {
  return fmt::format("{}|{}|{}|{}|{}|{}|{}|{}", test.at("name").get<std::string>(), EngineName(row),
                     row.at("recipe").get<std::string>(), row.at("keep").get<double>(),
                     row.at("format").get<std::string>(), row.at("threads").get<int>(), row.at("batch").get<int>(),
                     row.at("fill").get<std::string>());
}

// Half of the range, relative: how far two equal runs may lie apart.
double Spread(const Json& test) {
  return (test.at("tps_max").get<double>() - test.at("tps_min").get<double>()) /
         std::max(1e-9, 2 * test.at("tps").get<double>());
}

}  // namespace

std::string ToMarkdown(const nlohmann::ordered_json& run) {
  const bool threads = Varies(run, "threads"),
             batches = Varies(run, "batch") || run.at("rows").front().at("batch") != 1;
  Cells head = {"test", "engine", "recipe", "kept", "KV", "fill"};
  if (threads) head.emplace_back("threads");
  if (batches) head.emplace_back("sequences");
  for (const char* column : {"tokens/s", "min-max", "x libllama", "KV bytes", "B/token", "peak memory", "libllama ms",
                             "attention ms", "policy ms", "other ms", "x attention", "of roofline"}) {
    head.emplace_back(column);
  }
  std::vector<Cells> rows = {head};
  for (const Json& row : run.at("rows")) {
    for (const Json& test : row.at("tests")) {
      Cells cells = {test.at("name"),  EngineName(row),
                     row.at("recipe"), fmt::format("{:.3g}", row.at("keep").get<double>()),
                     row.at("format"), row.at("fill")};
      if (threads) cells.push_back(std::to_string(row.at("threads").get<int>()));
      if (batches) cells.push_back(fmt::format("{} of {}", row.at("sequences").get<int>(), row.at("batch").get<int>()));
      cells.push_back(fmt::format("{:.1f}", test.at("tps").get<double>()));
      cells.push_back(fmt::format("{:.1f}-{:.1f}", test.at("tps_min").get<double>(), test.at("tps_max").get<double>()));
      cells.push_back(Optional(test, "ratio", "{:.2f}"));
      cells.push_back(FormatBytes(row.at("kv_bytes").get<size_t>()));
      cells.push_back(fmt::format("{:.0f}", row.at("kv_bytes_per_token").get<double>()));
      cells.push_back(FormatBytes(row.at("rss_peak_bytes").get<size_t>()));
      for (const char* part : {"libllama", "attention", "policy", "other"}) cells.push_back(Part(test, part));
      cells.push_back(Optional(test, "attention_ratio", "{:.2f}"));
      cells.push_back(
          test.contains("roofline_share") ? fmt::format("{:.0f}%", 100 * test.at("roofline_share").get<double>()) : "");
      rows.push_back(std::move(cells));
    }
  }
  return Machine(run) + "\n" + Table(rows, 6);
}

Result<std::string> CompareRuns(const nlohmann::ordered_json& before, const nlohmann::ordered_json& after) {
  std::map<std::string, Json> old;
  std::vector<Cells> rows = {
      {"test", "engine", "recipe", "kept", "KV", "before", "after", "change", "ratio before", "ratio after"}};
  try {
    for (const Json& row : before.at("rows")) {
      for (const Json& test : row.at("tests")) old[KeyOf(row, test)] = test;
    }
    for (const Json& row : after.at("rows")) {
      for (const Json& test : row.at("tests")) {
        const auto found = old.find(KeyOf(row, test));
        if (found == old.end()) continue;
        const double change = test.at("tps").get<double>() / found->second.at("tps").get<double>() - 1;
        const bool clear = std::abs(change) > Spread(test) + Spread(found->second);
        rows.push_back({test.at("name"), EngineName(row), row.at("recipe"),
                        fmt::format("{:.3g}", row.at("keep").get<double>()), row.at("format"),
                        fmt::format("{:.1f}", found->second.at("tps").get<double>()),
                        fmt::format("{:.1f}", test.at("tps").get<double>()),
                        fmt::format("{:+.1f}%{}", 100 * change, clear ? "" : " (noise)"),
                        Optional(found->second, "ratio", "{:.2f}"), Optional(test, "ratio", "{:.2f}")});
      }
    }
    if (rows.size() == 1) return InvalidArgument("the two runs have no test in common");
    return "before: " + Machine(before) + "after: " + Machine(after) + "\n" + Table(rows, 5);
  } catch (const Json::exception&) {
    return InvalidArgument("only files of \"pith bench --json\" can be compared");
  }
}

}  // namespace pith
