#include "host/output_projection.h"

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "ggml.h"
#include "gguf.h"

namespace pith {
namespace {

struct GgufDeleter {
  void operator()(gguf_context* context) const { gguf_free(context); }
};
struct FileDeleter {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

std::vector<float> ReadTensor(const std::string& path, const std::string& name) {
  ggml_context* shapes = nullptr;
  std::unique_ptr<gguf_context, GgufDeleter> gguf(gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = &shapes}));
  if (gguf == nullptr) return {};
  std::unique_ptr<ggml_context, decltype(&ggml_free)> owner(shapes, ggml_free);
  const int64_t index = gguf_find_tensor(gguf.get(), name.c_str());
  const ggml_tensor* tensor = ggml_get_tensor(shapes, name.c_str());
  if (index < 0 || tensor == nullptr) return {};
  std::unique_ptr<std::FILE, FileDeleter> file(std::fopen(path.c_str(), "rb"));
  std::vector<std::byte> raw(ggml_nbytes(tensor));
  const size_t offset = gguf_get_data_offset(gguf.get()) + gguf_get_tensor_offset(gguf.get(), index);
  if (file == nullptr || fseeko(file.get(), static_cast<off_t>(offset), SEEK_SET) != 0 ||
      std::fread(raw.data(), 1, raw.size(), file.get()) != raw.size()) {
    return {};
  }
  std::vector<float> values(static_cast<size_t>(ggml_nelements(tensor)));
  if (tensor->type == GGML_TYPE_F32) {
    std::memcpy(values.data(), raw.data(), raw.size());
  } else {
    const ggml_to_float_t convert = ggml_get_type_traits(tensor->type)->to_float;
    if (convert == nullptr) return {};
    convert(raw.data(), values.data(), ggml_nelements(tensor));
  }
  return values;
}

}  // namespace

std::span<const float> OutputProjections::Get(const ModelInfo& info, int layer) {
  const std::lock_guard lock(mutex_);
  auto found = weights_.find(layer);
  if (found == weights_.end()) {
    std::vector<float> weights;
    for (size_t part = 0; part < info.part_paths.size() && weights.empty(); ++part) {
      weights = ReadTensor(info.part_paths[part], "blk." + std::to_string(layer) + ".attn_output.weight");
    }
    found = weights_.emplace(layer, std::move(weights)).first;
  }
  return found->second;
}

}  // namespace pith
