// Does a model give the same logits in pith as in libllama?
//
// Four readers go through the same tokens: libllama with flash attention off
// (the reference), libllama with flash attention on (whose distance from the
// reference is the noise floor), pith with the recipe `full`, and the control,
// libllama's own attention over each block alone. If attention over the history
// mattered too little for a mistake in it to show, the control would be near.
#ifndef PITH_TESTS_SUPPORT_MODEL_PARITY_H_
#define PITH_TESTS_SUPPORT_MODEL_PARITY_H_

#include <memory>
#include <string>
#include <vector>

#include "host/model.h"
#include "lab/measure.h"
#include "pith/types.h"

namespace pith::testing {

// Tokens given together: `count` of one sequence, or one of each of several sequences.
struct ReadingStep {
  std::vector<int> sequences;
  int count = 1;
  bool decode = false;  // through Engine::Decode or DecodeBatch, else Engine::Prefill
};
using Reading = std::vector<ReadingStep>;

Reading OneBlock(int num_tokens);
// Blocks of sizes that visit ends of pages and of windows from all sides, never more than `most`.
Reading UnevenBlocks(int num_tokens, int most);
// A first block, then token by token.
Reading TokenByToken(int num_tokens, int first_block);
// Two sequences in uneven blocks in turn, then token by token: in one batch, or in turn for models
// with recurrent layers, whose blocks hold one sequence.
Reading TwoSequences(int num_tokens_each, int num_decoded, bool hybrid);

struct Parity {
  DifferenceSum pith;
  DifferenceSum floor;
  DifferenceSum control;

  // Twice the floor, in the mean KL (plus 1e-10, the resolution of float logits) and in the largest
  // difference of a logit.
  bool exact() const;
  // The control is at least 30 times as far away as pith.
  bool telling() const;
  std::string ToString() const;
};

// kUnsupported, kIo: a reader failed. kCorrupt: logits that are not finite.
Result<Parity> CompareReaders(const std::shared_ptr<HostModel>& model, const Reading& reading, int num_threads,
                              uint32_t seed);

}  // namespace pith::testing

#endif  // PITH_TESTS_SUPPORT_MODEL_PARITY_H_
