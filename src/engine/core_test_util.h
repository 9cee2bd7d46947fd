// What rooms of an engine stand on, without a model: two global layers, between them one that slides.
#ifndef PITH_ENGINE_CORE_TEST_UTIL_H_
#define PITH_ENGINE_CORE_TEST_UTIL_H_

#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/ledger.h"
#include "cache/kv_cache.h"
#include "engine/engine_core.h"
#include "engine/sequence.h"
#include "kernels/attention.h"

namespace pith::testing {

class CoreSample {
 public:
  static constexpr int kWindow = 40, kHeads = 2, kDim = 32;

  CoreSample() {
    info_.num_layers = 3;
    info_.trained_ctx = 4096;
    info_.window = kWindow;
    for (const LayerKind kind : {LayerKind::kGlobal, LayerKind::kWindow, LayerKind::kGlobal}) {
      info_.layers.push_back({.kind = kind,
                              .num_heads = 2 * kHeads,
                              .num_kv_heads = kHeads,
                              .key_dim = kDim,
                              .value_dim = kDim,
                              .rotation = Rotation(),
                              .bypasses_block = true});
    }
    core_.info = &info_;
    core_.layers = GlobalLayers(info_);
    core_.ledger = std::make_unique<Ledger>(size_t{4} << 20);
    std::vector<CacheLayer> layers;
    for (const LayerShape& shape : info_.layers) {
      layers.push_back({kHeads, kDim, kDim, shape.kind == LayerKind::kGlobal});
    }
    core_.cache = KvCache::Create(core_.ledger.get(), std::move(layers));
  }
  ~CoreSample() {
    for (const auto& sequence : sequences_) core_.cache->Free(sequence->cache_id);
  }

  EngineCore& core() { return core_; }
  ModelInfo& info() { return info_; }

  // It has read nothing, and keeps everything of what it reads but what has left the window.
  Sequence& NewSequence(PageFormat format = {}) {
    EngineOptions options;
    options.num_ctx = 4096;
    options.budget_bytes = size_t{4} << 20;
    options.format = format;
    options.recipe = *ParseRecipe("full");
    Sequence& sequence = *sequences_.emplace_back(std::make_unique<Sequence>());
    const auto setup = SequenceSetup::Make(info_, options);
    PITH_CHECK(setup.has_value());
    sequence.setup = *setup;
    sequence.account = core_.ledger->common();
    sequence.cache_id = *core_.cache->NewSequence(
        {.entry = sequence.setup->formats.entry, .low = sequence.setup->formats.converted}, sequence.account);
    return sequence;
  }
  Sequence& Fork(const Sequence& source) {
    Sequence& sequence = *sequences_.emplace_back(std::make_unique<Sequence>());
    sequence.setup = source.setup;
    sequence.account = core_.ledger->common();
    sequence.CopyHistory(source);
    sequence.cache_id = *core_.cache->Fork(source.cache_id, sequence.account);
    return sequence;
  }

  // So many tokens more, in all layers; full pages are converted where the sequence has a low format.
  void Read(Sequence& sequence, int num_tokens) {
    const std::vector<float> row(kDim, 0.5F);
    for (int layer = 0; layer < info_.num_layers; ++layer) {
      for (HeadCache& head : core_.cache->heads(sequence.cache_id, layer)) {
        PITH_CHECK(head.Extend(num_tokens).has_value());
        for (int i = 0; i < num_tokens; ++i) {
          const int at = head.num_entries() + i;
          kernels::WriteEntryF32(head.layout(), head.page_of(at), at % kPageEntries, row.data(), row.data(),
                                 sequence.next_position + i);
        }
        head.Commit(num_tokens);
        PITH_CHECK(head.Demote(0).has_value());
      }
    }
    sequence.next_position += num_tokens;
    sequence.entries_seen = sequence.next_position * core_.layers.num_heads();
  }

 private:
  ModelInfo info_;
  EngineCore core_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
};

}  // namespace pith::testing

#endif  // PITH_ENGINE_CORE_TEST_UTIL_H_
