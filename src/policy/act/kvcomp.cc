#include "policy/act/kvcomp.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <tuple>

#include "policy/terms/half.h"

namespace pith {
namespace {

// The numbers of one unit, by their indices.
void CodeUnit(const ErrorBound& bound, std::span<const float> rows, std::span<const size_t> from,
              std::span<const size_t> to, BoundedCodes& out) {
  double least = std::numeric_limits<double>::infinity(), greatest = -least;
  for (const size_t i : from) {
    least = std::min(least, static_cast<double>(rows[i]));
    greatest = std::max(greatest, static_cast<double>(rows[i]));
  }
  const double step = RoundToHalf((greatest - least) * bound.share);
  const bool constant = step == 0;
  const double minimum = constant ? 0 : std::nearbyint(least / step);
  out.steps.push_back(static_cast<float>(step));
  out.minima.push_back(static_cast<int32_t>(minimum));
  for (size_t i = 0; i < from.size(); ++i) {
    const double code = constant ? 0 : std::nearbyint(static_cast<double>(rows[from[i]]) / step) - minimum;
    out.codes[to[i]] = static_cast<int32_t>(code);
    out.values[to[i]] = constant ? rows[from[i]] : static_cast<float>((code + minimum) * step);
  }
}

}  // namespace

int ErrorBound::alphabet() const { return static_cast<int>(std::ceil(1 / share)) + 2; }

int ErrorBound::CutOf(int waiting) const {
  const int blocks = (waiting + block - waiting % block - recent) / block;
  return std::max(0, blocks) * block;
}

BoundedCodes BoundErrors(const ErrorBound& bound, std::span<const float> rows, size_t heads, size_t tokens, size_t dim,
                         size_t first, size_t count) {
  BoundedCodes out;
  out.codes.resize(heads * count * dim);
  out.values.resize(out.codes.size());
  const auto block = static_cast<size_t>(bound.block);
  const bool by_head = bound.unit == ErrorUnit::kChannel || bound.unit == ErrorUnit::kBlockPerHead;
  const size_t head_step = by_head ? 1 : heads, token_step = bound.unit == ErrorUnit::kToken ? 1 : block,
               channel_step = bound.unit == ErrorUnit::kChannel ? 1 : dim;
  std::vector<size_t> from, to;
  for (size_t b = 0; b < count; b += block) {
    for (size_t h = 0; h < heads; h += head_step) {
      for (size_t t = b; t < b + block; t += token_step) {
        for (size_t c = 0; c < dim; c += channel_step) {
          from.clear(), to.clear();
          for (size_t unit_h = h; unit_h < h + head_step; ++unit_h) {
            for (size_t unit_t = t; unit_t < t + token_step; ++unit_t) {
              for (size_t unit_c = c; unit_c < c + channel_step; ++unit_c) {
                from.push_back((unit_h * tokens + first + unit_t) * dim + unit_c);
                to.push_back((unit_h * count + unit_t) * dim + unit_c);
              }
            }
          }
          CodeUnit(bound, rows, from, to, out);
        }
      }
    }
  }
  return out;
}

HuffmanCode::HuffmanCode(std::span<const int64_t> counts) : lengths_(counts.size(), 0), codewords_(counts.size(), 0) {
  // By count, then by the smallest symbol: the symbols below each node.
  std::map<std::pair<int64_t, int32_t>, std::vector<int32_t>> nodes;
  for (size_t s = 0; s < counts.size(); ++s) {
    const auto symbol = static_cast<int32_t>(s);
    nodes[{counts[s], symbol}] = {symbol};
  }
  if (counts.size() == 1) lengths_[0] = 1;
  while (nodes.size() > 1) {
    auto a = nodes.extract(nodes.begin()), b = nodes.extract(nodes.begin());
    std::vector<int32_t> below = std::move(a.mapped());
    below.insert(below.end(), b.mapped().begin(), b.mapped().end());
    for (const int32_t symbol : below) ++lengths_[static_cast<size_t>(symbol)];
    nodes[{a.key().first + b.key().first, std::min(a.key().second, b.key().second)}] = std::move(below);
  }
  by_length_.resize(counts.size());
  std::iota(by_length_.begin(), by_length_.end(), 0);
  std::ranges::stable_sort(by_length_, {}, [this](int32_t symbol) { return lengths_[static_cast<size_t>(symbol)]; });
  int32_t code = 0, length = 0;
  for (const int32_t symbol : by_length_) {
    const auto s = static_cast<size_t>(symbol);
    if (length > 0) ++code;
    code <<= lengths_[s] - length;
    length = lengths_[s];
    codewords_[s] = code;
  }
}

int64_t HuffmanCode::BitsOf(std::span<const int32_t> symbols) const {
  int64_t bits = 0;
  for (const int32_t symbol : symbols) bits += lengths_[static_cast<size_t>(symbol)];
  return bits;
}

void HuffmanCode::Write(std::span<const int32_t> symbols, std::vector<uint8_t>& bytes) const {
  int free = 0;  // bits of the last byte
  for (const int32_t symbol : symbols) {
    const auto s = static_cast<size_t>(symbol);
    for (int bit = lengths_[s] - 1; bit >= 0; --bit) {
      if (free == 0) bytes.push_back(0), free = 8;
      --free;
      if ((codewords_[s] >> bit & 1) != 0) bytes.back() = static_cast<uint8_t>(bytes.back() | 1u << free);
    }
  }
}

bool HuffmanCode::Read(std::span<const uint8_t> bytes, std::span<int32_t> symbols) const {
  size_t at = 0;
  for (int32_t& symbol : symbols) {
    int32_t code = 0, length = 0;
    auto next = by_length_.begin();
    for (bool found = false; !found;) {
      if (at >= bytes.size() * 8) return false;
      code = code << 1 | (bytes[at / 8] >> (7 - at % 8) & 1);
      ++at, ++length;
      for (; next != by_length_.end() && lengths_[static_cast<size_t>(*next)] <= length; ++next) {
        if (lengths_[static_cast<size_t>(*next)] < length || codewords_[static_cast<size_t>(*next)] != code) continue;
        symbol = *next;
        found = true;
        break;
      }
      if (!found && next == by_length_.end()) return false;
    }
  }
  return true;
}

}  // namespace pith
