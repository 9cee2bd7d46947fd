#include "host/output_projection.h"

#include <cstring>
#include <string>
#include <utility>

#include "ggml.h"
#include "gguf.h"

namespace pith {
namespace {

struct GgufDeleter {
  void operator()(gguf_context* context) const { gguf_free(context); }
};

}  // namespace

void OutputProjections::Index(const ModelInfo& info) {
  for (const std::string& path : info.part_paths) {
    ggml_context* shapes = nullptr;
    const std::unique_ptr<gguf_context, GgufDeleter> gguf(
        gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = &shapes}));
    if (gguf == nullptr) continue;
    const std::unique_ptr<ggml_context, decltype(&ggml_free)> owner(shapes, ggml_free);
    files_.emplace_back(std::fopen(path.c_str(), "rb"));
    if (files_.back() == nullptr) continue;
    for (int layer = 0; layer < info.num_layers; ++layer) {
      const std::string name = "blk." + std::to_string(layer) + ".attn_output.weight";
      const int64_t index = gguf_find_tensor(gguf.get(), name.c_str());
      const ggml_tensor* tensor = ggml_get_tensor(shapes, name.c_str());
      if (index < 0 || tensor == nullptr) continue;
      places_[layer] = {files_.back().get(), gguf_get_data_offset(gguf.get()) + gguf_get_tensor_offset(gguf.get(), index),
                        ggml_nbytes(tensor), static_cast<size_t>(ggml_nelements(tensor)), static_cast<int>(tensor->type)};
    }
  }
  indexed_ = true;
}

bool OutputProjections::Read(const Place& place, std::vector<float>& values) {
  raw_.resize(place.num_bytes);
  if (fseeko(place.file, static_cast<off_t>(place.offset), SEEK_SET) != 0 ||
      std::fread(raw_.data(), 1, raw_.size(), place.file) != raw_.size()) {
    return false;
  }
  values.resize(place.num_values);
  if (place.type == GGML_TYPE_F32) {
    std::memcpy(values.data(), raw_.data(), raw_.size());
    return true;
  }
  const ggml_to_float_t convert = ggml_get_type_traits(static_cast<ggml_type>(place.type))->to_float;
  if (convert == nullptr) return false;
  convert(raw_.data(), values.data(), static_cast<int64_t>(place.num_values));
  return true;
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
