#include "host/output_projection.h"

#include <unistd.h>

#include <atomic>
#include <cstring>
#include <string>
#include <utility>

#include "base/parallel.h"
#include "host/llama_util.h"

namespace pith {
namespace {

// Rows of weights that are one task.
constexpr size_t kRowStretch = 64;

}  // namespace

void OutputProjections::Index(const ModelInfo& info) {
  for (const std::string& path : info.part_paths) {
    ggml_context* shapes = nullptr;
    const GgufContextPtr gguf(gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = &shapes}));
    if (gguf == nullptr) continue;
    const GgmlContextPtr owner(shapes);
    files_.emplace_back(std::fopen(path.c_str(), "rb"));
    if (files_.back() == nullptr) continue;
    for (int layer = 0; layer < info.num_layers; ++layer) {
      const std::string name = "blk." + std::to_string(layer) + ".attn_output.weight";
      const int64_t index = gguf_find_tensor(gguf.get(), name.c_str());
      const ggml_tensor* tensor = ggml_get_tensor(shapes, name.c_str());
      if (index < 0 || tensor == nullptr) continue;
      places_[layer] = {files_.back().get(),
                        gguf_get_data_offset(gguf.get()) + gguf_get_tensor_offset(gguf.get(), index),
                        ggml_nbytes(tensor),
                        static_cast<size_t>(ggml_nelements(tensor)),
                        static_cast<size_t>(ggml_nrows(tensor)),
                        static_cast<int>(tensor->type)};
    }
  }
  indexed_ = true;
}

bool OutputProjections::Read(const Place& place, std::vector<float>& values) {
  const auto type = static_cast<ggml_type>(place.type);
  const ggml_to_float_t convert = ggml_get_type_traits(type)->to_float;
  if (convert == nullptr && type != GGML_TYPE_F32) return false;
  raw_.resize(place.num_bytes);
  values.resize(place.num_values);
  const size_t row_bytes = place.num_bytes / place.num_rows, row_values = place.num_values / place.num_rows;
  std::atomic<bool> read = true;
  ParallelStretches(place.num_rows, kRowStretch, [&](size_t begin, size_t end) {
    std::byte* const raw = raw_.data() + begin * row_bytes;
    const size_t size = (end - begin) * row_bytes;
    if (pread(fileno(place.file), raw, size, static_cast<off_t>(place.offset + begin * row_bytes)) !=
        static_cast<ssize_t>(size)) {
      read.store(false, std::memory_order_relaxed);
    } else if (type == GGML_TYPE_F32) {
      std::memcpy(values.data() + begin * row_values, raw, size);
    } else {
      convert(raw, values.data() + begin * row_values, static_cast<int64_t>((end - begin) * row_values));
    }
  });
  return read.load(std::memory_order_relaxed);
}

std::shared_ptr<const std::vector<float>> OutputProjections::Get(const ModelInfo& info, int layer) {
  const std::lock_guard lock(mutex_);
  if (current_ != nullptr && layer_ == layer) return current_;
  if (!indexed_) Index(info);
  std::swap(current_, spare_);
  // Somebody may still read what the other layer gave him.
  if (current_ == nullptr || current_.use_count() > 1) current_ = std::make_shared<std::vector<float>>();
  const auto place = places_.find(layer);
  if (place == places_.end() || !Read(place->second, *current_)) current_->clear();
  layer_ = layer;
  return current_;
}

}  // namespace pith
