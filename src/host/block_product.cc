#include "host/block_product.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "host/weight_matrix.h"

#ifdef PITH_ONEDNN
#include <dnnl.h>

// <omp.h> belongs to a compiler; the runtime that is linked is always GCC's, which ggml was built for.
extern "C" {
int omp_get_max_threads();
void omp_set_num_threads(int num_threads);
}
#endif

namespace pith {
namespace {

// Where unpacking is paid for: with 16 rows both ways take the same time, with 32 this one takes 0.7 of it (AVX2,
// Q4_1).
constexpr int64_t kMinRows = 32;
// Rows of weights go through oneDNN's kernels in steps of 16, 24 or 48.
constexpr int64_t kRowStep = 48;
// 256 KiB: with the block's rows that pass by it, within a second-level cache.
constexpr int64_t kUnpackedFloats = 64 * 1024;
constexpr int64_t kMinParts = 12;

// Rows of weights to unpack at once, by the shape alone so that results are.
int64_t RowsPerPart(int64_t num_weight_rows, int64_t width) {
  const int64_t steps = std::min(kUnpackedFloats / width, num_weight_rows / kMinParts) / kRowStep;
  return kRowStep * std::max<int64_t>(steps, 1);
}

#ifdef PITH_ONEDNN
// oneDNN would start threads of its own wherever the team has only one.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

// While oneDNN's gemm runs, a signal's frame can be written into what others own on the heap: its kernels for AVX and
// AVX-512 may have their stack in a buffer there.
class SignalsWait {
 public:
  SignalsWait() {
    sigset_t all;
    ::sigfillset(&all);
    for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) ::sigdelset(&all, own);
    ::pthread_sigmask(SIG_BLOCK, &all, &before_);
  }
  ~SignalsWait() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsWait(const SignalsWait&) = delete;
  SignalsWait& operator=(const SignalsWait&) = delete;

 private:
  sigset_t before_;
};

// output [rows, M] = input [rows, K] * weights [M, K]^T; strides in floats.
void Multiply(int64_t rows, int64_t m, int64_t k, const float* input, int64_t input_stride, const float* weights,
              float* output, int64_t output_stride) {
  const SignalsWait signals_wait;
  const dnnl_status_t status =
      dnnl_sgemm('N', 'T', rows, m, k, 1.0f, input, input_stride, weights, k, 0.0f, output, output_stride);
  PITH_CHECK(status == dnnl_success);
}
#else
struct OneThread {};
// Never reached, since nothing suits.
void Multiply(int64_t, int64_t, int64_t, const float*, int64_t, const float*, float*, int64_t) { PITH_CHECK(false); }
#endif

}  // namespace

bool BlockProduct::IsBuilt() {
#ifdef PITH_ONEDNN
  return true;
#else
  return false;
#endif
}

bool BlockProduct::Suits(const ggml_tensor* node) {
  return IsBuilt() && IsPlainProduct(node) && node->src[1]->ne[1] >= kMinRows &&
         ggml_get_type_traits(node->src[0]->type)->to_float != nullptr;
}

void BlockProduct::Run(const ggml_tensor* node, int num_threads, std::vector<float>& unpacked) {
  const ggml_tensor *weights = node->src[0], *input = node->src[1];
  const int64_t width = weights->ne[0], num_weight_rows = weights->ne[1];
  const int64_t part_rows = RowsPerPart(num_weight_rows, width);
  const int64_t num_parts = (num_weight_rows + part_rows - 1) / part_rows;
  const auto to_float = ggml_get_type_traits(weights->type)->to_float;
  if (unpacked.size() < static_cast<size_t>(part_rows * width)) unpacked.resize(static_cast<size_t>(part_rows * width));
  [[maybe_unused]] const OneThread one_thread;
  for (int64_t part; (part = parts_.Take()) < num_parts;) {
    const int64_t begin = part * part_rows, count = std::min(part_rows, num_weight_rows - begin);
    for (int64_t row = 0; row < count; ++row) {
      to_float(static_cast<const std::byte*>(weights->data) + static_cast<size_t>(begin + row) * weights->nb[1],
               unpacked.data() + row * width, width);
    }
    Multiply(input->ne[1], count, width, static_cast<const float*>(input->data),
             static_cast<int64_t>(input->nb[1] / sizeof(float)), unpacked.data(),
             static_cast<float*>(node->data) + begin, static_cast<int64_t>(node->nb[1] / sizeof(float)));
  }
  parts_.Leave(num_threads);
}

}  // namespace pith
