#include "evict/learn/model_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include <fmt/format.h>

#include "base/byte_io.h"
#include "base/text.h"
#include "evict/learn/coldrl.h"
#include "evict/learn/embedded.h"
#include "evict/learn/one_bit_model.h"
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

template <typename T>
void Append(std::string& to, const T* values, size_t count) {
  to.append(reinterpret_cast<const char*>(values), count * sizeof(T));
}

class Cursor {
 public:
  explicit Cursor(std::string_view bytes) : left_(bytes) {}
  template <typename T>
  bool Take(T* values, size_t count) {
    if (left_.size() / sizeof(T) < count) return false;
    std::memcpy(values, left_.data(), count * sizeof(T));
    left_.remove_prefix(count * sizeof(T));
    return true;
  }
  bool TakeFinite(std::vector<float>& values, size_t count) {
    if (left_.size() / sizeof(float) < count) return false;
    values.resize(count);
    return Take(values.data(), count) && std::ranges::all_of(values, [](float v) { return std::isfinite(v); });
  }
  bool empty() const { return left_.empty(); }

 private:
  std::string_view left_;
};

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

bool TakeWeights(Cursor& cursor, Net& net) {
  std::vector<float> row;
  for (const Net::Layer& layer : net.layers()) {
    for (uint32_t j = 0; j <= layer.in; ++j) {
      if (!cursor.TakeFinite(row, layer.out)) return false;
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
  std::string bytes(kMagic);
  const auto kind = static_cast<uint32_t>(model.kind);
  const auto count = static_cast<uint32_t>(model.net.widths().size());
  Append(bytes, &kind, 1);
  Append(bytes, &count, 1);
  Append(bytes, model.net.widths().data(), count);
  Append(bytes, model.mean.data(), model.mean.size());
  Append(bytes, model.deviation.data(), model.deviation.size());
  const float* parameters = model.net.parameters().data();
  for (const Net::Layer& layer : model.net.layers()) {
    for (uint32_t j = 0; j < layer.in; ++j) Append(bytes, parameters + layer.weights + j * layer.stride, layer.out);
    Append(bytes, parameters + layer.biases, layer.out);
  }
  const std::vector<float> probe = ProbeInput(model.net.inputs());
  const std::vector<float> answer = Answer(model.net, probe);
  Append(bytes, probe.data(), probe.size());
  Append(bytes, answer.data(), answer.size());
  Hash64 hash;
  hash.Add(bytes);
  const uint64_t sum = hash.value();
  Append(bytes, &sum, 1);
  return bytes;
}

Result<Model> ParseModel(std::string_view bytes, ModelKind kind, std::string_view name) {
  const auto corrupt = [&](std::string_view what) { return Corrupt(fmt::format("{}: {}", name, what)); };
  if (!bytes.starts_with(kMagic)) return corrupt("no model of an evictor");
  if (bytes.size() > kMostModelBytes) return corrupt("larger than any model of an evictor");
  uint64_t sum = 0;
  if (bytes.size() < kMagic.size() + sizeof(sum)) return corrupt("cut off");
  std::memcpy(&sum, bytes.data() + bytes.size() - sizeof(sum), sizeof(sum));
  bytes.remove_suffix(sizeof(sum));
  Hash64 hash;
  hash.Add(bytes);
  if (hash.value() != sum) return corrupt("damaged or cut off: its checksum does not fit");

  Cursor cursor(bytes.substr(kMagic.size()));
  uint32_t file_kind = 0;
  uint32_t count = 0;
  std::vector<uint32_t> widths;
  if (!cursor.Take(&file_kind, 1) || !cursor.Take(&count, 1) || count > Net::kMaxLayers + 1) {
    return corrupt("it has no header that makes sense");
  }
  widths.resize(count);
  if (!cursor.Take(widths.data(), count) || !Net::ValidWidths(widths)) return corrupt("no valid sizes of layers");
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
  if (!cursor.TakeFinite(model.mean, widths.front()) || !cursor.TakeFinite(model.deviation, widths.front()) ||
      !TakeWeights(cursor, model.net) || !cursor.TakeFinite(probe, widths.front()) ||
      !cursor.TakeFinite(answer, widths.back()) || !cursor.empty()) {
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
