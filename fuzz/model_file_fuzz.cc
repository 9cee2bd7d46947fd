// Any bytes are a model that decides, or one sentence. The first byte picks the kind, and whether the checksum is made
// right, so that what stands behind it is reached.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "base/byte_io.h"
#include "evict/learn/checkpoint.h"
#include "evict/learn/model_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  if ((data[0] & 4) != 0) {
    pith::Hash64 hash;
    hash.Add(bytes);
    const uint64_t sum = hash.value();
    bytes.append(reinterpret_cast<const char*>(&sum), sizeof(sum));
  }
  if (const auto state = pith::evict::ParseCheckpoint(bytes, "state"); state) {
    if (pith::evict::SerializeCheckpoint(*state) != bytes) std::abort();
  }
  const auto kind = static_cast<pith::evict::ModelKind>(1 + data[0] % 4);
  const auto model = pith::evict::ParseModel(bytes, kind, "model");
  if (!model) {
    if (model.error().message.empty() || model.error().message.find('\n') != std::string_view::npos) std::abort();
    return 0;
  }
  std::vector<float> inputs(model->net.inputs(), 1.0f);
  model->Normalize(inputs.data(), inputs.data());
  for (const float input : inputs) {
    if (!(std::abs(input) <= 5)) std::abort();
  }
  pith::evict::NetBuffers buffers(model->net, 1);
  pith::evict::Forward(model->net, inputs.data(), 1, buffers);
  return 0;
}
