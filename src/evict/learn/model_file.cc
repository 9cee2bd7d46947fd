#include "evict/learn/model_file.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>

#include <fmt/format.h>

#include "base/text.h"
#include "evict/learn/coldrl.h"
#include "evict/learn/embedded.h"
#include "evict/learn/one_bit_model.h"
#include "evict/learn/sealed.h"
#include "evict/learn/survival.h"

namespace pith::evict {
namespace {

constexpr std::string_view kMagic = "PITHNET1";
constexpr float kTolerance = 1e-4f;  // of the own test: other processors, other compilers

struct KindInfo {
  ModelKind kind;
  std::string_view name;
  size_t inputs;
  size_t outputs;
};
constexpr KindInfo kKinds[] = {
    {ModelKind::kColdRl, "coldrl", ColdRl::kInputs, ColdRl::kOutputs},
    {ModelKind::kSurvival, "learned", History::kFeatures, Survival::kBins},
    {ModelKind::kDiscardBit, "fwa0 and mark0", kOneBitInputs, 1},
    {ModelKind::kPhaseBit, "mnp", kOneBitInputs, 1},
};

const KindInfo* FindKind(ModelKind kind) {
  const auto found = std::ranges::find(kKinds, kind, &KindInfo::kind);
  return found == std::end(kKinds) ? nullptr : found;
}

bool TakeFinite(MemoryReader& reader, std::vector<float>& values, size_t count) {
  return reader.Fill(count, values) && std::ranges::all_of(values, [](float v) { return std::isfinite(v); });
}

// The input of the file's own test: some below their mean, some above.
std::vector<float> ProbeInput(size_t inputs) {
  std::vector<float> probe(inputs);
  for (size_t i = 0; i < inputs; ++i) probe[i] = static_cast<float>(i * 7 % 11) / 5.0f - 1.0f;
  return probe;
}

std::vector<float> Answer(const Net& net, const std::vector<float>& input) {
  NetBuffers buffers(net, 1);
  const float* output = Forward(net, input.data(), 1, buffers);
  return {output, output + net.outputs()};
}

bool TakeWeights(MemoryReader& reader, Net& net) {
  std::vector<float> row;
  for (const Net::Layer& layer : net.layers()) {
    for (uint32_t j = 0; j <= layer.in; ++j) {
      if (!TakeFinite(reader, row, layer.out)) return false;
      std::ranges::copy(row, net.parameters().begin() +
                                 static_cast<std::ptrdiff_t>(j < layer.in ? layer.weights + size_t{j} * layer.stride
                                                                          : layer.biases));
    }
  }
  return true;
}

}  // namespace

void Model::Normalize(const float* features, float* inputs) const {
  for (size_t i = 0; i < mean.size(); ++i) {
    const float z = (features[i] - mean[i]) / deviation[i];
    inputs[i] = std::isnan(z) ? 0 : std::clamp(z, -5.0f, 5.0f);
  }
}

std::string SerializeModel(const Model& model) {
  MemoryWriter writer;
  writer.Array(std::span(kMagic));
  writer.Number(static_cast<uint32_t>(model.kind));
  writer.Number(static_cast<uint32_t>(model.net.widths().size()));
  writer.Array(std::span(model.net.widths()));
  writer.Array(std::span(model.mean));
  writer.Array(std::span(model.deviation));
  const std::span<const float> parameters(model.net.parameters());
  for (const Net::Layer& layer : model.net.layers()) {
    for (uint32_t j = 0; j < layer.in; ++j) {
      writer.Array(parameters.subspan(layer.weights + size_t{j} * layer.stride, layer.out));
    }
    writer.Array(parameters.subspan(layer.biases, layer.out));
  }
  const std::vector<float> probe = ProbeInput(model.net.inputs());
  const std::vector<float> answer = Answer(model.net, probe);
  writer.Array(std::span(probe));
  writer.Array(std::span(answer));
  return Sealed(writer);
}

Result<Model> ParseModel(std::string_view bytes, ModelKind kind, std::string_view name) {
  const auto corrupt = [&](std::string_view what) { return Corrupt(fmt::format("{}: {}", name, what)); };
  if (!bytes.starts_with(kMagic)) return corrupt("no model of an evictor");
  if (bytes.size() > kMostModelBytes) return corrupt("larger than any model of an evictor");
  if (bytes.size() < kMagic.size() + kSealBytes) return corrupt("cut off");
  std::optional<MemoryReader> reader = Unsealed(bytes, kMagic.size());
  if (!reader) return corrupt("damaged or cut off: its checksum does not fit");

  uint32_t file_kind = 0;
  uint32_t count = 0;
  std::vector<uint32_t> widths;
  if (!reader->Number(file_kind) || !reader->Number(count) || count > Net::kMaxLayers + 1) {
    return corrupt("it has no header that makes sense");
  }
  if (!reader->Fill(count, widths) || !Net::ValidWidths(widths)) return corrupt("no valid sizes of layers");
  const KindInfo* info = FindKind(static_cast<ModelKind>(file_kind));
  if (info == nullptr) return corrupt("a model for an evictor that is not known here");
  if (info->kind != kind) {
    return InvalidArgument(fmt::format("{}: the model is for {}, not for {}", name, info->name, FindKind(kind)->name));
  }
  if (widths.front() != info->inputs || widths.back() != info->outputs) {
    return corrupt("its inputs and outputs are not those that this version gives and reads");
  }
  Model model;
  model.kind = kind;
  model.net = Net(widths);
  std::vector<float> probe;
  std::vector<float> answer;
  if (!TakeFinite(*reader, model.mean, widths.front()) || !TakeFinite(*reader, model.deviation, widths.front()) ||
      !TakeWeights(*reader, model.net) || !TakeFinite(*reader, probe, widths.front()) ||
      !TakeFinite(*reader, answer, widths.back()) || reader->left() > 0) {
    return corrupt("its parts do not have the sizes that its header says, or are no finite numbers");
  }
  if (!std::ranges::all_of(model.deviation, [](float d) { return d > 0; })) {
    return corrupt("a deviation is not above 0");
  }
  const std::vector<float> given = Answer(model.net, probe);
  for (size_t i = 0; i < answer.size(); ++i) {
    if (!(std::abs(given[i] - answer[i]) <= kTolerance * (1 + std::abs(answer[i])))) {
      return corrupt("its own test gives another result on this machine");
    }
  }
  return model;
}

Result<Model> LoadModel(const std::string& path, ModelKind kind) {
  if (path.empty()) return ParseModel(EmbeddedModel(kind), kind, "the built-in model");
  PITH_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  return ParseModel(bytes, kind, path);
}

}  // namespace pith::evict
