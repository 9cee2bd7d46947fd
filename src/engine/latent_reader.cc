#include "engine/latent_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "cache/latents.h"
#include "policy/act/delta_maps.h"

namespace pith {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kMostChannels = 2048;  // of a key and a value

size_t Rounded(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
size_t DimOf(const PageLayout& layout) { return static_cast<size_t>(layout.key_dim + layout.value_dim); }

}  // namespace

void LatentReader::Prepare(std::span<const HeadCache> heads, int num_threads, std::span<kernels::Segment> segments) {
  parts_.clear();
  num_pages_ = thread_floats_ = 0;
  size_t bytes = 0;
  for (const HeadCache& head : heads) {
    if (!head.has_latents()) continue;
    const PageLayout& latents = *head.lower_layout();
    const auto pages = static_cast<size_t>(head.num_lower_entries() / kPageEntries);
    num_pages_ += pages;
    bytes += Rounded(static_cast<size_t>(head.num_references()) * DimOf(latents) * sizeof(float)) +
             Rounded(ReadingTableFloats(latents) * sizeof(float)) + pages * head.layout().page_bytes;
    thread_floats_ = std::max(thread_floats_, Rounded(head.LatentScratchFloats() * sizeof(float)) / sizeof(float));
  }
  if (num_pages_ == 0) return;
  page_table_.resize(std::max(page_table_.size(), num_pages_));
  const size_t of_threads = thread_floats_ * static_cast<size_t>(num_threads) * sizeof(float);
  std::byte* at = scratch_.Bytes(of_threads + bytes);
  thread_scratch_ = reinterpret_cast<float*>(at);
  at += of_threads;
  std::byte** page = page_table_.data();
  for (size_t h = 0; h < heads.size(); ++h) {
    const HeadCache& head = heads[h];
    if (!head.has_latents()) continue;
    const PageLayout& latents = *head.lower_layout();
    Part part{.head = &head, .references = reinterpret_cast<float*>(at)};
    at += Rounded(static_cast<size_t>(head.num_references()) * DimOf(latents) * sizeof(float));
    part.table = reinterpret_cast<float*>(at);
    at += Rounded(ReadingTableFloats(latents) * sizeof(float));
    part.pages = page;
    for (int i = 0; i < head.num_lower_entries(); i += kPageEntries, at += head.layout().page_bytes) *page++ = at;
    parts_.push_back(part);
    kernels::Segment& segment = segments[h * HeadCache::kMaxSegments];
    segment = {&head.layout(), part.pages, head.num_lower_entries()};
  }
}

void LatentReader::ReadReferences(const Team& team) {
  int item = 0;
  for (const Part& part : parts_) {
    const PageLayout& latents = *part.head->lower_layout();
    const int count = part.head->num_references();
    if (item++ % team.nth == team.ith) {
      float row[kMostChannels];
      MakeReadingTable(latents, part.head->maps(), row, part.table);
    }
    for (int first = 0; first < count; first += kReferencesAtOnce) {
      if (item++ % team.nth != team.ith) continue;
      part.head->ReadReferences(first, std::min(kReferencesAtOnce, count - first),
                                part.references + static_cast<size_t>(first) * DimOf(latents));
    }
  }
}

void LatentReader::ReadPages(const Team& team) {
  float* const scratch = thread_scratch_ + static_cast<size_t>(team.ith) * thread_floats_;
  int item = 0;
  for (const Part& part : parts_) {
    const int count = part.head->num_lower_entries() / kPageEntries;
    for (int page = 0; page < count; ++page) {
      if (item++ % team.nth != team.ith) continue;
      part.head->ReadLatentPage(static_cast<size_t>(page), part.references, part.table, scratch, part.pages[page]);
    }
  }
}

LatentCosts CostsOfLatents(const ModelInfo& info, const DemoteOptions& demote) {
  LatentCosts costs;
  double entry_bytes = 0;  // of all heads
  for (const LayerShape& layer : info.layers) {
    if (layer.kind != LayerKind::kGlobal || layer.num_kv_heads == 0) continue;
    const auto heads = static_cast<size_t>(layer.num_kv_heads);
    const PageLayout latents = PageLayout::Make(demote.low, layer.key_dim, layer.value_dim, 0),
                     plain = PageLayout::Make(PageFormat(), layer.key_dim, layer.value_dim, 0);
    const size_t reference = DimOf(latents) * sizeof(float), read = plain.page_bytes / kPageEntries;
    costs.map_bytes += heads * NumMapNumbers(latents) * sizeof(uint16_t);
    costs.read_entry_bytes = std::max(
        costs.read_entry_bytes, heads * (read + static_cast<size_t>(demote.share * static_cast<double>(reference))));
    entry_bytes += static_cast<double>(heads) * plain.entry_bytes();
  }
  if (demote.maps != nullptr) {
    costs.map_bytes = 0;
    for (int layer = 0; layer < demote.maps->num_layers(); ++layer) {
      for (const std::vector<uint16_t>& head : demote.maps->layer(layer).heads) {
        costs.map_bytes += head.size() * sizeof(uint16_t);
      }
    }
  }
  if (entry_bytes > 0) costs.map_entries = static_cast<double>(costs.map_bytes) / entry_bytes;
  return costs;
}

Status CheckLatentMaps(const ModelInfo& info, const DeltaMaps& maps) {
  int num_layers = 0;
  for (const LayerShape& layer : info.layers) {
    if (layer.kind != LayerKind::kGlobal || layer.num_kv_heads == 0) continue;
    const int at = num_layers++;
    if (at >= maps.num_layers()) continue;
    const DeltaLayer& of = maps.layer(at);
    if (of.heads.size() == static_cast<size_t>(layer.num_kv_heads) && of.key_dim == layer.key_dim &&
        of.value_dim == layer.value_dim) {
      continue;
    }
    return InvalidArgument(fmt::format(
        "the maps of act=delta are for {} kv heads of {} and {} channels, and the model's layer {} has {} of {} and {}",
        of.heads.size(), of.key_dim, of.value_dim, at, layer.num_kv_heads, layer.key_dim, layer.value_dim));
  }
  if (num_layers == maps.num_layers()) return {};
  return InvalidArgument(
      fmt::format("the maps of act=delta are for {} layers with a global cache, and the model has {}",
                  maps.num_layers(), num_layers));
}

}  // namespace pith
