// Products of a few rows with quantised weights, in bytes (kernels/byte_products.h).
//
// libllama multiplies one row of weights with one row of input at a time, and waits for all threads twice. Here weights
// are asked for ahead, unpacked once for several rows of input, and threads meet once.
#ifndef PITH_HOST_ROW_PRODUCT_H_
#define PITH_HOST_ROW_PRODUCT_H_

#include "ggml.h"
#include "host/part_queue.h"
#include "kernels/byte_products.h"

namespace pith {

// One node of a graph, output [rows, M] = input [rows, K] * weights [M, K]^T.
class RowProduct {
 public:
  // Whether the node is such a product, and faster this way: of at most kMostRows rows, weights of a format that the
  // kernels know, in main memory, that libllama has not packed again for kernels of its own.
  static bool Suits(const ggml_tensor* node);

  // With 32 rows this way takes 0.9 of BlockProduct's time, with 48 1.06 (AVX2, Q4_1).
  static constexpr int kMostRows = 40;

  // As BlockProduct::Run; `rounded` is the thread's own.
  void Run(const ggml_tensor* node, int num_threads, kernels::RoundedRows& rounded);

 private:
  PartQueue parts_;
};

}  // namespace pith

#endif  // PITH_HOST_ROW_PRODUCT_H_
