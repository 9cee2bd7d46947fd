// Attention output projections, read from the GGUF one layer at a time: all of them in float32 would be
// larger than many a KV budget.
#ifndef PITH_HOST_OUTPUT_PROJECTION_H_
#define PITH_HOST_OUTPUT_PROJECTION_H_

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "host/model.h"

namespace pith {

class OutputProjections {
 public:
  // [hidden, heads * Dv] float32 of one layer; empty if the file has no such tensor. The weights stay as long as the
  // caller holds them. Reads and dequantises again where another layer was asked for in between. Thread-safe, but
  // not for tasks of a loop (base/parallel.h), which it shares itself.
  std::shared_ptr<const std::vector<float>> Get(const ModelInfo& info, int layer);

 private:
  struct Place {
    std::FILE* file = nullptr;
    uint64_t offset = 0;
    size_t num_bytes = 0, num_values = 0, num_rows = 0;
    int type = 0;  // ggml_type
  };
  struct FileDeleter {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  void Index(const ModelInfo& info);
  bool Read(const Place& place, std::vector<float>& values);

  std::mutex mutex_;
  bool indexed_ = false;
  std::vector<std::unique_ptr<std::FILE, FileDeleter>> files_;
  std::map<int, Place> places_;  // of each layer that has one
  std::vector<std::byte> raw_;
  int layer_ = -1;  // whose weights current_ holds
  std::shared_ptr<std::vector<float>> current_, spare_;
};

}  // namespace pith

#endif  // PITH_HOST_OUTPUT_PROJECTION_H_
