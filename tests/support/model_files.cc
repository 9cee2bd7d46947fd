#include "tests/support/model_files.h"

#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <random>
#include <string_view>

#include "ggml.h"
#include "gguf.h"

namespace pith::testing {
namespace {

struct Deleter {
  void operator()(ggml_context* context) const { ggml_free(context); }
  void operator()(gguf_context* context) const { gguf_free(context); }
};
template <typename T>
using Owned = std::unique_ptr<T, Deleter>;

struct Model {
  Owned<ggml_context> tensors;
  Owned<gguf_context> gguf;
};

Result<Model> Read(const std::string& path) {
  Model model;
  ggml_context* tensors = nullptr;
  model.gguf.reset(gguf_init_from_file(path.c_str(), {.no_alloc = false, .ctx = &tensors}));
  model.tensors.reset(tensors);
  if (model.gguf == nullptr) return IoError("cannot read " + path);
  return model;
}

}  // namespace

Result<std::vector<std::string>> SplitModel(const std::string& model_path, const std::string& prefix, int num_parts) {
  PITH_ASSIGN_OR_RETURN(const Model model, Read(model_path));
  const auto num_tensors = static_cast<int>(gguf_get_n_tensors(model.gguf.get()));
  std::vector<std::string> paths;
  for (int part = 0; part < num_parts; ++part) {
    const Owned<gguf_context> gguf(gguf_init_empty());
    if (part == 0) gguf_set_kv(gguf.get(), model.gguf.get());
    gguf_set_val_u16(gguf.get(), "split.no", static_cast<uint16_t>(part));
    gguf_set_val_u16(gguf.get(), "split.count", static_cast<uint16_t>(num_parts));
    gguf_set_val_i32(gguf.get(), "split.tensors.count", num_tensors);
    for (int i = num_tensors * part / num_parts; i < num_tensors * (part + 1) / num_parts; ++i) {
      gguf_add_tensor(gguf.get(), ggml_get_tensor(model.tensors.get(), gguf_get_tensor_name(model.gguf.get(), i)));
    }
    paths.push_back(fmt::format("{}-{:05}-of-{:05}.gguf", prefix, part + 1, num_parts));
    if (!gguf_write_to_file(gguf.get(), paths.back().c_str(), false)) return IoError("cannot write " + paths.back());
  }
  return paths;
}

Status WriteVocabulary(const std::string& model_path, const std::string& path) {
  PITH_ASSIGN_OR_RETURN(const Model model, Read(model_path));
  const Owned<gguf_context> gguf(gguf_init_empty());
  gguf_set_kv(gguf.get(), model.gguf.get());
  if (!gguf_write_to_file(gguf.get(), path.c_str(), true)) return IoError("cannot write " + path);
  return {};
}

Status MakeRandomLora(const std::string& model_path, const std::string& path, int rank, uint32_t seed) {
  PITH_ASSIGN_OR_RETURN(const Model model, Read(model_path));
  const Owned<gguf_context> gguf(gguf_init_empty());
  gguf_set_val_str(gguf.get(), "general.type", "adapter");
  gguf_set_val_str(gguf.get(), "general.architecture",
                   gguf_get_val_str(model.gguf.get(), gguf_find_key(model.gguf.get(), "general.architecture")));
  gguf_set_val_str(gguf.get(), "adapter.type", "lora");
  gguf_set_val_f32(gguf.get(), "adapter.lora.alpha", static_cast<float>(rank));
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  const Owned<ggml_context> ggml(ggml_init({.mem_size = size_t{64} << 20, .mem_buffer = nullptr, .no_alloc = false}));
  const auto add = [&](const std::string& name, int64_t columns, int64_t rows) {
    ggml_tensor* tensor = ggml_new_tensor_2d(ggml.get(), GGML_TYPE_F32, columns, rows);
    ggml_set_name(tensor, name.c_str());
    const float size = 1.0f / std::sqrt(static_cast<float>(columns));
    for (int64_t i = 0; i < columns * rows; ++i) static_cast<float*>(tensor->data)[i] = size * normal(random);
    gguf_add_tensor(gguf.get(), tensor);
  };
  for (int64_t i = 0; i < gguf_get_n_tensors(model.gguf.get()); ++i) {
    const std::string name = gguf_get_tensor_name(model.gguf.get(), i);
    if (!name.ends_with("attn_q.weight") && !name.ends_with("attn_output.weight")) continue;
    const ggml_tensor* weight = ggml_get_tensor(model.tensors.get(), name.c_str());
    add(name + ".lora_a", weight->ne[0], rank);
    add(name + ".lora_b", rank, weight->ne[1]);
  }
  if (gguf_get_n_tensors(gguf.get()) == 0) return Unsupported("the model has no projections of those names");
  if (!gguf_write_to_file(gguf.get(), path.c_str(), false)) return IoError("cannot write " + path);
  return {};
}

}  // namespace pith::testing
