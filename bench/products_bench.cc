// Products of a few rows with quantised weights: bytes/s of weights, beside ceiling/read of attention_bench.cc, and
// multiply-adds/s. Threads round their input themselves, as round/rows:N shows (values/s).
//
//   products/FORMAT/in_cache/rows:N     one small matrix again and again
//   products/FORMAT/in_memory/rows:N    64 MiB of weights, one thread
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "base/huge_pages.h"
#include "kernels/byte_products.h"

namespace pith::kernels {
namespace {

constexpr int kWidth = 1536, kRows = 64;

void Run(benchmark::State& state, WeightFormat format, bool in_memory) {
  const auto num_inputs = static_cast<int>(state.range(0));
  const size_t row_bytes = static_cast<size_t>(kWidth / WeightsInBlock(format)) * WeightBlockBytes(format);
  const size_t matrix_bytes = row_bytes * kRows;
  const size_t copies = in_memory ? (size_t{64} << 20) / matrix_bytes : 1;
  // Any bytes will do, but for scales that are no numbers.
  const auto memory = AllocateHuge(matrix_bytes * copies);
  std::fill_n(memory.get(), matrix_bytes * copies, std::byte{0x11});
  std::vector<float> input(static_cast<size_t>(kWidth * num_inputs)), output(static_cast<size_t>(kRows * num_inputs));
  for (size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(i % 17) - 8;
  RoundedRows rounded;
  rounded.Round(input.data(), kWidth, num_inputs, kWidth);
  size_t copy = 0;
  for (auto _ : state) {
    const std::byte* at = memory.get() + copy * matrix_bytes;
    copy = (copy + 1) % copies;
    MultiplyRows({format, at, row_bytes, kRows}, rounded, output.data(), kRows, memory.get() + copy * matrix_bytes);
    benchmark::DoNotOptimize(output.data());
  }
  state.counters["bytes"] = benchmark::Counter(
      static_cast<double>(matrix_bytes) * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
  state.counters["mac"] = benchmark::Counter(static_cast<double>(kWidth) * kRows * num_inputs,
                                             benchmark::Counter::kIsIterationInvariantRate);
}

void Round(benchmark::State& state) {
  const auto num_inputs = static_cast<int>(state.range(0));
  std::vector<float> input(static_cast<size_t>(kWidth * num_inputs));
  for (size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(i % 17) - 8;
  RoundedRows rounded;
  for (auto _ : state) {
    rounded.Round(input.data(), kWidth, num_inputs, kWidth);
    benchmark::DoNotOptimize(rounded.codes(0));
  }
  state.counters["values"] =
      benchmark::Counter(static_cast<double>(input.size()), benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(Round)->Name("round")->ArgName("rows")->Arg(1)->Arg(16);

const bool registered = [] {
  const std::pair<const char*, WeightFormat> formats[] = {{"q4_0", WeightFormat::kQ4_0}, {"q4_1", WeightFormat::kQ4_1},
                                                          {"q5_0", WeightFormat::kQ5_0}, {"q5_1", WeightFormat::kQ5_1},
                                                          {"q8_0", WeightFormat::kQ8_0}, {"q6_K", WeightFormat::kQ6_K}};
  for (const auto& [name, format] : formats) {
    for (const bool in_memory : {false, true}) {
      const std::string title = std::string("products/") + name + (in_memory ? "/in_memory" : "/in_cache");
      benchmark::RegisterBenchmark(title.c_str(), Run, format, in_memory)
          ->ArgName("rows")
          ->Arg(1)
          ->Arg(2)
          ->Arg(4)
          ->Arg(8)
          ->Arg(16)
          ->Arg(32)
          ->Arg(40);
    }
  }
  return true;
}();

}  // namespace
}  // namespace pith::kernels
