// What stages that come through the C interface have in common: a layer as C sees it, parameters, checks.
#ifndef PITH_SESSION_C_API_STAGE_VIEW_H_
#define PITH_SESSION_C_API_STAGE_VIEW_H_

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "policy/registry.h"
#include "session/c_api/support.h"

namespace pith::c_api {

inline constexpr int kDefaultWindow = 32;
inline constexpr int kLargestWindow = 4096;
inline constexpr uint32_t kWindowNeeds = kNeedWindowProbs | kNeedWindowQueries;
inline constexpr uint32_t kObserveNeeds = kNeedEveryQuery | kNeedRepeat;
inline constexpr uint32_t kStatisticNeeds = kNeedSquares | kNeedLargest;
// Of stages that observe nothing.
inline constexpr uint32_t kPlainNeeds =
    kNeedKeys | kNeedValues | kNeedValueNorms | kNeedQueryMoments | kWindowNeeds;

// What a program has registered, for all recipes that name it.
struct OutsideStage {
  std::string word;  // "mod=name"
  void* user = nullptr;
  uint32_t needs = 0;
  int window = 0;  // 0: looks at none of its own
  std::vector<std::string> param_names;

  std::vector<double> Values(const Params& params) const;
};

// The parameters' texts are the caller's, for RegisterScorer() and its like to copy.
Result<std::vector<ParamSpec>> ReadParams(const pith_param* params, size_t count, OutsideStage& stage);

// Of a stage that observes nothing. kInvalidArgument.
Status CheckPlainNeeds(uint32_t needs, int window, std::string_view what);

// kInvalidArgument: a score is no number that can be compared.
Status CheckScores(std::string_view word, int layer, int head, std::span<const float> scores);

// pith_layer_input::internal, in a scorer.
struct Within {
  const LayerInputs* inputs;
  const Aggregator* aggregator;
  int window;
};

// One layer as C sees it. within, remembered: may be null.
class LayerView {
 public:
  LayerView(const LayerInputs& inputs, const std::vector<double>& params, const Within* within,
            float* const* remembered = nullptr);
  LayerView(const LayerView&) = delete;
  const pith_layer_input* get() const { return &layer_; }

 private:
  std::vector<pith_head_input> heads_;
  std::vector<const pith_head_input*> pointers_;
  std::vector<pith_rotated_pair> rotation_;
  pith_layer_input layer_;
};

}  // namespace pith::c_api

#endif  // PITH_SESSION_C_API_STAGE_VIEW_H_
