// /metrics in Prometheus' text format: llama-server's names with its meanings, vLLM's gauge of the cache, and our own.
#include <algorithm>

#include <fmt/format.h>

#include "server/api.h"

namespace pith::server {
namespace {

class Exposition {
 public:
  void Add(const char* type, const char* name, const char* help, double value) {
    Head(type, name, help);
    text_ += fmt::format("{} {}\n", name, value);
  }
  void Head(const char* type, const char* name, const char* help) {
    text_ += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
  }
  void Labelled(const char* name, const char* label, std::string value, double number) {
    for (size_t at = 0; (at = value.find_first_of("\\\"\n", at)) != std::string::npos; at += 2) {
      value.replace(at, 1, value[at] == '\n' ? "\\n" : value[at] == '"' ? "\\\"" : "\\\\");
    }
    text_ += fmt::format("{}{{{}=\"{}\"}} {}\n", name, label, value, number);
  }
  void AddHistogram(const char* name, const char* help, const Histogram& histogram) {
    Head("histogram", name, help);
    uint64_t count = 0;
    for (size_t i = 0; i < histogram.counts.size(); ++i) {
      count += histogram.counts[i];
      const std::string bound = i < histogram.bounds.size() ? fmt::format("{}", histogram.bounds[i]) : "+Inf";
      text_ += fmt::format("{}_bucket{{le=\"{}\"}} {}\n", name, bound, count);
    }
    text_ += fmt::format("{}_sum {}\n{}_count {}\n", name, histogram.sum, name, count);
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

double Ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

void AddLlama(Exposition& out, const SchedulerStats& stats) {
  const auto prompt = static_cast<double>(stats.prompt_tokens);
  const auto written = static_cast<double>(stats.completion_tokens);
  out.Add("counter", "llamacpp:prompt_tokens_total", "Prompt tokens processed.", prompt);
  out.Add("counter", "llamacpp:prompt_tokens_cached_total", "Prompt tokens that were there already.",
          static_cast<double>(stats.cached_tokens));
  out.Add("counter", "llamacpp:prompt_seconds_total", "Seconds spent on prompts.", stats.prompt_seconds);
  out.Add("counter", "llamacpp:tokens_predicted_total", "Tokens generated.", written);
  out.Add("counter", "llamacpp:tokens_predicted_seconds_total", "Seconds spent on generation.", stats.decode_seconds);
  out.Add("counter", "llamacpp:n_decode_total", "Steps of the model.", static_cast<double>(stats.decode_steps));
  out.Add("counter", "llamacpp:n_tokens_max", "Tokens of the longest sequence so far.",
          static_cast<double>(stats.longest_tokens));
  out.Add("gauge", "llamacpp:n_busy_slots_per_decode", "Tokens generated in a step on average.",
          Ratio(written, static_cast<double>(stats.decode_steps)));
  out.Add("gauge", "llamacpp:prompt_tokens_seconds", "Prompt tokens a second on average.",
          Ratio(prompt, stats.prompt_seconds));
  out.Add("gauge", "llamacpp:predicted_tokens_seconds", "Tokens generated a second on average.",
          Ratio(written, stats.decode_seconds));
  out.Add("gauge", "llamacpp:requests_processing", "Sequences that run.", stats.live_sequences);
  out.Add("gauge", "llamacpp:requests_deferred", "Requests that wait.", stats.waiting);
}

void AddOwn(Exposition& out, const SchedulerStats& stats) {
  out.Add("gauge", "vllm:kv_cache_usage_perc", "Share of the KV budget in use, 0 to 1.",
          Ratio(static_cast<double>(stats.kv.used_bytes), static_cast<double>(stats.kv.budget_bytes)));
  out.Add("gauge", "pith:kv_budget_bytes", "The budget of everything that is cached.",
          static_cast<double>(stats.kv.budget_bytes));
  out.Add("gauge", "pith:kv_used_bytes", "Bytes of it in use.", static_cast<double>(stats.kv.used_bytes));
  out.Add("gauge", "pith:kv_peak_bytes", "The most that were in use.", static_cast<double>(stats.kv.peak_bytes));
  out.Add("gauge", "pith:kv_live_bytes", "Bytes of sequences that run.", static_cast<double>(stats.live_bytes));
  out.Add("gauge", "pith:kv_live_sequences", "Sequences that run.", stats.live_sequences);
  out.Add("gauge", "pith:kv_retained_bytes", "Bytes of prefixes that are kept.",
          static_cast<double>(stats.retained_bytes));
  out.Add("gauge", "pith:kv_retained_sequences", "Prefixes that are kept.", stats.retained_sequences);
  out.Head("gauge", "pith:kv_bytes", "Bytes in use by what they are for.");
  out.Labelled("pith:kv_bytes", "tag", "pages", static_cast<double>(stats.kv.page_bytes));
  out.Labelled("pith:kv_bytes", "tag", "tables", static_cast<double>(stats.kv.table_bytes));
  out.Labelled("pith:kv_bytes", "tag", "block", static_cast<double>(stats.kv.block_bytes));
  out.Labelled("pith:kv_bytes", "tag", "recurrent", static_cast<double>(stats.kv.recurrent_bytes));
  out.Head("counter", "pith:kv_evicted_entries_total", "Entries dropped, by recipe.");
  for (const auto& [recipe, count] : stats.evicted_entries) {
    out.Labelled("pith:kv_evicted_entries_total", "recipe", recipe, static_cast<double>(count));
  }
  out.Add("counter", "pith:kv_compressions_total",
          "Prompts compressed once they were whole, and answers that outgrew their bytes.",
          static_cast<double>(stats.compressed));
  out.Add("counter", "pith:kv_compression_seconds_total", "Seconds that this took, second readings included.",
          stats.compress_seconds);
  out.Add("counter", "pith:cached_tokens_total", "Prompt tokens taken from a prefix.",
          static_cast<double>(stats.cached_tokens));
  out.Add("counter", "pith:requests_total", "Requests taken.", static_cast<double>(stats.requests));
  out.Add("counter", "pith:requests_finished_total", "Of them, answered.", static_cast<double>(stats.finished));
  out.Add("counter", "pith:requests_failed_total", "Of them, failed.", static_cast<double>(stats.failed));
  out.Add("counter", "pith:requests_cancelled_total", "Of them, left by their client.",
          static_cast<double>(stats.cancelled));
  out.Add("counter", "pith:requests_refused_total", "Requests that found the queue full.",
          static_cast<double>(stats.refused));
  out.AddHistogram("pith:time_to_first_token_seconds", "From a request to its first token.", stats.first_token_seconds);
  out.AddHistogram("pith:inter_token_seconds", "Between tokens of one text.", stats.token_gap_seconds);
}

void AddStore(Exposition& out, const store::StoreStats& stats) {
  const auto by_tier = [&](const char* type, const char* name, const char* help, const auto& value) {
    out.Head(type, name, help);
    for (const store::Tier tier : {store::Tier::kRam, store::Tier::kSsd, store::Tier::kRemote}) {
      out.Labelled(name, "tier", store::TierName(tier),
                   static_cast<double>(value(stats.tiers[static_cast<size_t>(tier)])));
    }
  };
  const auto number = [](uint64_t value) { return static_cast<double>(value); };
  out.Add("counter", "pith_store_lookup_tokens_total", "Prompt tokens that were looked up.",
          number(stats.lookup_tokens));
  out.Add("counter", "pith_store_hit_tokens_total", "Of them, found and loaded.", number(stats.hit_tokens));
  out.Head("counter", "pith_store_requests_total", "Lookups by how they ended.");
  out.Labelled("pith_store_requests_total", "result", "hit", number(stats.lookups - stats.misses));
  out.Labelled("pith_store_requests_total", "result", "miss", number(stats.misses));
  out.Add("counter", "pith_store_too_slow_total", "Prefixes that computing beats.", number(stats.too_slow));
  out.Add("counter", "pith_store_ttft_saved_seconds_total", "Computing less loading, estimated.", stats.saved_seconds);
  by_tier("gauge", "pith_store_bytes", "Bytes of prefixes.", [](const store::TierStats& t) { return t.bytes; });
  by_tier("gauge", "pith_store_capacity_bytes", "The tier's limit.",
          [](const store::TierStats& t) { return t.capacity_bytes; });
  by_tier("gauge", "pith_store_pinned_bytes", "Of prefixes that stay for now (system prompts in use).",
          [](const store::TierStats& t) { return t.pinned_bytes; });
  by_tier("gauge", "pith_store_objects", "Prefixes.", [](const store::TierStats& t) { return t.objects; });
  by_tier("counter", "pith_store_tier_hits_total", "Prefixes loaded.",
          [](const store::TierStats& t) { return t.hits; });
  by_tier("counter", "pith_store_tier_hit_tokens_total", "Their tokens.",
          [](const store::TierStats& t) { return t.hit_tokens; });
  by_tier("counter", "pith_store_puts_total", "Prefixes stored.", [](const store::TierStats& t) { return t.puts; });
  by_tier("counter", "pith_store_evictions_total", "Prefixes that went for others.",
          [](const store::TierStats& t) { return t.evictions; });
  by_tier("counter", "pith_store_promotions_total", "Prefixes taken into memory from there.",
          [](const store::TierStats& t) { return t.promotions; });
  by_tier("gauge", "pith_store_read_bytes_per_second", "Speed of loading, a moving average.",
          [](const store::TierStats& t) { return t.bytes_per_second; });
  out.Add("gauge", "pith_store_file_bytes", "Bytes of the folder's files.", number(stats.ssd_file_bytes));
  out.Head("counter", "pith_store_errors_total", "Failures, each a miss, by kind.");
  for (const auto& [kind, count] : stats.errors) out.Labelled("pith_store_errors_total", "kind", kind, number(count));
  for (const store::Tier tier : {store::Tier::kRam, store::Tier::kSsd, store::Tier::kRemote}) {
    const store::TierStats& of = stats.tiers[static_cast<size_t>(tier)];
    for (const bool put : {false, true}) {
      const store::Latencies& from = put ? of.put_seconds : of.get_seconds;
      const std::string name = fmt::format("pith_store_{}_{}_seconds", store::TierName(tier), put ? "put" : "get");
      out.AddHistogram(name.c_str(), put ? "Storing a prefix." : "Loading a prefix.",
                       {.bounds = {from.kBounds.begin(), from.kBounds.end()},
                        .counts = {from.counts.begin(), from.counts.end()},
                        .sum = from.sum});
    }
  }
}

}  // namespace

void Metrics(Call& call) {
  const SchedulerStats stats = call.context.scheduler != nullptr ? call.context.scheduler->stats() : SchedulerStats();
  Exposition out;
  AddLlama(out, stats);
  AddOwn(out, stats);
  out.Add("gauge", "pith:responses_kept", "Responses that are kept.", static_cast<double>(call.responses->size()));
  out.Add("gauge", "pith:responses_bytes", "Their bytes, beside the budget.",
          static_cast<double>(call.responses->bytes()));
  if (stats.store) AddStore(out, *stats.store);
  call.exchange->Send({.status = 200, .body = out.text(), .type = "text/plain; version=0.0.4; charset=utf-8"});
}

}  // namespace pith::server
