// Largest attention that a text pays to the entries, when it is read after them and dropped again (EpiCache,
// arXiv:2509.17396, steps 7 and 8; github.com/apple/ml-epicache attention/score.py): maximum over the text's queries
// and the GQA group. The softmax is over the cached entries alone, in float32 (the code: the model's type). The engine
// takes the text from Engine::SetGuide(), or the newest tokens where there is none.
#include "policy/score/largest_repeated.h"

namespace pith {

StageInfo<Scorer> GuideStage() {
  return {"largest attention of a text that stands for what will be asked",
          {IntParam("tokens", 256, 16, 4096, "of the newest ones, where no such text is given")},
          [](const Params& p) -> std::unique_ptr<Scorer> {
            const RepeatOptions repeat{.chunk = p.Int("tokens"), .overlap = 0, .guided = true};
            return std::make_unique<LargestRepeated>(repeat, "largest_guided");
          }};
}

}  // namespace pith
