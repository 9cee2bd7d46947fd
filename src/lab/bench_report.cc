#include "lab/bench_report.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "base/text.h"
#include "engine/full_cache.h"
#include "lab/measure.h"

namespace pith {
namespace {

using Json = nlohmann::ordered_json;

// What a row measured in one phase.
struct Test {
  std::string name;
  std::string kind;  // "prefill", "tail", "decode"
  const std::vector<PhaseTimes>* times = nullptr;
  double flops = 0;  // of attention, per repetition; 0: not known
};

std::vector<double> Rates(const std::vector<PhaseTimes>& times) {
  std::vector<double> rates;
  for (const PhaseTimes& time : times) rates.push_back(time.tokens_per_second());
  return rates;
}

double MedianRate(const std::vector<PhaseTimes>& times) { return times.empty() ? 0 : Median(Rates(times)); }

PhaseTimes Sum(const std::vector<PhaseTimes>& times) {
  PhaseTimes sum;
  for (const PhaseTimes& time : times) {
    sum.wall += time.wall;
    sum.attention += time.attention;
    sum.policy += time.policy;
    sum.host += time.host;
    sum.tokens += time.tokens;
    sum.kv_bytes_read += time.kv_bytes_read;
  }
  return sum;
}

// Multiply-adds count two. Tokens from..to-1 of each sequence see themselves and all before them.
double AttentionFlops(const ModelInfo& info, const BenchRow& row, int from, int to) {
  if (row.config.keep < 1) return 0;
  const double pairs = 0.5 * (static_cast<double>(to) * (to + 1) - static_cast<double>(from) * (from + 1));
  double flops = 0;
  for (const LayerShape& layer : info.layers) {
    if (!HoldsCache(layer)) continue;
    if (layer.kind != LayerKind::kGlobal) return 0;
    flops += 2.0 * pairs * layer.num_heads * (layer.key_dim + layer.value_dim);
  }
  return flops * row.num_sequences;
}

std::vector<Test> TestsOf(const ModelInfo& info, const BenchRow& row) {
  const BenchCase& bench = row.bench;
  std::vector<Test> tests;
  const int head = bench.ctx - bench.tail;
  if (!bench.synthetic) {
    tests.push_back({PrefillName(bench.ctx, 0), "prefill", &row.prefill, AttentionFlops(info, row, 0, bench.ctx)});
  }
  if (bench.tail > 0 && head > 0) {
    tests.push_back({PrefillName(bench.tail, head), "tail", &row.tail, AttentionFlops(info, row, head, bench.ctx)});
  }
  tests.push_back({DecodeName(bench.num_decoded, bench.ctx), "decode", &row.decode});
  return tests;
}

bool SameGroup(const BenchRow& a, const BenchRow& b) {
  return a.bench.ctx == b.bench.ctx && a.config.threads == b.config.threads && a.config.batch == b.config.batch;
}

const std::vector<PhaseTimes>& PhaseOf(const BenchRow& row, const std::string& kind) {
  return kind == "prefill" ? row.prefill : kind == "tail" ? row.tail : row.decode;
}

// libllama's better setting of flash attention, in the row's own format if it was measured, else in f16. 0: none.
double BestPlainRate(const std::vector<BenchRow>& rows, const BenchRow& row, const std::string& kind) {
  double same = 0, half = 0;
  for (const BenchRow& other : rows) {
    if (other.config.engine != "libllama" || !SameGroup(other, row)) continue;
    const double rate = MedianRate(PhaseOf(other, kind));
    if (other.config.format == row.config.format) same = std::max(same, rate);
    if (other.config.format == PageFormat()) half = std::max(half, rate);
  }
  return same > 0 ? same : half;
}

Json TestJson(const BenchReport& report, const BenchRow& row, const Test& test) {
  const std::vector<double> rates = Rates(*test.times);
  const PhaseTimes sum = Sum(*test.times);
  const double tokens = static_cast<double>(std::max<size_t>(sum.tokens, 1)),
               plain = BestPlainRate(report.rows, row, test.kind);
  Json json = {{"name", test.name},
               {"kind", test.kind},
               {"tps", Median(rates)},
               {"tps_min", *std::min_element(rates.begin(), rates.end())},
               {"tps_max", *std::max_element(rates.begin(), rates.end())}};
  if (plain > 0) json["ratio"] = Median(rates) / plain;
  if (row.config.engine == "libllama") {
    json["ms_per_token"] = {{"libllama", 1000 * sum.wall / tokens}};
    return json;
  }
  const double other = sum.wall - sum.host - sum.attention - sum.policy;
  json["ms_per_token"] = {{"libllama", 1000 * sum.host / tokens},
                          {"attention", 1000 * sum.attention / tokens},
                          {"policy", 1000 * sum.policy / tokens},
                          {"other", 1000 * other / tokens}};
  if (sum.attention <= 0) return json;
  // libllama's attention is what it takes beyond the rest of the graph, where that is the same for both.
  const bool same_rest = !(test.kind == "decode" ? report.byte_products : report.float_products);
  if (plain > 0 && same_rest) json["attention_ratio"] = (tokens / plain - sum.host - other) / sum.attention;
  for (const auto& [threads, roofline] : report.rooflines) {
    if (threads != row.config.threads) continue;
    if (sum.kv_bytes_read > 0) {
      json["attention_bytes_per_second"] = sum.kv_bytes_read / sum.attention;
      json["roofline_share"] = sum.kv_bytes_read / sum.attention / roofline.read_bytes_per_second;
    } else if (test.flops > 0) {
      json["attention_flops"] = test.flops * static_cast<double>(test.times->size()) / sum.attention;
      json["roofline_share"] =
          test.flops * static_cast<double>(test.times->size()) / sum.attention / roofline.peak_flops();
    }
  }
  return json;
}

double ShareOf(const BenchRow& row, double PhaseTimes::*part) {
  double share = 0, wall = 0;
  for (const std::vector<PhaseTimes>* times : {&row.prefill, &row.decode}) {
    const PhaseTimes sum = Sum(*times);
    share += sum.*part;
    wall += sum.wall;
  }
  return wall > 0 ? share / wall : 0;
}

Json RowJson(const BenchReport& report, const ModelInfo& info, const BenchRow& row) {
  const double held = static_cast<double>(row.num_sequences) * (row.bench.ctx + row.bench.num_decoded);
  const auto rate = [](bool measured, const std::vector<PhaseTimes>& times) {
    return measured ? Json(MedianRate(times)) : Json();
  };
  Json json = {{"engine", row.config.engine},
               {"recipe", row.config.recipe},
               {"keep", row.config.keep},
               {"ctx", row.bench.ctx},
               {"prefill_tps", rate(!row.bench.synthetic, row.prefill)},
               {"prefill_tail_tps", rate(row.bench.tail > 0, row.tail)},
               {"decode_tps", MedianRate(row.decode)},
               {"kv_bytes", row.kv_bytes},
               {"kv_bytes_per_token", static_cast<double>(row.kv_bytes) / held},
               {"rss_peak_bytes", row.rss_peak_bytes},
               {"format", row.config.format.Name()},
               {"flash_attention", row.config.flash_attention},
               {"threads", row.config.threads},
               {"batch", row.config.batch},
               {"sequences", row.num_sequences},
               {"fill", row.bench.synthetic ? "synthetic" : "real"},
               {"attention_share", ShareOf(row, &PhaseTimes::attention)},
               {"policy_share", ShareOf(row, &PhaseTimes::policy)},
               {"repeats", row.decode.size()},
               {"decode_tps_all", Rates(row.decode)},
               {"prefill_tps_all", Rates(row.prefill)}};
  Json tests = Json::array();
  for (const Test& test : TestsOf(info, row)) tests.push_back(TestJson(report, row, test));
  json["tests"] = tests;
  return json;
}

}  // namespace

std::string PrefillName(int tokens, int depth) {
  return depth > 0 ? fmt::format("pp{} @ d{}", tokens, depth) : fmt::format("pp{}", tokens);
}

std::string DecodeName(int tokens, int depth) {
  return depth > 0 ? fmt::format("tg{} @ d{}", tokens, depth) : fmt::format("tg{}", tokens);
}

nlohmann::ordered_json ToJson(const BenchReport& report, const ModelInfo& info) {
  Json rows = Json::array();
  for (const BenchRow& row : report.rows) rows.push_back(RowJson(report, info, row));
  Json rooflines = Json::array();
  for (const auto& [threads, roofline] : report.rooflines) {
    rooflines.push_back({{"threads", threads},
                         {"read_bytes_per_second", roofline.read_bytes_per_second},
                         {"f32_flops", roofline.f32_flops},
                         {"bf16_flops", roofline.bf16_flops}});
  }
  const MachineInfo& machine = report.machine;
  return {{"model", info.description},
          {"architecture", info.architecture},
          {"machine",
           {{"cpu", machine.cpu},
            {"features", machine.features},
            {"cores", machine.cores},
            {"memory_bytes", machine.memory_bytes},
            {"simd_target", machine.simd_target},
            {"pith", machine.pith_version},
            {"commit", machine.commit},
            {"libllama", machine.libllama}}},
          {"roofline", rooflines},
          {"free_share", report.free_share},
          {"busy", report.free_share < kBusyBelow},
          {"repeats", report.repeats},
          {"float_products", report.float_products},
          {"byte_products", report.byte_products},
          {"threads", report.rows.empty() ? 0 : report.rows.front().config.threads},
          {"decoded", report.rows.empty() ? 0 : report.rows.front().bench.num_decoded},
          {"rss_peak_bytes", report.rss_peak_bytes},
          {"rows", rows}};
}

}  // namespace pith
