#include "kernels/attention_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <vector>

#include "kernels/coded_pages.h"

namespace pith::kernels {
namespace {

constexpr double kMinusInf = -std::numeric_limits<double>::infinity();

double HalfToDouble(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  double value = 0;
  if (exponent == 0) {
    value = std::ldexp(mantissa, -24);
  } else if (exponent == 31) {
    value = mantissa != 0 ? std::nan("") : -kMinusInf;
  } else {
    value = std::ldexp(1024 + mantissa, exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -value : value;
}

double Bf16ToDouble(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value = 0;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// Element i of a group whose scale and zero bytes lie `zeros` apart.
double GroupElement(KvFormat format, const std::byte* codes, const std::byte* scale, size_t zeros, int i) {
  const auto byte = static_cast<int>(*scale);
  const double unit = std::ldexp(8 + (byte & 7), (byte >> 3) - 3 - 18);
  const double zero = static_cast<double>(reinterpret_cast<const int8_t*>(scale)[zeros]) / ZeroUnits(format);
  int code = 0, plane = 0, below = 0;  // where a plane begins, and the bits of those before it
  for (const int width : {4, 2, 1}) {
    if ((BitsOf(format) & width) == 0) continue;
    const int bit = i / (4 * width) * width;
    for (int b = 0; b < width; ++b) {
      code += (static_cast<int>(codes[plane + i % (4 * width)]) >> (bit + b) & 1) << (below + b);
    }
    plane += 4 * width;
    below += width;
  }
  return unit * (code + zero);
}

double PlainElement(KvFormat format, const std::byte* part, const std::byte* scales, int at, int slot) {
  switch (InfoOf(format).element) {
    case KvElement::kHalf:
      return HalfToDouble(reinterpret_cast<const uint16_t*>(part)[at]);
    case KvElement::kBfloat:
      return Bf16ToDouble(reinterpret_cast<const uint16_t*>(part)[at]);
    case KvElement::kByte:
      return reinterpret_cast<const int8_t*>(part)[at] *
             static_cast<double>(reinterpret_cast<const float*>(scales)[slot]);
    case KvElement::kCode:
      break;
  }
  return std::nan("");
}

double KeyElement(const PageLayout& layout, const std::byte* page, int d, int slot) {
  const KvFormat format = layout.format.key;
  const std::byte* part = page + layout.key_offset;
  const std::byte* scales = page + layout.key_scale_offset;
  if (!IsGrouped(format)) return PlainElement(format, part, scales, d * kPageEntries + slot, slot);
  return GroupElement(format, part + d * kGroupElements * BitsOf(format) / 8, scales + d,
                      static_cast<size_t>(layout.key_dim), slot);
}

double ValueElement(const PageLayout& layout, const std::byte* page, int c, int slot) {
  const KvFormat format = layout.format.value;
  const std::byte* part = page + layout.value_offset;
  const std::byte* scales = page + layout.value_scale_offset;
  if (!IsGrouped(format)) return PlainElement(format, part, scales, slot * layout.value_dim + c, slot);
  const int group = c / kGroupElements;
  const size_t codes = static_cast<size_t>(slot) * layout.value_row_bytes() +
                       static_cast<size_t>(group * kGroupElements * BitsOf(format) / 8);
  return GroupElement(format, part + codes, scales + group * kPageEntries + slot,
                      static_cast<size_t>(layout.value_groups() * kPageEntries), c % kGroupElements);
}

bool Visible(const AttentionTask& task, int query_position, int position) {
  if (position > query_position) return false;
  switch (task.mask) {
    case MaskKind::kCausal:
      return true;
    case MaskKind::kWindow:
      return query_position - position < task.window;
    case MaskKind::kChunk:
      return position >= query_position / task.window * task.window;
  }
  return false;
}

// visit(segment, page, slot) for all entries of a head in order.
template <class Visit>
void ForEachEntry(const HeadEntries& head, const Visit& visit) {
  for (const Segment& segment : head.segments) {
    for (int i = 0; i < segment.num_entries; ++i) {
      visit(*segment.layout, segment.pages[i / kPageEntries], i % kPageEntries);
    }
  }
}

double Score(const AttentionTask& task, int t, int h, const PageLayout& layout, const std::byte* page, int slot) {
  const HeadEntries& head = task.heads[h / (task.num_heads / task.num_kv_heads)];
  const int position = layout.positions(page)[slot];
  if (!Visible(task, task.query_positions[t], position)) return kMinusInf;
  const float* query =
      task.queries + static_cast<size_t>(t) * task.query_token_stride + static_cast<size_t>(h) * task.query_head_stride;
  double dot = 0;
  for (int i = 0; i < layout.key_dim; ++i) {
    const int d = layout.key_dim < task.key_dim ? head.key_channels[i] : i;
    dot += query[d] * KeyElement(layout, page, i, slot);
  }
  double score = dot * task.scale;
  if (task.soft_cap != 0) score = task.soft_cap * std::tanh(score / task.soft_cap);
  if (task.alibi_slopes != nullptr) score -= task.alibi_slopes[h] * double(task.query_positions[t] - position);
  return score;
}

// Weights of all entries, and the log of their sum, for one query and head.
std::vector<double> Weights(const AttentionTask& task, int t, int h, double* log_sum_exp) {
  std::vector<double> weights;
  const HeadEntries& head = task.heads[h / (task.num_heads / task.num_kv_heads)];
  ForEachEntry(head, [&](const PageLayout& layout, const std::byte* page, int slot) {
    weights.push_back(Score(task, t, h, layout, page, slot));
  });
  double max = kMinusInf;
  for (const double score : weights) max = std::max(max, score);
  *log_sum_exp = kMinusInf;
  if (max == kMinusInf) {
    weights.assign(weights.size(), 0.0);
    return weights;
  }
  double sum = 0;
  if (task.sinks != nullptr) {
    max = std::max(max, static_cast<double>(task.sinks[h]));
    sum = std::exp(task.sinks[h] - max);
  }
  for (const double score : weights) sum += std::exp(score - max);
  for (double& weight : weights) weight = std::exp(weight - max) / sum;
  *log_sum_exp = max + std::log(sum);
  return weights;
}

// A task with float16 pages in place of coded ones, whose numbers these hold exactly.
class Uncoded {
 public:
  explicit Uncoded(const AttentionTask& task) : task_(task) {
    for (int h = 0; h < task.num_kv_heads; ++h) {
      const HeadEntries& from = task.heads[h];
      std::vector<Segment>& segments = segments_.emplace_back(from.segments.begin(), from.segments.end());
      for (Segment& segment : segments) {
        if (segment.layout->format.coded()) Decode(segment);
      }
      heads_.push_back(from);
      heads_.back().segments = segments;
    }
    task_.heads = heads_.data();
  }
  Uncoded(const Uncoded&) = delete;
  const AttentionTask& task() const { return task_; }

 private:
  void Decode(Segment& segment) {
    const PageLayout& coded = *segment.layout;
    const auto key_dim = static_cast<size_t>(coded.key_dim);
    const size_t stride = static_cast<size_t>(coded.value_groups()) * kGroupElements;
    const PageLayout& plain = layouts_.emplace_back(PageLayout::Make(PageFormat(), coded.key_dim, coded.value_dim, 0));
    std::vector<float> keys(key_dim * kPageEntries), values(stride * kPageEntries), key(key_dim);
    std::vector<const std::byte*>& pages = tables_.emplace_back();
    for (int i = 0; i < segment.num_entries / kPageEntries; ++i) {
      const std::byte* const page = segment.pages[i];
      DecodeKeysReference(coded, page, keys.data());
      DecodeValuesReference(coded, page, values.data(), stride);
      std::byte* const to = memory_.emplace_back(plain.page_bytes).data();
      for (int slot = 0; slot < kPageEntries; ++slot) {
        const auto j = static_cast<size_t>(slot);
        for (size_t d = 0; d < key_dim; ++d) key[d] = keys[d * kPageEntries + j];
        WriteEntryF32(plain, to, slot, key.data(), values.data() + j * stride, coded.positions(page)[slot]);
      }
      pages.push_back(to);
    }
    segment.layout = &plain;
    segment.pages = pages.data();
  }

  AttentionTask task_;
  std::vector<HeadEntries> heads_;
  std::deque<std::vector<Segment>> segments_;
  std::deque<PageLayout> layouts_;
  std::deque<std::vector<const std::byte*>> tables_;
  std::deque<std::vector<std::byte>> memory_;
};

// LESS, step 5, of one query and head: the state's share of the output.
void JoinReference(const AttentionTask& task, int t, int h, double log_sum_exp, std::vector<double>& output) {
  const float* const state = task.heads[h / (task.num_heads / task.num_kv_heads)].state;
  if (task.features == nullptr || state == nullptr) return;
  const auto rank = static_cast<size_t>(task.rank), dim = output.size();
  const float* phi = task.features + static_cast<size_t>(t * task.num_heads + h) * rank;
  double own = 0;
  for (size_t r = 0; r < rank; ++r) own += static_cast<double>(phi[r]) * static_cast<double>(state[rank * dim + r]);
  if (own <= 0) return;
  const double share = 1 / (1 + std::exp(log_sum_exp - std::log(own)));
  for (size_t c = 0; c < dim; ++c) {
    double sum = 0;
    for (size_t r = 0; r < rank; ++r) sum += static_cast<double>(phi[r]) * static_cast<double>(state[r * dim + c]);
    output[c] = (1 - share) * output[c] + share * sum / own;
  }
}

}  // namespace

void ReferenceAttention(const AttentionTask& stored) {
  const Uncoded uncoded(stored);
  const AttentionTask& task = uncoded.task();
  const int group = task.num_heads / task.num_kv_heads;
  std::vector<double> output(static_cast<size_t>(task.value_dim));
  for (int t = 0; t < task.num_queries; ++t) {
    for (int h = 0; h < task.num_heads; ++h) {
      double log_sum_exp = 0;
      const std::vector<double> weights = Weights(task, t, h, &log_sum_exp);
      std::fill(output.begin(), output.end(), 0.0);
      size_t entry = 0;
      ForEachEntry(task.heads[h / group], [&](const PageLayout& layout, const std::byte* page, int slot) {
        const double weight = weights[entry++];
        if (weight == 0) return;
        for (int c = 0; c < task.value_dim; ++c) {
          output[static_cast<size_t>(c)] += weight * ValueElement(layout, page, c, slot);
        }
      });
      JoinReference(task, t, h, log_sum_exp, output);
      float* row = task.output + static_cast<size_t>(t) * task.output_token_stride +
                   static_cast<size_t>(h) * task.output_head_stride;
      for (int c = 0; c < task.value_dim; ++c) row[c] = static_cast<float>(output[static_cast<size_t>(c)]);
      if (task.log_sum_exp != nullptr) {
        task.log_sum_exp[static_cast<size_t>(h) * static_cast<size_t>(task.num_queries) + static_cast<size_t>(t)] =
            static_cast<float>(log_sum_exp);
      }
    }
  }
}

void ReferenceProbabilities(const AttentionTask& stored, float* const* probabilities) {
  const Uncoded uncoded(stored);
  const AttentionTask& task = uncoded.task();
  const int group = task.num_heads / task.num_kv_heads;
  for (int h = 0; h < task.num_heads; ++h) {
    for (int t = 0; t < task.num_queries; ++t) {
      double log_sum_exp = 0;
      const std::vector<double> weights = Weights(task, t, h, &log_sum_exp);
      const auto row = static_cast<size_t>(h % group * task.num_queries + t);
      std::copy(weights.begin(), weights.end(), probabilities[h / group] + row * weights.size());
    }
  }
}

void ReferenceEntryAttention(const float* probabilities, int group, int num_queries, int num_entries,
                             const EntryAttention& to) {
  const auto n = static_cast<size_t>(num_entries), stride = static_cast<size_t>(num_queries) * n;
  for (size_t j = 0; j < n; ++j) {
    double sum = 0, squares = 0, largest = 0;
    for (int t = 0; t < num_queries; ++t) {
      double mean = 0;
      for (int g = 0; g < group; ++g) {
        const auto p =
            static_cast<double>(probabilities[static_cast<size_t>(g) * stride + static_cast<size_t>(t) * n + j]);
        mean += p / group;
        largest = std::max(largest, p);
      }
      sum += mean;
      squares += mean * mean;
    }
    if (to.sum != nullptr) to.sum[j] = static_cast<float>(sum);
    if (to.squares != nullptr) to.squares[j] = static_cast<float>(squares);
    if (to.largest != nullptr) to.largest[j] = static_cast<float>(largest);
  }
}

}  // namespace pith::kernels
