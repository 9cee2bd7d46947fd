// A decision of Cold-RL: sixteen candidates judged, and put into the order in which they go.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <vector>

#include "evict/learn/coldrl.h"
#include "evict/random.h"

namespace pith::evict {
namespace {

void BM_ColdRlDecision(benchmark::State& state) {
  const auto count = static_cast<size_t>(state.range(0));
  ColdRl network(*LoadModel("", ModelKind::kColdRl));
  Random random(1);
  // Others each time.
  std::vector<ColdRlCandidate> all(1024 + count);
  for (ColdRlCandidate& one : all) {
    one = {1000 * random.Uniform(), 1e6 * random.Uniform(), 20 * random.Uniform(), 500 * random.Uniform(), 1e4, 3e4};
  }
  uint32_t order[ColdRl::kMostCandidates];
  size_t at = 0;
  for (auto _ : state) {
    const ColdRlCandidate* const candidates = &all[at++ % 1024];
    OrderVictims(candidates, network.Margins(candidates, count), count, true, order);
    benchmark::DoNotOptimize(order[0]);
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations()));
}
BENCHMARK(BM_ColdRlDecision)->Arg(16)->Arg(32);

}  // namespace
}  // namespace pith::evict
