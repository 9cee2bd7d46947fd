// Largest attention that the model pays to an entry while it repeats its own context (KVzip, arXiv:2505.23416,
// steps 3 to 8; github.com/snu-mllab/KVzip attention/score.py): maximum over the queries of the repeat pass and
// the GQA group. alloc=global is the paper's level `pair`, alloc=uniform `pair-uniform`, alloc=heads `head`.
//
// Of an observation, the probabilities are a softmax over prefix, chunk and repeated text alone, in float32 where the
// authors' code has the model's type. The prefix is what is pinned at the front: the first tokens here, the system
// prompt where the caller pins it. It is part of the total that stays, the authors count the context apart.
//
// sight=chunk: a pass attends to just the entries of that softmax, so that nothing is computed twice; where one chunk
// is all of the context, that is what sight=whole and the authors' code do.
//
// read=blocks, ours: nothing in this needs the whole prompt. Each block is repeated before the next one makes entries
// go, over what the cache holds then; an entry keeps the score that its block's repetition gave it, and blocks' entries
// compete by these.
//
// read=echo, ours: a block's queries, turned on past its end, look at its entries and at copies of them that stand
// where a repetition's would. No token is read twice, but those that are written, or come in blocks of a few.
#include "policy/score/largest_repeated.h"

namespace pith {
namespace {

constexpr int kSinks = 4;

}  // namespace

StageInfo<Scorer> KvZipStage() {
  return {"largest attention while the model repeats its own context",
          {IntParam("chunk", 2000, 64, 65536, "tokens that one pass repeats"),
           IntParam("overlap", 8, 0, 64, "tokens of the chunk before, which say where a pass begins"),
           ChoiceParam("sight", "chunk|whole", "what a pass over one of several chunks sees of the context"),
           ChoiceParam("read", "whole|blocks|echo",
                       "when it is read again: whole, or each block before the next one; by echo it hardly is")},
          [](const Params& p) -> std::unique_ptr<Scorer> {
            const RepeatOptions repeat{.chunk = p.Int("chunk"),
                                       .overlap = p.Int("overlap"),
                                       .whole = p.Choice("sight") == 1,
                                       .by_blocks = p.Choice("read") >= 1,
                                       .by_echo = p.Choice("read") == 2};
            return std::make_unique<LargestRepeated>(repeat, std::string(kLargestAttention));
          },
          kSinks};
}

}  // namespace pith
