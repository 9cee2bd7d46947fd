#include "cli/cache_map.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>


namespace pith::cli {
namespace {

constexpr size_t kCells = 40, kLabel = 24;
constexpr std::string_view kShades[] = {"·", "░", "▒", "▓", "█"};

// Anything at all is more than nothing, and only all of it is full.
std::string_view ShadeOf(double share) {
  if (share <= 0) return kShades[0];
  if (share >= 1) return kShades[4];
  return kShades[1 + std::min<size_t>(static_cast<size_t>(share * 3), 2)];
}

double MeanOf(std::span<const double> values) {
  return values.empty() ? 0 : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// The first characters of its first line.
std::string Shortened(const std::string& text) {
  std::string shown;
  size_t width = 0;
  for (const char c : text) {
    const bool begins = (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    if (begins && width == kLabel) return shown + "…";
    if (begins) ++width;
    shown += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return shown + std::string(kLabel + 1 - width, ' ');
}

}  // namespace

std::vector<double> KeptByPosition(const Engine& engine, SequenceId sequence) {
  std::vector<double> kept(static_cast<size_t>(engine.num_tokens(sequence)), 0.0);
  int num_heads = 0;
  const std::vector<LayerShape>& layers = engine.model().info().layers;
  int global = 0;
  for (const LayerShape& layer : layers) {
    if (layer.kind != LayerKind::kGlobal) continue;
    for (int head = 0; head < layer.num_kv_heads; ++head, ++num_heads) {
      for (const int32_t position : engine.EntryPositions(sequence, global, head)) {
        if (position >= 0 && static_cast<size_t>(position) < kept.size()) ++kept[static_cast<size_t>(position)];
      }
    }
    ++global;
  }
  for (double& share : kept) share /= std::max(num_heads, 1);
  return kept;
}

std::string DrawCacheMap(std::span<const double> kept, std::span<const MapRow> rows) {
  std::string text;
  for (size_t i = 0; i < rows.size(); ++i) {
    const size_t from = std::min(static_cast<size_t>(std::max(rows[i].from, 0)), kept.size());
    const size_t to = i + 1 < rows.size() ? std::clamp(static_cast<size_t>(rows[i + 1].from), from, kept.size())
                                          : kept.size();
    if (from == to) continue;
    const std::span<const double> part = kept.subspan(from, to - from);
    const size_t cells = std::min(kCells, part.size());
    std::string strip;
    for (size_t c = 0; c < cells; ++c) {
      const size_t first = c * part.size() / cells, last = (c + 1) * part.size() / cells;
      strip += ShadeOf(MeanOf(part.subspan(first, std::max<size_t>(last - first, 1))));
    }
    text += fmt::format("{:>6} {} {}{} {:5.1f}%\n", from, Shortened(rows[i].label), strip,
                        std::string(kCells - cells, ' '), 100 * MeanOf(part));
  }
  return text;
}

}  // namespace pith::cli
