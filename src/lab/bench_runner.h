// pith bench, the measuring part: one engine on its way through the tokens.
#ifndef PITH_LAB_BENCH_RUNNER_H_
#define PITH_LAB_BENCH_RUNNER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "pith/types.h"

namespace pith {

// What one row of the table measures.
struct BenchConfig {
  std::string engine;  // "pith" or "libllama"
  std::string recipe = "full";
  double keep = 1;
  bool flash_attention = true;  // of libllama
  PageFormat format = {};
  int threads = 1;
  int batch = 1;  // sequences wanted at once
};

// What all rows of one context share.
struct BenchCase {
  int ctx = 0;
  int tail = 0;         // tokens of the prefill's end that are timed by themselves
  int num_decoded = 0;  // per sequence
  int block = 512;
  bool synthetic = false;  // the first ctx - tail tokens are not read: made-up entries stand for them
  size_t kv_budget = 0;    // for all sequences of an engine; 0: what they need
};

// ggml's name of a cache format; empty: libllama has none like it.
std::string PlainTypeOf(KvFormat format);

// Seconds of one phase, where they went, and what flowed.
struct PhaseTimes {
  double wall = 0;
  double attention = 0;  // pith only
  double policy = 0;
  double host = 0;           // inside libllama, attention and policy apart
  size_t tokens = 0;         // of all sequences
  double kv_bytes_read = 0;  // decode: bytes of keys and values that attention went through

  double tokens_per_second() const { return wall > 0 ? static_cast<double>(tokens) / wall : 0; }
};

class BenchRunner {
 public:
  // With a budget, as many sequences as fit, up to config.batch. kOutOfBudget: not even one does.
  static Result<std::unique_ptr<BenchRunner>> Create(const BenchConfig& config, const BenchCase& bench,
                                                     const std::shared_ptr<HostModel>& model);

  // Each appends to all sequences. Fill comes first, of empty sequences.
  Status Fill(int num_tokens);
  Status Prefill(std::span<const int32_t> tokens, bool tail);
  Status Decode(std::span<const int32_t> tokens);

  int num_sequences() const { return num_sequences_; }
  const PhaseTimes& prefill() const { return prefill_; }
  const PhaseTimes& tail() const { return tail_; }
  const PhaseTimes& decode() const { return decode_; }
  size_t kv_bytes() const { return engine_ ? engine_->stats().peak_bytes : kv_bytes_; }
  // What the process grew by because of this engine, at most.
  size_t added_bytes() const { return static_cast<size_t>(peak_added_ > 0 ? peak_added_ : 0); }

 private:
  BenchRunner() = default;
  Status CreatePlain(const BenchConfig& config, const BenchCase& bench, const HostModel& model);
  Status CreateEngine(const BenchConfig& config, const BenchCase& bench, const std::shared_ptr<HostModel>& model);
  Status DecodeOne(int32_t token);
  // Runs `step`, which takes `tokens` tokens, and books its time and memory.
  template <typename Step>
  Status Timed(size_t tokens, std::span<PhaseTimes* const> phases, const Step& step);

  std::unique_ptr<PlainContext> plain_;  // one of the two
  std::unique_ptr<Engine> engine_;
  std::vector<SequenceId> ids_;
  std::vector<int32_t> batch_tokens_;
  int num_sequences_ = 1;
  int ctx_ = 0;
  size_t kv_bytes_ = 0;
  double entry_bytes_ = 0;  // keys and values of one entry of one kv head
  int64_t added_ = 0;
  int64_t peak_added_ = 0;
  PhaseTimes prefill_, tail_, decode_;
};

}  // namespace pith

#endif  // PITH_LAB_BENCH_RUNNER_H_
