#include "policy/act/less.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <string_view>
#include <utility>

#include "base/byte_io.h"
#include "base/gguf_file.h"
#include "policy/stage.h"

namespace pith {
namespace {

constexpr std::string_view kArchitecture = "pith-less";
constexpr int kMostLayers = 4096;

using Shape = std::vector<size_t>;

struct Part {
  std::string_view name;
  std::vector<float> LessLayer::*numbers;
  Shape shape;
};

// Tensors of a layer, with the shapes that its numbers ask for.
std::array<Part, 7> PartsOf(const LessLayer& layer, int rank) {
  const auto size = [](int n) { return static_cast<size_t>(n); };
  const size_t h = size(layer.num_heads), g = size(layer.num_kv_heads), d = size(layer.dim), m = size(layer.hidden),
               r = size(rank);
  return {Part{"phi.w1", &LessLayer::query_w1, {h, d, m}}, Part{"phi.w2", &LessLayer::query_w2, {h, m, r}},
          Part{"psi.w1", &LessLayer::key_w1, {g, d, m}},   Part{"psi.w2", &LessLayer::key_w2, {g, m, r}},
          Part{"psi.w3", &LessLayer::key_w3, {g, r, r}},   Part{"psi.s1", &LessLayer::key_s1, {g, r}},
          Part{"psi.s2", &LessLayer::key_s2, {g, r}}};
}

size_t Product(const Shape& shape) {
  size_t product = 1;
  for (const size_t n : shape) product *= n;
  return product;
}

std::string TensorName(size_t layer, std::string_view part) { return fmt::format("{}.{}", layer, part); }

Status CheckSizes(int rank, const LessLayer& layer) {
  if (rank < 1 || rank > kernels::kMostFeatures) {
    return InvalidArgument(fmt::format("maps have 1 to {} features, not {}", kernels::kMostFeatures, rank));
  }
  if (layer.hidden < 1 || layer.hidden > kernels::kMostHiddenUnits) {
    return InvalidArgument(
        fmt::format("maps have 1 to {} hidden units, not {}", kernels::kMostHiddenUnits, layer.hidden));
  }
  if (layer.num_kv_heads < 1 || layer.num_heads < 1 || layer.num_heads % layer.num_kv_heads != 0 || layer.dim < 1) {
    return InvalidArgument(fmt::format("maps of {} query heads and {} kv heads of {} channels do not go together",
                                       layer.num_heads, layer.num_kv_heads, layer.dim));
  }
  return {};
}

Status CheckNumbers(std::string_view name, std::span<const float> numbers, size_t wanted) {
  if (numbers.size() != wanted) {
    return InvalidArgument(fmt::format("{} has {} numbers, not {}", name, numbers.size(), wanted));
  }
  const bool finite = std::ranges::all_of(numbers, [](float x) { return std::isfinite(x); });
  return finite ? Status() : InvalidArgument(fmt::format("{} holds what is no number", name));
}

Result<std::vector<LessLayer>> LayersOf(const GgufFile& file, size_t num_layers, int rank) {
  std::vector<LessLayer> layers(num_layers);
  for (size_t i = 0; i < num_layers; ++i) {
    LessLayer& layer = layers[i];
    const GgufTensor* const queries = file.Find(TensorName(i, "phi.w1"));
    const GgufTensor* const keys = file.Find(TensorName(i, "psi.w1"));
    if (queries == nullptr || keys == nullptr || queries->shape.size() != 3 || keys->shape.size() != 3) {
      return Corrupt(fmt::format("it has no maps of three dimensions of layer {}", i));
    }
    layer.num_heads = static_cast<int>(queries->shape[0]);
    layer.num_kv_heads = static_cast<int>(keys->shape[0]);
    layer.dim = static_cast<int>(queries->shape[1]);
    layer.hidden = static_cast<int>(queries->shape[2]);
    for (const Part& part : PartsOf(layer, rank)) {
      const std::string name = TensorName(i, part.name);
      const GgufTensor* const tensor = file.Find(name);
      if (tensor == nullptr || tensor->shape != part.shape || tensor->f32.size() != Product(part.shape)) {
        return Corrupt(
            fmt::format("its tensor {} is not of float32 in the shape {}", name, fmt::join(part.shape, " x ")));
      }
      layer.*part.numbers = tensor->f32;
    }
  }
  return layers;
}

Result<std::shared_ptr<const LessMaps>> FromFile(const GgufFile& file) {
  const auto architecture = file.metadata().find("general.architecture");
  const std::string* const named =
      architecture == file.metadata().end() ? nullptr : std::get_if<std::string>(&architecture->second);
  if (named == nullptr || *named != kArchitecture) return Corrupt("it holds no maps of act=less");
  const double layers = file.Number("pith.less.layers").value_or(0), rank = file.Number("pith.less.rank").value_or(0);
  if (!(layers >= 1 && layers <= kMostLayers) || !(rank >= 1 && rank <= kernels::kMostFeatures)) {
    return Corrupt(fmt::format("it is said to have {} layers and {} features", layers, rank));
  }
  PITH_ASSIGN_OR_RETURN(std::vector<LessLayer> read,
                        LayersOf(file, static_cast<size_t>(layers), static_cast<int>(rank)));
  auto maps = LessMaps::Make(static_cast<int>(rank), std::move(read));
  if (!maps) return Corrupt(maps.error().message);
  return maps;
}

class Less final : public Action {
 public:
  explicit Less(std::shared_ptr<const LessMaps> maps) : maps_(std::move(maps)) {}
  const LessMaps* less() const override { return maps_.get(); }

 private:
  std::shared_ptr<const LessMaps> maps_;
};

Result<std::shared_ptr<const LessMaps>> Read(const Params& p) {
  if (p.Word("path").empty()) return InvalidArgument("act=less needs a file, as in act=less:less.gguf");
  return LessMaps::Load(p.Word("path"));
}

}  // namespace

LessMaps::LessMaps(int rank, std::vector<LessLayer> layers) : rank_(rank), layers_(std::move(layers)) {
  Hash64 hash;
  for (const LessLayer& layer : layers_) {
    for (const Part& part : PartsOf(layer, rank)) hash.Add(std::as_bytes(std::span(layer.*part.numbers)));
  }
  fingerprint_ = hash.value();
}

Result<std::shared_ptr<const LessMaps>> LessMaps::Make(int rank, std::vector<LessLayer> layers) {
  for (size_t i = 0; i < layers.size(); ++i) {
    PITH_RETURN_IF_ERROR(CheckSizes(rank, layers[i]));
    for (const Part& part : PartsOf(layers[i], rank)) {
      PITH_RETURN_IF_ERROR(CheckNumbers(TensorName(i, part.name), layers[i].*part.numbers, Product(part.shape)));
    }
  }
  return std::shared_ptr<const LessMaps>(new LessMaps(rank, std::move(layers)));
}

Result<std::shared_ptr<const LessMaps>> LessMaps::Load(const std::string& path) {
  PITH_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Load(path));
  auto maps = FromFile(file);
  if (!maps) return Corrupt(fmt::format("{}: {}", path, maps.error().message));
  return maps;
}

std::string LessMaps::Bytes() const {
  GgufWriter writer;
  writer.Add("general.architecture", kArchitecture);
  writer.Add("pith.less.layers", static_cast<uint32_t>(layers_.size()));
  writer.Add("pith.less.rank", static_cast<uint32_t>(rank_));
  for (size_t i = 0; i < layers_.size(); ++i) {
    for (const Part& part : PartsOf(layers_[i], rank_)) {
      writer.Add(TensorName(i, part.name), part.shape, layers_[i].*part.numbers);
    }
  }
  return writer.Bytes();
}

kernels::FeatureMap LessMaps::QueryMap(int layer, int head) const {
  const LessLayer& maps = this->layer(layer);
  const auto h = static_cast<size_t>(head), d = static_cast<size_t>(maps.dim), m = static_cast<size_t>(maps.hidden);
  return {.w1 = maps.query_w1.data() + h * d * m,
          .w2 = maps.query_w2.data() + h * m * static_cast<size_t>(rank_),
          .dim = maps.dim,
          .hidden = maps.hidden,
          .rank = rank_};
}

kernels::FeatureMap LessMaps::KeyMap(int layer, int kv_head) const {
  const LessLayer& maps = this->layer(layer);
  const auto h = static_cast<size_t>(kv_head), d = static_cast<size_t>(maps.dim), m = static_cast<size_t>(maps.hidden),
             r = static_cast<size_t>(rank_);
  return {.w1 = maps.key_w1.data() + h * d * m,
          .w2 = maps.key_w2.data() + h * m * r,
          .w3 = maps.key_w3.data() + h * r * r,
          .s1 = maps.key_s1.data() + h * r,
          .s2 = maps.key_s2.data() + h * r,
          .dim = maps.dim,
          .hidden = maps.hidden,
          .rank = rank_};
}

StageInfo<Action> LessStage() {
  return {"what does not stay joins a state of constant size, which attention adds by feature maps from a file",
          {TextParam("path", "the file, as `pith tune less` writes it; spaces and commas cannot stand in its name")},
          [](const Params& p) -> std::unique_ptr<Action> {
            auto maps = Read(p);
            return std::make_unique<Less>(maps ? std::move(*maps) : nullptr);
          },
          0,
          [](const Params& p) -> Status {
            PITH_RETURN_IF_ERROR(Read(p));
            return {};
          }};
}

}  // namespace pith
