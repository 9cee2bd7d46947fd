#include "policy/act/delta_maps.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/gguf_file.h"
#include "cache/latents.h"

namespace pith {
namespace {

constexpr std::string_view kArchitecture = "pith-delta";
constexpr double kMostLayers = 4096;
constexpr int kMostChannels = 1024;

PageLayout LayoutOf(uint8_t latents, const DeltaLayer& layer) {
  return PageLayout::Make(PageFormat::Latents(latents, 1), layer.key_dim, layer.value_dim, 0);
}

std::string KeyDimName(size_t layer) { return fmt::format("pith.delta.{}.key_dim", layer); }

// A tensor of these dimensions, whatever they are; null: there is none such.
const GgufTensor* FindTensor(const GgufFile& file, size_t layer, std::string_view part, size_t dimensions) {
  const GgufTensor* const tensor = file.Find(fmt::format("{}.{}", layer, part));
  return tensor != nullptr && tensor->shape.size() == dimensions && !tensor->f32.empty() ? tensor : nullptr;
}

Result<DeltaLayer> LayerOf(const GgufFile& file, size_t i, uint8_t latents) {
  const GgufTensor* const up = FindTensor(file, i, "up", 3);
  const double key_dim = file.Number(KeyDimName(i)).value_or(0);
  if (up == nullptr || !(key_dim >= 1 && key_dim <= kMostChannels) || up->shape[2] > size_t{2} * kMostChannels) {
    return Corrupt(fmt::format("it has no maps of layer {}", i));
  }
  DeltaLayer layer{.key_dim = static_cast<int>(key_dim),
                   .value_dim = static_cast<int>(up->shape[2]) - static_cast<int>(key_dim)};
  const GgufTensor* const down = FindTensor(file, i, "down", 3);
  const GgufTensor* const weights = FindTensor(file, i, "key_weight", 1);
  const size_t heads = up->shape[0], columns = up->shape[1] * up->shape[2];
  const bool fits = layer.value_dim >= 1 && static_cast<int>(up->shape[1]) == LayoutOf(latents, layer).rank() &&
                    (down != nullptr ? down->shape == up->shape : weights != nullptr && weights->shape[0] == heads);
  if (!fits) return Corrupt(fmt::format("sizes of the maps of layer {} do not go together", i));
  for (size_t h = 0; h < heads; ++h) {
    const auto part = [&](const GgufTensor& tensor, size_t count) {
      return std::span<const float>(tensor.f32).subspan(h * count, count);
    };
    std::vector<float> numbers;
    const auto append = [&numbers](std::span<const float> more) {
      numbers.insert(numbers.end(), more.begin(), more.end());
    };
    append(part(*up, columns));
    append(down != nullptr ? part(*down, columns) : part(*weights, 1));
    layer.heads.push_back(ToMapNumbers(numbers));
  }
  return layer;
}

Result<std::shared_ptr<const DeltaMaps>> FromFile(const GgufFile& file) {
  const auto architecture = file.metadata().find("general.architecture");
  const std::string* const named =
      architecture == file.metadata().end() ? nullptr : std::get_if<std::string>(&architecture->second);
  if (named == nullptr || *named != kArchitecture) return Corrupt("it holds no maps of act=delta");
  const double layers = file.Number("pith.delta.layers").value_or(0);
  const double latents = file.Number("pith.delta.latent").value_or(0);
  if (!(layers >= 1 && layers <= kMostLayers) || !(latents >= 1 && latents <= 255)) {
    return Corrupt(fmt::format("it is said to have {} layers and latents of {} of 256", layers, latents));
  }
  std::vector<DeltaLayer> read;
  for (size_t i = 0; i < static_cast<size_t>(layers); ++i) {
    PITH_ASSIGN_OR_RETURN(read.emplace_back(), LayerOf(file, i, static_cast<uint8_t>(latents)));
  }
  auto maps = DeltaMaps::Make(static_cast<uint8_t>(latents), std::move(read));
  if (!maps) return Corrupt(maps.error().message);
  return maps;
}

}  // namespace

Result<std::shared_ptr<const DeltaMaps>> DeltaMaps::Make(uint8_t latents, std::vector<DeltaLayer> layers) {
  constexpr uint16_t kInfinity = 0x7c00;
  for (size_t i = 0; i < layers.size(); ++i) {
    for (const std::vector<uint16_t>& head : layers[i].heads) {
      if (!AreMapsFor(LayoutOf(latents, layers[i]), head.size())) {
        return InvalidArgument(fmt::format("maps of layer {} have {} numbers, which fit no latents", i, head.size()));
      }
      if (std::ranges::any_of(head, [](uint16_t bits) { return (bits & kInfinity) == kInfinity; })) {
        return InvalidArgument(fmt::format("maps of layer {} hold what is no number of 16 bits", i));
      }
    }
  }
  return std::shared_ptr<const DeltaMaps>(new DeltaMaps(latents, std::move(layers)));
}

Result<std::shared_ptr<const DeltaMaps>> DeltaMaps::Load(const std::string& path) {
  PITH_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Load(path));
  auto maps = FromFile(file);
  if (!maps) return Corrupt(fmt::format("{}: {}", path, maps.error().message));
  return maps;
}

std::string DeltaMaps::Bytes() const {
  GgufWriter writer;
  writer.Add("general.architecture", kArchitecture);
  writer.Add("pith.delta.layers", static_cast<uint32_t>(layers_.size()));
  writer.Add("pith.delta.latent", static_cast<uint32_t>(latents_));
  for (size_t i = 0; i < layers_.size(); ++i) {
    const DeltaLayer& layer = layers_[i];
    const PageLayout layout = LayoutOf(latents_, layer);
    const size_t rank = static_cast<size_t>(layout.rank()), dim = static_cast<size_t>(layer.key_dim + layer.value_dim),
                 columns = rank * dim;
    std::vector<float> up, rest;
    for (const std::vector<uint16_t>& head : layer.heads) {
      const std::vector<float> numbers = FromMapNumbers(head);
      const auto end_of_up = numbers.begin() + static_cast<ptrdiff_t>(columns);
      up.insert(up.end(), numbers.begin(), end_of_up);
      rest.insert(rest.end(), end_of_up, numbers.end());
    }
    writer.Add(KeyDimName(i), static_cast<uint32_t>(layer.key_dim));
    writer.Add(fmt::format("{}.up", i), {layer.heads.size(), rank, dim}, up);
    if (rest.size() == layer.heads.size()) {
      writer.Add(fmt::format("{}.key_weight", i), {layer.heads.size()}, rest);
    } else {
      writer.Add(fmt::format("{}.down", i), {layer.heads.size(), rank, dim}, rest);
    }
  }
  return writer.Bytes();
}

}  // namespace pith
