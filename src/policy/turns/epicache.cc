// EpiCache (arXiv:2509.17396; github.com/apple/ml-epicache): the conversation is read block by block, and after each
// block a text that stands for a topic is read too, whose attention decides what stays; that text is then dropped. A
// cache for each topic, of which a question takes the nearest (session/episodes.h). Without a conversation around it
// the sequence's own newest tokens are that text.
//
// Differences: the text begins at the next position (the code: at the block's last), softmax in float32, the bare
// question is embedded. Blocks are evicted when there is no room for another one, so that the first ones cost nothing.
#include "policy/stage.h"
#include "policy/turns/turns.h"

namespace pith {

StageInfo<TurnOptions> EpiCacheTurnsStage() {
  return {"a cache for each topic of the conversation, evicted block by block by what a text of that topic looks at",
          {TextParam("embedder", "a GGUF embedding model; without it the model's own input embeddings"),
           IntParam("episodes", 4, 1, 64, "topics, each with a cache of its own"),
           IntParam("block", 512, 32, 65536, "tokens between evictions"),
           IntParam("utterances", 4, 1, 64, "messages of a segment, which is what is clustered"),
           IntParam("represent", 8, 1, 256, "segments that stand for a topic"),
           ChoiceParam("match", "dot|cosine", "how a question finds its topic")},
          [](const Params& p) -> std::unique_ptr<TurnOptions> {
            return std::make_unique<TurnOptions>(TurnOptions{.method = TurnMethod::kEpiCache,
                                                             .episodes = p.Int("episodes"),
                                                             .block = p.Int("block"),
                                                             .utterances = p.Int("utterances"),
                                                             .representatives = p.Int("represent"),
                                                             .cosine = p.Choice("match") == 1,
                                                             .embedder = p.Word("embedder")});
          }};
}

}  // namespace pith
