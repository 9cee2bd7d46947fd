// Attention kernels beside what the machine can do at most.
//
//   ceiling/read    bytes/s of reading memory, all threads
//   ceiling/fma     FLOP/s of independent float32 FMAs, all threads
//   decode/...      bytes/s of keys and values, one query
//   sequences/...   the same of several sequences, one call for all or one each
//   features/...    FLOP/s of maps of queries (act=less), one thread, gelu not counted
//   prefill/...     FLOP/s, two per multiplication of the visible part of Q K^T and P V
//
// Inputs change from one iteration to the next: out-of-cache cases walk over several caches.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/huge_pages.h"
#include "kernels/attention.h"
#include "kernels/coded_pages.h"
#include "kernels/feature_maps.h"
#include "kernels/group_codec.h"
#include "kernels/key_channels.h"

namespace pith::kernels {
namespace {

// Threads that run one function together, spinning between calls as a model's workers do.
class Pool {
 public:
  explicit Pool(int num_threads) : num_threads_(num_threads) {
    for (int i = 1; i < num_threads; ++i) {
      threads_.emplace_back([this, i] {
        for (;;) {
          start_.Wait(num_threads_);
          if (stop_) return;
          Call(i);
          end_.Wait(num_threads_);
        }
      });
    }
  }
  ~Pool() {
    stop_ = true;
    start_.Wait(num_threads_);
    for (std::thread& thread : threads_) thread.join();
  }

  template <class Function>
  void Run(const Function& function) {
    context_ = &function;
    call_ = [](const void* context, const Team& team) { (*static_cast<const Function*>(context))(team); };
    start_.Wait(num_threads_);
    Call(0);
    end_.Wait(num_threads_);
  }
  int num_threads() const { return num_threads_; }

 private:
  void Call(int ith) { call_(context_, Team{ith, num_threads_, &inner_}); }

  const int num_threads_;
  Barrier start_, end_, inner_;
  bool stop_ = false;
  const void* context_ = nullptr;
  void (*call_)(const void*, const Team&) = nullptr;
  std::vector<std::thread> threads_;
};

// One layer's cache: every kv head with `num_entries` entries of pseudo-random rows.
class Cache {
 public:
  // key_dim: channels that keys hold of `dim`, spread evenly.
  Cache(PageFormat format, int num_heads, int dim, int key_dim, int num_entries)
      : layout_(PageLayout::Make(format, key_dim, dim, 0)),
        num_pages_((num_entries + kPageEntries - 1) / kPageEntries) {
    for (int i = 0; i < key_dim; ++i) channels_.push_back(static_cast<uint16_t>(i * dim / key_dim));
    memory_ = AllocateHuge(layout_.page_bytes * static_cast<size_t>(num_heads * num_pages_));
    std::vector<float> key(static_cast<size_t>(key_dim)), value(static_cast<size_t>(dim));
    uint32_t state = 1;
    std::byte* at = memory_.get();
    pages_.resize(static_cast<size_t>(num_heads));
    for (auto& pages : pages_) {
      for (int p = 0; p < num_pages_; ++p, at += layout_.page_bytes) {
        pages.push_back(at);
        if (p > 0) {  // one page of random rows is enough
          std::memcpy(at, pages[0], layout_.page_bytes);
        } else {
          const PageLayout plain = PageLayout::Make(KvFormat::kF16, key_dim, dim, 0);
          const HugeMemory staging = AllocateHuge(plain.page_bytes);
          const bool whole = format.whole_pages();
          for (int slot = 0; slot < kPageEntries; ++slot) {
            for (auto* row : {&key, &value}) {
              for (float& x : *row) x = static_cast<float>((state = state * 1664525 + 1013904223) >> 8) / (1 << 23) - 1;
            }
            WriteEntryF32(whole ? plain : layout_, whole ? staging.get() : at, slot, key.data(), value.data(), 0);
          }
          if (whole) ConvertPage(plain, staging.get(), layout_, at);
        }
        for (int slot = 0; slot < kPageEntries; ++slot) layout_.positions(at)[slot] = p * kPageEntries + slot;
      }
      segments_.push_back({&layout_, pages.data(), num_entries});
    }
    for (const Segment& segment : segments_) {
      heads_.push_back({std::span<const Segment>(&segment, 1), channels_.data()});
    }
  }
  const HeadEntries* heads() const { return heads_.data(); }
  size_t bytes() const {
    const auto entries = static_cast<size_t>(segments_[0].num_entries) * segments_.size();
    if (layout_.format.coded()) {
      const size_t coded = kernels::CodedPageBytes(layout_, pages_[0][0]) - layout_.key_offset;
      return coded * entries / kPageEntries;
    }
    const size_t per_page = layout_.key_bytes() + layout_.value_row_bytes() * kPageEntries + layout_.key_scale_bytes() +
                            layout_.value_scale_bytes();
    return per_page * entries / kPageEntries;
  }

 private:
  PageLayout layout_;
  int num_pages_;
  HugeMemory memory_;
  std::vector<std::vector<const std::byte*>> pages_;
  std::vector<Segment> segments_;
  std::vector<uint16_t> channels_;
  std::vector<HeadEntries> heads_;
};

struct BenchShape {
  int num_kv_heads, group, dim, num_queries, num_entries, threads;
  KvFormat format;
  double pruned = 0;  // share of the channels of keys that are not stored
};

class Bench {
 public:
  Bench(const BenchShape& shape, int num_caches) : shape_(shape), pool_(shape.threads) {
    for (int i = 0; i < num_caches; ++i) {
      caches_.push_back(std::make_unique<Cache>(shape.format, shape.num_kv_heads, shape.dim,
                                                ChannelsLeft(shape.dim, shape.pruned), shape.num_entries));
    }
    const int num_heads = shape.num_kv_heads * shape.group;
    task_.num_queries = shape.num_queries;
    task_.num_heads = num_heads;
    task_.num_kv_heads = shape.num_kv_heads;
    task_.key_dim = task_.value_dim = shape.dim;
    task_.query_head_stride = task_.output_head_stride = static_cast<size_t>(shape.dim);
    task_.query_token_stride = task_.output_token_stride = static_cast<size_t>(num_heads * shape.dim);
    queries_.assign(task_.query_token_stride * static_cast<size_t>(shape.num_queries), 0.3f);
    output_.resize(queries_.size());
    for (int t = 0; t < shape.num_queries; ++t) positions_.push_back(shape.num_entries - shape.num_queries + t);
    task_.queries = queries_.data();
    task_.output = output_.data();
    task_.query_positions = positions_.data();
    task_.scale = 0.125f;
    task_.heads = caches_.front()->heads();
    scratch_ = AllocateHuge(AttentionScratchBytes(task_, shape.threads));
  }

  void Attention() {
    Next();
    pool_.Run([&](const Team& team) { RunAttention(task_, scratch_.get(), team); });
    benchmark::ClobberMemory();
  }

  // One step of as many sequences as there are caches.
  void Sequences(bool together) {
    if (sequences_.empty()) {
      for (const auto& cache : caches_) {
        sequences_.push_back(task_);
        sequences_.back().heads = cache->heads();
        outputs_.emplace_back(output_.size());
        sequences_.back().output = outputs_.back().data();
      }
      scratch_ = AllocateHuge(AttentionScratchBytes(sequences_, shape_.threads));
    }
    pool_.Run([&](const Team& team) {
      if (together) return RunAttention(sequences_, scratch_.get(), team);
      for (const AttentionTask& task : sequences_) {
        RunAttention(task, scratch_.get(), team);
        team.Sync();
      }
    });
    benchmark::ClobberMemory();
  }

  void Probabilities() {
    Next();
    if (probabilities_.empty()) {
      probabilities_.resize(
          static_cast<size_t>(shape_.num_kv_heads * shape_.group * shape_.num_queries * shape_.num_entries));
      for (int h = 0; h < shape_.num_kv_heads; ++h) {
        rows_.push_back(probabilities_.data() +
                        static_cast<size_t>(h * shape_.group * shape_.num_queries * shape_.num_entries));
      }
    }
    pool_.Run([&](const Team& team) { RunProbabilities(task_, rows_.data(), team); });
    benchmark::ClobberMemory();
  }

  double bytes() const { return static_cast<double>(caches_[0]->bytes()); }
  // Of the visible part of Q K^T (and of P V when `values`).
  double flops(bool values) const {
    double visible = 0;
    for (const int32_t position : positions_) visible += position + 1;
    return visible * task_.num_heads * shape_.dim * 2 * (values ? 2 : 1);
  }

 private:
  void Next() { task_.heads = caches_[turn_++ % caches_.size()]->heads(); }

  BenchShape shape_;
  Pool pool_;
  std::vector<std::unique_ptr<Cache>> caches_;
  AttentionTask task_;
  std::vector<AttentionTask> sequences_;
  std::vector<std::vector<float>> outputs_;
  std::vector<float> queries_, output_, probabilities_;
  std::vector<float*> rows_;
  std::vector<int32_t> positions_;
  HugeMemory scratch_;
  size_t turn_ = 0;
};

constexpr size_t kOutOfCacheBytes = size_t{160} << 20;

void Decode(benchmark::State& state, const BenchShape& shape, bool out_of_cache) {
  const size_t one = static_cast<size_t>(shape.num_kv_heads * shape.num_entries * shape.dim) * 4;
  Bench bench(shape, out_of_cache ? static_cast<int>(kOutOfCacheBytes / one + 1) : 1);
  for (auto _ : state) bench.Attention();
  state.counters["bytes"] = benchmark::Counter(bench.bytes(), benchmark::Counter::kIsIterationInvariantRate);
}

void DecodeSequences(benchmark::State& state, const BenchShape& shape, int num_sequences, bool together) {
  Bench bench(shape, num_sequences);
  for (auto _ : state) bench.Sequences(together);
  state.counters["bytes"] =
      benchmark::Counter(bench.bytes() * num_sequences, benchmark::Counter::kIsIterationInvariantRate);
}

void Prefill(benchmark::State& state, const BenchShape& shape) {
  Bench bench(shape, 1);
  for (auto _ : state) bench.Attention();
  state.counters["flop"] = benchmark::Counter(bench.flops(true), benchmark::Counter::kIsIterationInvariantRate);
}

void Probability(benchmark::State& state, const BenchShape& shape) {
  Bench bench(shape, 1);
  for (auto _ : state) bench.Probabilities();
  state.counters["flop"] = benchmark::Counter(bench.flops(false), benchmark::Counter::kIsIterationInvariantRate);
}

// Maps of 9 heads, as decoding (one row of each) and reading a block take turns at them.
void Features(benchmark::State& state, int dim, int hidden, int rank, size_t rows) {
  constexpr size_t kHeads = 9;
  const auto d = static_cast<size_t>(dim), m = static_cast<size_t>(hidden), r = static_cast<size_t>(rank);
  std::vector<float> w1(kHeads * d * m, 0.01F), w2(kHeads * m * r, 0.02F), queries(rows * d, 0.5F), features(rows * r);
  for (auto _ : state) {
    for (size_t h = 0; h < kHeads; ++h) {
      MapFeatures(
          {.w1 = w1.data() + h * d * m, .w2 = w2.data() + h * m * r, .dim = dim, .hidden = hidden, .rank = rank},
          queries.data(), d, rows, features.data(), r);
      benchmark::DoNotOptimize(features.data());
    }
  }
  state.counters["flop"] = benchmark::Counter(static_cast<double>(2 * kHeads * rows * (d * m + m * r)),
                                              benchmark::Counter::kIsIterationInvariantRate);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) float ReadAll(const std::byte* at, size_t bytes) {
  __m256 sums[8] = {};
  for (size_t i = 0; i + 256 <= bytes; i += 256) {
    for (size_t k = 0; k < 8; ++k) {
      sums[k] = _mm256_or_ps(sums[k], _mm256_load_ps(reinterpret_cast<const float*>(at + i + 32 * k)));
    }
  }
  float result = 0;
  for (const __m256& sum : sums) result += sum[0];
  return result;
}

constexpr int kFmaRounds = 100000;
constexpr double kFmaFlops = double{kFmaRounds} * 10 * 8 * 2;

__attribute__((target("avx2,fma"))) float MultiplyAdd() {
  __m256 sums[10];
  for (auto& sum : sums) sum = _mm256_set1_ps(1.0f);
  const __m256 factor = _mm256_set1_ps(0.999f);
  for (int i = 0; i < kFmaRounds; ++i) {
#pragma GCC unroll 10
    for (int k = 0; k < 10; ++k) sums[k] = _mm256_fmadd_ps(sums[k], factor, factor);
  }
  float result = 0;
  for (const __m256& sum : sums) result += sum[0];
  return result;
}

constexpr double kFma512Flops = double{kFmaRounds} * 10 * 16 * 2;
__attribute__((target("avx512f"))) float MultiplyAdd512() {
  __m512 sums[10];
  for (auto& sum : sums) sum = _mm512_set1_ps(1.0f);
  const __m512 factor = _mm512_set1_ps(0.999f);
  for (int i = 0; i < kFmaRounds; ++i) {
#pragma GCC unroll 10
    for (int k = 0; k < 10; ++k) sums[k] = _mm512_fmadd_ps(sums[k], factor, factor);
  }
  float result = 0;
  for (const __m512& sum : sums) result += sum[0];
  return result;
}

void ReadCeiling(benchmark::State& state, int threads) {
  Pool pool(threads);
  const HugeMemory memory = AllocateHuge(kOutOfCacheBytes);
  std::memset(memory.get(), 1, kOutOfCacheBytes);
  for (auto _ : state) {
    pool.Run([&](const Team& team) {
      const size_t part = kOutOfCacheBytes / static_cast<size_t>(team.nth);
      benchmark::DoNotOptimize(ReadAll(memory.get() + part * static_cast<size_t>(team.ith), part));
    });
  }
  state.counters["bytes"] =
      benchmark::Counter(static_cast<double>(kOutOfCacheBytes), benchmark::Counter::kIsIterationInvariantRate);
}

void FmaCeiling(benchmark::State& state, int threads, bool wide) {
  Pool pool(threads);
  for (auto _ : state) {
    pool.Run([&](const Team&) { benchmark::DoNotOptimize(wide ? MultiplyAdd512() : MultiplyAdd()); });
  }
  state.counters["flop"] =
      benchmark::Counter((wide ? kFma512Flops : kFmaFlops) * threads, benchmark::Counter::kIsIterationInvariantRate);
}

void RegisterCeilings(int threads) {
  const std::string suffix = "/threads:" + std::to_string(threads);
  if (!__builtin_cpu_supports("avx2")) return;
  benchmark::RegisterBenchmark(("ceiling/read" + suffix).c_str(), ReadCeiling, threads)->UseRealTime();
  benchmark::RegisterBenchmark(("ceiling/fma" + suffix).c_str(), FmaCeiling, threads, false)->UseRealTime();
  if (!__builtin_cpu_supports("avx512f")) return;
  benchmark::RegisterBenchmark(("ceiling/fma512" + suffix).c_str(), FmaCeiling, threads, true)->UseRealTime();
}
#else
void RegisterCeilings(int) {}
#endif

std::string NameOf(const char* kind, const BenchShape& shape) {
  return std::string(kind) + "/" + std::string(KvFormatName(shape.format)) +
         "/kv:" + std::to_string(shape.num_kv_heads) + "/G:" + std::to_string(shape.group) +
         "/D:" + std::to_string(shape.dim) + "/T:" + std::to_string(shape.num_queries) +
         "/n:" + std::to_string(shape.num_entries) + "/threads:" + std::to_string(shape.threads);
}

void RegisterAll(int threads) {
  RegisterCeilings(threads);
  std::vector<KvFormat> formats(kKvFormats.begin(), kKvFormats.end());
  formats.push_back(CodedFormat(16));
  for (const KvFormat format : formats) {
    for (const auto& [kv, group, dim] : {std::array{3, 3, 64}, {8, 4, 128}, {2, 8, 128}, {8, 1, 64}}) {
      BenchShape shape = {kv, group, dim, 1, 8192, threads, format};
      benchmark::RegisterBenchmark(NameOf("decode_memory", shape).c_str(), Decode, shape, true)->UseRealTime();
      shape.pruned = 0.4;
      if (!IsCoded(format)) {
        benchmark::RegisterBenchmark(NameOf("decode_pruned", shape).c_str(), Decode, shape, true)->UseRealTime();
      }
      shape.pruned = 0;
      shape.num_entries = 512;
      benchmark::RegisterBenchmark(NameOf("decode_memory", shape).c_str(), Decode, shape, true)->UseRealTime();
      shape.num_entries = 1024;
      benchmark::RegisterBenchmark(NameOf("decode_cached", shape).c_str(), Decode, shape, false)->UseRealTime();
      shape.num_entries = 400;
      for (const bool together : {false, true}) {
        const std::string name = NameOf("sequences", shape) + "/of:16/" + (together ? "together" : "each");
        benchmark::RegisterBenchmark(name.c_str(), DecodeSequences, shape, 16, together)->UseRealTime();
      }
      shape.num_queries = 512;
      shape.num_entries = 4096;
      benchmark::RegisterBenchmark(NameOf("prefill", shape).c_str(), Prefill, shape)->UseRealTime();
    }
    for (const int num_queries : {1, 32}) {
      const BenchShape shape = {3, 3, 64, num_queries, 4096, threads, format};
      benchmark::RegisterBenchmark(NameOf("probabilities", shape).c_str(), Probability, shape)->UseRealTime();
    }
  }
}

const bool registered = [] {
  benchmark::AddCustomContext("simd_target", TargetName());
  for (const int threads : {1, 2}) RegisterAll(threads);
  for (const int dim : {64, 128}) {
    for (const size_t rows : {size_t{1}, size_t{32}}) {
      const std::string name = "features/dim:" + std::to_string(dim) + "/hidden:64/rank:8/rows:" + std::to_string(rows);
      benchmark::RegisterBenchmark(name.c_str(), Features, dim, 64, 8, rows);
    }
  }
  return true;
}();

}  // namespace
}  // namespace pith::kernels
