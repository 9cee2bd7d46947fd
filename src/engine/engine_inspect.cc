// What is held of one token, head by head: for people who look at a cache.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/engine_impl.h"

namespace pith {

// False: there is nothing by which its recipe could judge entries now.
bool EngineImpl::CanJudge(const Sequence& sequence) {
  const Policy& policy = sequence.setup->policy();
  if (policy.keeps_everything() || policy.repeat() != nullptr) return false;
  return sequence.queries.window() == 0 || sequence.known_queries() > 0;
}

Result<std::vector<std::vector<EntryView>>> EngineImpl::EntriesAt(SequenceId id, int32_t position) {
  PITH_ASSIGN_OR_RETURN(const Sequence* const sequence, Find(id));
  if (position < 0 || position >= sequence->next_position) {
    return InvalidArgument(
        fmt::format("position {} is none of the {} that the sequence has read", position, sequence->next_position));
  }
  const ActiveRecipe& active = sequence->setup->active.front();
  const EntryGuard guard{.num_sinks = active.recipe.num_running_sinks};
  bool is_judged = CanJudge(*sequence);
  if (is_judged) {
    all_scores_.assign(static_cast<size_t>(num_global_layers_), {});
    context_->RunOnTeam([&](const Team& team) {
      for (int global = 0; global < num_global_layers_; ++global) {
        ops_->Score(*sequence, LayerOf(global), global, num_global_layers_, active, guard, team,
                    all_scores_[static_cast<size_t>(global)]);
        if (!ops_->score_failed()) continue;
        if (team.ith == 0) is_judged = false;
        return;
      }
    });
  }
  std::vector<std::vector<EntryView>> views(static_cast<size_t>(num_global_layers_));
  std::vector<int32_t> positions;
  for (int global = 0; global < num_global_layers_; ++global) {
    const std::span<const HeadCache> heads = std::as_const(*cache_).heads(sequence->cache_id, LayerOf(global));
    for (size_t h = 0; h < heads.size(); ++h) {
      EntryView& view = views[static_cast<size_t>(global)].emplace_back();
      positions.resize(static_cast<size_t>(heads[h].num_entries()));
      heads[h].ReadPositions(positions);
      const auto found = std::ranges::find(positions, position);
      if (found == positions.end()) continue;
      const PageLayout& layout = heads[h].layout_of(static_cast<int>(found - positions.begin()));
      view.held = true;
      view.format = layout.format;
      view.key_channels = layout.key_dim;
      view.pinned = guard.Guards(*sequence, position);
      if (!is_judged) continue;
      // Scores stand in the order of time.
      const std::vector<float>& scores = all_scores_[static_cast<size_t>(global)].heads[h];
      const auto before = std::ranges::count_if(positions, [position](int32_t other) { return other < position; });
      const float score = scores[static_cast<size_t>(before)];
      view.score = score;
      view.rank = static_cast<float>(std::ranges::count_if(scores, [score](float other) { return other < score; })) /
                  static_cast<float>(scores.size());
    }
  }
  return views;
}

}  // namespace pith
