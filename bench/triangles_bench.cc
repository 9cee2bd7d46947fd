// Covariances of queries (Expected Attention): outer products as queries come, quadratic forms when entries are scored.
//
//   outer_products/...   FLOP/s, two per number of the triangle and row
//   quadratic_forms/...  likewise
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "kernels/triangles.h"

namespace pith::kernels {
namespace {

std::vector<float> Rows(int count, int dim) {
  std::vector<float> rows(static_cast<size_t>(count * dim));
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i * 37 % 101) / 50 - 1;
  return rows;
}

void CountFlops(benchmark::State& state, int count, int dim) {
  const double flops = 2.0 * count * static_cast<double>(TriangleSize(dim));
  state.counters["flop"] = benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
}

void OuterProducts(benchmark::State& state, int count, int dim) {
  const std::vector<float> rows = Rows(count, dim);
  std::vector<float> sums(TriangleSize(dim));
  for (auto _ : state) {
    AddOuterProducts(rows.data(), count, dim, sums.data());
    benchmark::ClobberMemory();
  }
  CountFlops(state, count, dim);
}

void Forms(benchmark::State& state, int count, int dim) {
  const std::vector<float> rows = Rows(count, dim), triangle = Rows(1, static_cast<int>(TriangleSize(dim)));
  std::vector<float> out(static_cast<size_t>(count));
  for (auto _ : state) {
    QuadraticForms(rows.data(), count, dim, triangle.data(), out.data());
    benchmark::ClobberMemory();
  }
  CountFlops(state, count, dim);
}

const bool registered = [] {
  for (const int dim : {64, 128}) {
    const std::string suffix = "/D:" + std::to_string(dim);
    benchmark::RegisterBenchmark(("outer_products" + suffix + "/T:32").c_str(), OuterProducts, 32, dim);
    benchmark::RegisterBenchmark(("outer_products" + suffix + "/T:1").c_str(), OuterProducts, 1, dim);
    benchmark::RegisterBenchmark(("quadratic_forms" + suffix + "/n:4096").c_str(), Forms, 4096, dim);
  }
  return true;
}();

}  // namespace
}  // namespace pith::kernels
