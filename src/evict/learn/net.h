// A small fully connected network: ReLU between its layers, none behind the last one.
//
// A layer's weights lie input by input, each row padded to whole lanes of 16 outputs, so that one product is a
// multiplication and an addition of vectors, in one order: results are the same on every processor.
#ifndef PITH_EVICT_LEARN_NET_H_
#define PITH_EVICT_LEARN_NET_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "evict/learn/lanes.h"
#include "evict/random.h"

namespace pith::evict {

class Net {
 public:
  static constexpr size_t kLanes = evict::kLanes;
  static constexpr size_t kMaxLayers = 4;
  static constexpr uint32_t kMaxWidth = 256;

  Net() = default;
  // At least an input and an output, each between 1 and kMaxWidth; all weights 0.
  explicit Net(std::span<const uint32_t> widths);
  static bool ValidWidths(std::span<const uint32_t> widths);

  // He's: uniform within sqrt(6 / inputs), biases 0.
  void Initialize(Random& random);

  struct Layer {
    uint32_t in = 0;
    uint32_t out = 0;
    uint32_t stride = 0;  // of a row: `out` in whole lanes
    size_t weights = 0;   // where they begin
    size_t biases = 0;
  };
  const std::vector<Layer>& layers() const { return layers_; }
  const std::vector<uint32_t>& widths() const { return widths_; }
  uint32_t inputs() const { return widths_.front(); }
  uint32_t outputs() const { return widths_.back(); }
  // Floats of one output row, padding included.
  uint32_t output_stride() const { return layers_.back().stride; }
  // Weights and biases of all layers, padding (always 0) included.
  std::vector<float>& parameters() { return parameters_; }
  const std::vector<float>& parameters() const { return parameters_; }

 private:
  std::vector<uint32_t> widths_;
  std::vector<Layer> layers_;
  std::vector<float> parameters_;
};

// Room for what a network computes of `rows` inputs; made once. One for each thread.
class NetBuffers {
 public:
  NetBuffers(const Net& net, size_t rows);
  // Of layer l, row by row.
  float* values(size_t l) { return values_.data() + starts_[l]; }
  float* slopes(size_t l) { return slopes_.data() + starts_[l]; }
  const float* values(size_t l) const { return values_.data() + starts_[l]; }

 private:
  std::vector<size_t> starts_;
  std::vector<float> values_;
  std::vector<float> slopes_;  // of the loss, by value
};

// inputs: rows of net.inputs() floats. Gives the last layer's values, rows of net.output_stride() floats.
const float* Forward(const Net& net, const float* inputs, size_t rows, NetBuffers& buffers);

// The same for Net::kLanes rows that lie side by side: input j of row r at inputs[j * kLanes + r]; outputs lie so, too.
// The same bits. For buffers of kLanes rows or more.
const float* ForwardColumns(const Net& net, const float* inputs, NetBuffers& buffers);

// After Forward() of the same inputs: output_slopes, as its result lies, go back; slopes are added to `gradient`, which
// lies as net.parameters() does.
void Backward(const Net& net, const float* inputs, const float* output_slopes, size_t rows, NetBuffers& buffers,
              std::span<float> gradient);

// Adam (Kingma and Ba 2015) with decoupled weight decay.
class Adam {
 public:
  explicit Adam(size_t parameters) : first_(parameters), second_(parameters) {}
  // `gradient` is cut to the norm `clip`, used, and set to 0.
  void Step(std::vector<float>& parameters, std::span<float> gradient, float rate, float decay, float clip);

  // What a later run needs to go on as if it had never stopped.
  uint64_t& steps() { return steps_; }
  std::vector<float>& first() { return first_; }
  std::vector<float>& second() { return second_; }

 private:
  uint64_t steps_ = 0;
  std::vector<float> first_;
  std::vector<float> second_;
};

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_NET_H_
