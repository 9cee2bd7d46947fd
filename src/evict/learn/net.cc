#include "evict/learn/net.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"

// Compiled without contraction of a * b + c (src/CMakeLists.txt), so that every instruction set gives the same bits.
namespace pith::evict {
namespace {

#if defined(__x86_64__)
#define PITH_LANES_TARGETS 1
#endif

// kRows rows of kGroups vectors of outputs at once stay in registers while the inputs pass.
template <typename L, size_t kRows, size_t kGroups>
[[gnu::always_inline]] inline void Product(const Net::Layer& layer, const float* parameters, size_t first,
                                           const float* in, size_t in_stride, float* out, bool relu) {
  using V = typename L::Floats;
  constexpr size_t kWidth = L::kWidth;
  V sums[kRows][kGroups];
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t g = 0; g < kGroups; ++g) sums[r][g] = At<L>(parameters + layer.biases + first + g * kWidth).values;
  }
  const float* weights = parameters + layer.weights + first;
  for (uint32_t j = 0; j < layer.in; ++j, weights += layer.stride) {
    for (size_t r = 0; r < kRows; ++r) {
      for (size_t g = 0; g < kGroups; ++g) sums[r][g] += At<L>(weights + g * kWidth).values * in[r * in_stride + j];
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t g = 0; g < kGroups; ++g) {
      V sum = sums[r][g];
      if (relu) sum = sum > V{} ? sum : V{};
      Store<L>(out + r * layer.stride + first + g * kWidth, sum);
    }
  }
}

template <typename L, size_t kGroups>
[[gnu::always_inline]] inline void Rows(const Net::Layer& layer, const float* parameters, size_t first, const float* in,
                                        size_t in_stride, size_t rows, float* out, bool relu) {
  size_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    Product<L, 4, kGroups>(layer, parameters, first, in + r * in_stride, in_stride, out + r * layer.stride, relu);
  }
  for (; r < rows; ++r) {
    Product<L, 1, kGroups>(layer, parameters, first, in + r * in_stride, in_stride, out + r * layer.stride, relu);
  }
}

template <typename L>
[[gnu::always_inline]] inline void ForwardLayer(const Net::Layer& layer, const float* parameters, const float* in,
                                                size_t in_stride, size_t rows, float* out, bool relu) {
  size_t first = 0;
  constexpr size_t kWidth = L::kWidth;
  for (; first + 2 * kWidth <= layer.stride; first += 2 * kWidth) {
    Rows<L, 2>(layer, parameters, first, in, in_stride, rows, out, relu);
  }
  if (first < layer.stride) Rows<L, 1>(layer, parameters, first, in, in_stride, rows, out, relu);
}

// kOutputs outputs of a vector of rows stay in registers while the inputs pass.
template <typename L, size_t kOutputs>
[[gnu::always_inline]] inline void ColumnProduct(const Net::Layer& layer, const float* parameters, size_t first,
                                                 const float* in, float* out, bool relu) {
  using V = typename L::Floats;
  V sums[kOutputs];
  for (size_t o = 0; o < kOutputs; ++o) sums[o] = V{} + parameters[layer.biases + first + o];
  const float* weights = parameters + layer.weights + first;
  for (uint32_t j = 0; j < layer.in; ++j, weights += layer.stride) {
    for (size_t o = 0; o < kOutputs; ++o) sums[o] += At<L>(in + j * kLanes).values * weights[o];
  }
  for (size_t o = 0; o < kOutputs; ++o) {
    V sum = sums[o];
    if (relu) sum = sum > V{} ? sum : V{};
    Store<L>(out + (first + o) * kLanes, sum);
  }
}

template <typename L>
[[gnu::always_inline]] inline void ColumnLayer(const Net::Layer& layer, const float* parameters, const float* in,
                                               float* out, bool relu) {
  constexpr size_t kOutputs = 8;
  for (size_t row = 0; row < kLanes; row += L::kWidth) {
    size_t first = 0;
    for (; first + kOutputs <= layer.out; first += kOutputs) {
      ColumnProduct<L, kOutputs>(layer, parameters, first, in + row, out + row, relu);
    }
    // Sums that stand alone would wait for themselves.
    for (; first + 3 <= layer.out; first += 3) {
      ColumnProduct<L, 3>(layer, parameters, first, in + row, out + row, relu);
    }
    for (; first < layer.out; ++first) ColumnProduct<L, 1>(layer, parameters, first, in + row, out + row, relu);
  }
}

inline float Faded(float x) { return std::abs(x) < 1e-25f ? 0.0f : x; }

[[gnu::always_inline]] inline float Sum(const Lanes16::Floats& lanes) {
  float sum = 0;
  for (size_t i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

// Slopes of this layer's outputs -> of its weights and of its inputs (null: nobody asks).
[[gnu::always_inline]] inline void BackwardLayer(const Net::Layer& layer, const float* parameters, const float* in,
                                                 size_t in_stride, size_t rows, const float* out_slopes,
                                                 float* in_slopes, float* gradient) {
  for (size_t r = 0; r < rows; ++r) {
    const float* slopes = out_slopes + r * layer.stride;
    for (size_t o = 0; o < layer.stride; o += kLanes) {
      Store<Lanes16>(gradient + layer.biases + o,
                     At<Lanes16>(gradient + layer.biases + o).values + At<Lanes16>(slopes + o).values);
    }
    for (uint32_t j = 0; j < layer.in; ++j) {
      const float value = in[r * in_stride + j];
      const size_t row = layer.weights + size_t{j} * layer.stride;
      Lanes16::Floats back{};
      for (size_t o = 0; o < layer.stride; o += kLanes) {
        if (value != 0)
          Store<Lanes16>(gradient + row + o,
                         At<Lanes16>(gradient + row + o).values + At<Lanes16>(slopes + o).values * value);
        if (in_slopes != nullptr) back += At<Lanes16>(parameters + row + o).values * At<Lanes16>(slopes + o).values;
      }
      // Behind a ReLU: what it gave was 0, or passes on.
      if (in_slopes != nullptr) in_slopes[r * in_stride + j] = value > 0 ? Sum(back) : 0;
    }
  }
}

#define PITH_LANES_BODIES(suffix, attributes, vector)                                                                \
  attributes void Columns##suffix(const Net::Layer& layer, const float* parameters, const float* in, float* out,     \
                                  bool relu) {                                                                       \
    ColumnLayer<vector>(layer, parameters, in, out, relu);                                                           \
  }                                                                                                                  \
  attributes void Forward##suffix(const Net::Layer& layer, const float* parameters, const float* in, size_t stride,  \
                                  size_t rows, float* out, bool relu) {                                              \
    ForwardLayer<vector>(layer, parameters, in, stride, rows, out, relu);                                            \
  }                                                                                                                  \
  attributes void Backward##suffix(const Net::Layer& layer, const float* parameters, const float* in, size_t stride, \
                                   size_t rows, const float* out_slopes, float* in_slopes, float* gradient) {        \
    BackwardLayer(layer, parameters, in, stride, rows, out_slopes, in_slopes, gradient);                             \
  }

PITH_LANES_BODIES(Any, , Lanes4)
#ifdef PITH_LANES_TARGETS
PITH_LANES_BODIES(Avx2, [[gnu::target("avx2")]], Lanes8)
PITH_LANES_BODIES(Avx512, [[gnu::target("avx512f")]], Lanes16)
#endif

struct Bodies {
  decltype(&ForwardAny) forward = ForwardAny;
  decltype(&BackwardAny) backward = BackwardAny;
  decltype(&ColumnsAny) columns = ColumnsAny;
};

const Bodies& BestBodies() {
  static const Bodies bodies = [] {
#ifdef PITH_LANES_TARGETS
    if (__builtin_cpu_supports("avx512f")) return Bodies{ForwardAvx512, BackwardAvx512, ColumnsAvx512};
    if (__builtin_cpu_supports("avx2")) return Bodies{ForwardAvx2, BackwardAvx2, ColumnsAvx2};
#endif
    return Bodies{};
  }();
  return bodies;
}

}  // namespace

bool Net::ValidWidths(std::span<const uint32_t> widths) {
  return widths.size() >= 2 && widths.size() <= kMaxLayers + 1 &&
         std::ranges::all_of(widths, [](uint32_t width) { return width >= 1 && width <= kMaxWidth; });
}

Net::Net(std::span<const uint32_t> widths) : widths_(widths.begin(), widths.end()) {
  PITH_CHECK(ValidWidths(widths));
  size_t at = 0;
  for (size_t l = 0; l + 1 < widths.size(); ++l) {
    Layer layer;
    layer.in = widths[l];
    layer.out = widths[l + 1];
    layer.stride = static_cast<uint32_t>((layer.out + kLanes - 1) / kLanes * kLanes);
    layer.weights = at;
    at += size_t{layer.in} * layer.stride;
    layer.biases = at;
    at += layer.stride;
    layers_.push_back(layer);
  }
  parameters_.resize(at);
}

void Net::Initialize(Random& random) {
  for (const Layer& layer : layers_) {
    const double bound = std::sqrt(6.0 / layer.in);
    for (uint32_t j = 0; j < layer.in; ++j) {
      for (uint32_t o = 0; o < layer.out; ++o) {
        parameters_[layer.weights + size_t{j} * layer.stride + o] =
            static_cast<float>((2 * random.Uniform() - 1) * bound);
      }
    }
  }
}

NetBuffers::NetBuffers(const Net& net, size_t rows) {
  size_t at = 0;
  for (const Net::Layer& layer : net.layers()) {
    starts_.push_back(at);
    at += rows * layer.stride;
  }
  values_.resize(at);
  slopes_.resize(at);
}

const float* Forward(const Net& net, const float* inputs, size_t rows, NetBuffers& buffers) {
  const Bodies& bodies = BestBodies();
  const float* in = inputs;
  size_t stride = net.inputs();
  for (size_t l = 0; l < net.layers().size(); ++l) {
    const Net::Layer& layer = net.layers()[l];
    bodies.forward(layer, net.parameters().data(), in, stride, rows, buffers.values(l), l + 1 < net.layers().size());
    in = buffers.values(l);
    stride = layer.stride;
  }
  return in;
}

const float* ForwardColumns(const Net& net, const float* inputs, NetBuffers& buffers) {
  const Bodies& bodies = BestBodies();
  const float* in = inputs;
  for (size_t l = 0; l < net.layers().size(); ++l) {
    bodies.columns(net.layers()[l], net.parameters().data(), in, buffers.values(l), l + 1 < net.layers().size());
    in = buffers.values(l);
  }
  return in;
}

void Backward(const Net& net, const float* inputs, const float* output_slopes, size_t rows, NetBuffers& buffers,
              std::span<float> gradient) {
  const Bodies& bodies = BestBodies();
  const float* slopes = output_slopes;
  for (size_t l = net.layers().size(); l-- > 0;) {
    const float* in = l == 0 ? inputs : buffers.values(l - 1);
    const size_t stride = l == 0 ? net.inputs() : net.layers()[l - 1].stride;
    float* in_slopes = l == 0 ? nullptr : buffers.slopes(l - 1);
    bodies.backward(net.layers()[l], net.parameters().data(), in, stride, rows, slopes, in_slopes, gradient.data());
    slopes = in_slopes;
  }
}

void Adam::Step(std::vector<float>& parameters, std::span<float> gradient, float rate, float decay, float clip) {
  constexpr double kBeta1 = 0.9;
  constexpr double kBeta2 = 0.999;
  ++steps_;
  double square = 0;
  for (const float g : gradient) square += static_cast<double>(g) * g;
  const auto scale = static_cast<float>(square > static_cast<double>(clip) * clip ? clip / std::sqrt(square) : 1);
  const auto steps = static_cast<double>(steps_);
  const auto unbias1 = static_cast<float>(1 / (1 - std::pow(kBeta1, steps)));
  const auto unbias2 = static_cast<float>(1 / (1 - std::pow(kBeta2, steps)));
  for (size_t i = 0; i < parameters.size(); ++i) {
    const float g = gradient[i] * scale;
    // What has not had a slope for long fades to 0, not to numbers so small that processors are slow on them.
    first_[i] = Faded(first_[i] + static_cast<float>(1 - kBeta1) * (g - first_[i]));
    second_[i] = Faded(second_[i] + static_cast<float>(1 - kBeta2) * (g * g - second_[i]));
    parameters[i] -= rate * (first_[i] * unbias1 / (std::sqrt(second_[i] * unbias2) + 1e-8f) + decay * parameters[i]);
  }
  std::ranges::fill(gradient, 0.0f);
}

}  // namespace pith::evict
