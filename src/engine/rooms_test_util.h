// The rooms of an engine over a random model of two layers, two kv heads each, and a vocabulary of 128.
#ifndef PITH_ENGINE_ROOMS_TEST_UTIL_H_
#define PITH_ENGINE_ROOMS_TEST_UTIL_H_

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/check.h"
#include "engine/block_rereader.h"
#include "engine/block_runner.h"
#include "engine/compressor.h"
#include "engine/engine_core.h"
#include "engine/evictor.h"
#include "engine/second_reader.h"
#include "engine/sequence_table.h"
#include "engine/shrinker.h"
#include "engine/steps.h"
#include "engine/turn_keeper.h"
#include "tests/support/random_model.h"

namespace pith::testing {

inline std::shared_ptr<HostModel> TinyModel() {
  static const std::shared_ptr<HostModel> model = [] {
    const std::string path = ::testing::TempDir() + fmt::format("pith_rooms_{}.gguf", getpid());
    PITH_CHECK(MakeRandomModel("llama", false, path, 3).has_value());
    auto loaded = HostModel::Load(path, {});
    PITH_CHECK(loaded.has_value());
    std::filesystem::remove(path);
    return *loaded;
  }();
  return model;
}

inline EngineOptions TinyOptions(const std::string& recipe, size_t budget_bytes) {
  EngineOptions options;
  options.num_ctx = 1000;
  options.block_tokens = 64;
  options.num_threads = 1;
  options.max_sequences = 3;
  options.budget_bytes = budget_bytes;
  options.recipe = *ParseRecipe(recipe);
  return options;
}

struct Rooms {
  explicit Rooms(const EngineOptions& options) : core(TinyModel(), options) {
    PITH_CHECK(core.Init(&runner).has_value());
    runner.Init();
  }

  Sequence& New(size_t floor_bytes = 0, size_t ceiling_bytes = 0) {
    SequenceOptions options = core.options;
    options.floor_bytes = floor_bytes;
    options.ceiling_bytes = ceiling_bytes;
    const Result<SequenceId> made = table.New(options);
    PITH_CHECK(made.has_value());
    return *table.Lookup(*made);
  }
  Status Read(const Sequence& sequence, int num_tokens) {
    std::vector<int32_t> tokens;
    for (int i = 0; i < num_tokens; ++i) tokens.push_back((sequence.next_position + i) * 7 % 100 + 3);
    return steps.Prefill(sequence.id, tokens, false, nullptr, {});
  }
  std::vector<int32_t> Positions(const Sequence& sequence, int layer, int kv_head) const {
    const HeadCache& head = core.cache->head(sequence.cache_id, layer, kv_head);
    std::vector<int32_t> positions(static_cast<size_t>(head.num_entries()));
    head.ReadPositions(positions);
    std::ranges::sort(positions);
    return positions;
  }

  EngineCore core;
  std::atomic<bool> cancelled = false;
  Shrinker shrinker{core};
  Evictor evictor{core, shrinker};
  SequenceTable table{core, evictor};
  BlockRunner runner{core, table, evictor};
  SecondReader reader{core, runner, cancelled};
  BlockRereader rereader{core, shrinker, reader};
  Compressor compressor{core, table, shrinker, reader};
  TurnKeeper turns{core, compressor};
  Steps steps{core, table, runner, rereader, turns, cancelled};
};

}  // namespace pith::testing

#endif  // PITH_ENGINE_ROOMS_TEST_UTIL_H_
