// Products with weights as nodes of a graph.
#ifndef PITH_HOST_PRODUCT_TEST_UTIL_H_
#define PITH_HOST_PRODUCT_TEST_UTIL_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "host/llama_util.h"

namespace pith {

// A product of random rows with random weights of a type, in memory as libllama has it.
class Product {
 public:
  Product(ggml_type type, int64_t width, int64_t num_outputs, int64_t num_rows)
      : ggml_(ggml_init({.mem_size = ggml_tensor_overhead() * 8, .mem_buffer = nullptr, .no_alloc = true})) {
    weights_ = ggml_new_tensor_2d(ggml_.get(), type, width, num_outputs);
    input_ = ggml_new_tensor_2d(ggml_.get(), GGML_TYPE_F32, width, num_rows);
    node_ = ggml_mul_mat(ggml_.get(), weights_, input_);
    backend_.reset(ggml_backend_cpu_init());
    buffer_.reset(ggml_backend_alloc_ctx_tensors(ggml_.get(), backend_.get()));
    std::mt19937 random(static_cast<uint32_t>(width + num_rows));
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(width * num_outputs));
    for (float& value : values) value = normal(random);
    const std::vector<float> importance(static_cast<size_t>(width), 1.0f);
    ggml_quantize_chunk(type, values.data(), weights_->data, 0, num_outputs, width, importance.data());
    for (int64_t i = 0; i < width * num_rows; ++i) static_cast<float*>(input_->data)[i] = normal(random);
    Spoil();
  }

  ggml_tensor* node() { return node_; }
  ggml_tensor* weights() { return weights_; }
  void Spoil() { std::fill_n(static_cast<float*>(node_->data), ggml_nelements(node_), 1e9f); }

  // Scratch: what each thread of Way needs.
  template <class Scratch, class Way>
  std::vector<float> Run(Way& way, int num_threads) {
    std::vector<std::thread> threads;
    for (int t = 0; t < num_threads; ++t) {
      threads.emplace_back([&] {
        Scratch scratch;
        way.Run(node_, num_threads, scratch);
      });
    }
    for (std::thread& thread : threads) thread.join();
    const auto* output = static_cast<const float*>(node_->data);
    return {output, output + ggml_nelements(node_)};
  }

  // The largest difference to a product in double precision, in units of the outputs' standard deviation.
  double Error(const std::vector<float>& output) const {
    const int64_t width = weights_->ne[0];
    std::vector<float> row(static_cast<size_t>(width));
    double worst = 0;
    for (int64_t m = 0; m < weights_->ne[1]; ++m) {
      ggml_get_type_traits(weights_->type)
          ->to_float(static_cast<const char*>(weights_->data) + static_cast<size_t>(m) * weights_->nb[1], row.data(),
                     width);
      for (int64_t n = 0; n < input_->ne[1]; ++n) {
        const float* in = static_cast<const float*>(input_->data) + n * width;
        double sum = 0;
        for (int64_t k = 0; k < width; ++k) sum += static_cast<double>(in[k]) * row[static_cast<size_t>(k)];
        worst = std::max(worst, std::abs(sum - output[static_cast<size_t>(n * weights_->ne[1] + m)]));
      }
    }
    return worst / std::sqrt(static_cast<double>(width));
  }

  // libllama's own product of these, in 8 bits.
  std::vector<float> Plain() {
    std::vector<std::byte> memory(ggml_graph_overhead() + 4096);
    GgmlContextPtr ggml(ggml_init({.mem_size = memory.size(), .mem_buffer = memory.data(), .no_alloc = true}));
    ggml_cgraph* graph = ggml_new_graph(ggml.get());
    ggml_build_forward_expand(graph, node_);
    EXPECT_EQ(ggml_backend_graph_compute(backend_.get(), graph), GGML_STATUS_SUCCESS);
    const auto* output = static_cast<const float*>(node_->data);
    return {output, output + ggml_nelements(node_)};
  }

 private:
  struct Deleter {
    void operator()(ggml_backend_t backend) const { ggml_backend_free(backend); }
    void operator()(ggml_backend_buffer_t buffer) const { ggml_backend_buffer_free(buffer); }
  };
  GgmlContextPtr ggml_;
  std::unique_ptr<ggml_backend, Deleter> backend_;
  std::unique_ptr<ggml_backend_buffer, Deleter> buffer_;
  ggml_tensor *weights_ = nullptr, *input_ = nullptr, *node_ = nullptr;
};

}  // namespace pith

#endif  // PITH_HOST_PRODUCT_TEST_UTIL_H_
