// Products of a prompt's block with quantised weights, in float32 through oneDNN.
//
// libllama rounds the rows of a block to 8 bits and multiplies each with the weights as they lie in the file, as it has
// to for a single token. For many rows it is faster, and exact, to unpack a few rows of weights into float32, which
// stay in the processor's cache, and to let a BLAS multiply the whole block with them.
#ifndef PITH_HOST_BLOCK_PRODUCT_H_
#define PITH_HOST_BLOCK_PRODUCT_H_

#include <vector>

#include "ggml.h"
#include "host/part_queue.h"

namespace pith {

// One node of a graph, output [rows, M] = input [rows, K] * weights [M, K]^T.
class BlockProduct {
 public:
  // False: built without oneDNN, nothing suits.
  static bool IsBuilt();
  // Whether the node is such a product, and faster this way: at least 32 rows, weights in main memory that libllama has
  // not packed again for kernels of its own.
  static bool Suits(const ggml_tensor* node);

  // Called by each of num_threads threads, which share the work; `unpacked` is the thread's own. What is computed does
  // not depend on their number. Once all have returned, the node may be run again.
  void Run(const ggml_tensor* node, int num_threads, std::vector<float>& unpacked);

 private:
  PartQueue parts_;
};

}  // namespace pith

#endif  // PITH_HOST_BLOCK_PRODUCT_H_
