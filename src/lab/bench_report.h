// pith bench, what is told: JSON, Markdown, and two runs side by side.
#ifndef PITH_LAB_BENCH_REPORT_H_
#define PITH_LAB_BENCH_REPORT_H_

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "host/model.h"
#include "lab/bench_runner.h"
#include "lab/machine.h"
#include "pith/types.h"

namespace pith {

// One configuration at one context; one value of each vector per repetition.
struct BenchRow {
  BenchConfig config;
  BenchCase bench;
  int num_sequences = 1;  // that ran at once
  std::vector<PhaseTimes> prefill, tail, decode;
  size_t kv_bytes = 0;
  size_t rss_peak_bytes = 0;
};

struct BenchReport {
  MachineInfo machine;
  std::vector<std::pair<int, Roofline>> rooflines;  // by number of threads
  double free_share = 1;  // what other processes left of a thread's time, at the context where they left the least
  int repeats = 0;
  bool float_products = false;  // prompts' products with weights are not libllama's (host/block_product.h)
  bool byte_products = false;   // nor are those of few rows (host/row_product.h)
  size_t rss_peak_bytes = 0;
  std::vector<BenchRow> rows;
};

// Row names as llama-bench has them: "pp512", "pp256 @ d256", "tg128 @ d8192".
std::string PrefillName(int tokens, int depth);
std::string DecodeName(int tokens, int depth);

nlohmann::ordered_json ToJson(const BenchReport& report, const ModelInfo& info);

// A line on the machine, the table, the roofline. Everything comes from the JSON of one run.
std::string ToMarkdown(const nlohmann::ordered_json& run);

// The tests that both runs have, second against first. kInvalidArgument: no run of pith bench.
Result<std::string> CompareRuns(const nlohmann::ordered_json& before, const nlohmann::ordered_json& after);

}  // namespace pith

#endif  // PITH_LAB_BENCH_REPORT_H_
