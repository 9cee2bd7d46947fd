// Attention of 512 tokens of a prompt at a context, dense and with prefill=criti, in the default model's
// shape (9 query heads, 3 kv heads of 64), one layer, two threads:
//
//   dense/N, criti/N   milliseconds with N earlier entries
//   prompt/N           milliseconds of a whole prompt of N tokens, one layer; criti=1 leaves its end dense
#include <benchmark/benchmark.h>

#include <chrono>
#include <memory>
#include <vector>

#include "engine/prefill_pruner.h"
#include "kernels/attention_test_util.h"

namespace pith {
namespace {

constexpr int kRows = 512, kThreads = 2;

// Attention of the `kRows` queries that end at `context` + kRows.
class Block {
 public:
  explicit Block(int context)
      : test_({.num_queries = kRows, .num_kv_heads = 3, .group = 3, .key_dim = 64, .value_dim = 64,
               .head_entries = std::vector<int>(3, context + kRows)}, 1),
        pruner_(CritiOptions{}),
        scratch_(kernels::AttentionScratchBytes(test_.task, kThreads)) {
    test_.task.log_sum_exp = nullptr;
  }

  void Run(bool pruned) {
    kernels::TestTask::OnTeam(kThreads, [&](const Team& team) {
      if (pruned) {
        pruner_.Run(test_.task, {.num_sparse_rows = kRows, .layer = 1}, team);
      } else {
        kernels::RunAttention(test_.task, scratch_.get(), team);
      }
    });
  }

 private:
  kernels::TestTask test_;
  PrefillPruner pruner_;
  kernels::PoisonedBytes scratch_;
};

void Attention(benchmark::State& state) {
  Block block(static_cast<int>(state.range(0)));
  for (auto _ : state) block.Run(state.range(1) != 0);
}
BENCHMARK(Attention)
    ->ArgNames({"context", "criti"})
    ->ArgsProduct({{4096, 8192, 16384, 32768}, {0, 1}})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

// Blocks in the middle of each eighth of the prompt stand for the others.
void Prompt(benchmark::State& state) {
  const int n = static_cast<int>(state.range(0));
  const bool pruned = state.range(1) != 0;
  std::vector<std::unique_ptr<Block>> blocks;
  for (int i = 0; i < 8; ++i) blocks.push_back(std::make_unique<Block>((2 * i + 1) * n / 16 / 32 * 32));
  Block last(n - kRows);
  const double each = n / kRows / 8.0;
  for (auto _ : state) {
    const auto seconds = [&](Block& block, bool prune) {
      const auto start = std::chrono::steady_clock::now();
      block.Run(prune);
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    double total = 0;
    for (const auto& block : blocks) total += each * seconds(*block, pruned);
    if (pruned) total += seconds(last, false) - seconds(last, true);
    state.SetIterationTime(total);
  }
}
BENCHMARK(Prompt)
    ->ArgNames({"tokens", "criti"})
    ->ArgsProduct({{8192, 16384, 32768}, {0, 1}})
    ->Unit(benchmark::kMillisecond)
    ->UseManualTime()
    ->Iterations(3);

}  // namespace
}  // namespace pith
