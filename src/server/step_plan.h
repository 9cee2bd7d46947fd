// Which rows of prompts go into a step, without an engine: pure functions of what was measured.
//
// A step that reads a piece of a prompt beside running decodes takes longer, and every one of them waits for it. With
// time linear in rows, steps that are all g times as long as those of decodes alone leave prompts (g - 1) / g of the
// time: half of it at twice the gap. So prompts are read in fewer and larger pieces, which are cheaper by the row too:
//
//   | d |  d + piece     | d | d |  d + piece     | d |  d + piece     | d | d |     d: a step of decodes alone
//
// Fewer than half of the steps carry a piece, so that the gap between tokens is d in the median, and prompts have
// their share of the engine's time.
#ifndef PITH_SERVER_STEP_PLAN_H_
#define PITH_SERVER_STEP_PLAN_H_

#include <span>
#include <vector>

namespace pith::server {

// Divides `rows` among prompts that lack so many tokens each, in the order in which they came. The oldest gets at least
// half of them (as far as it wants so many) and so is never starved; the rest is shared evenly, so that a short prompt
// does not wait for a long one. The sum is min(rows, sum of wanted).
std::vector<int> DivideRows(std::span<const int> wanted, int rows);

// How many rows of prompts the next step may have.
class PromptPacer {
 public:
  // share: of the time while prompts are read beside running decodes, (0, 1]; 1: prompts as fast as it goes.
  // block_tokens: rows of a step at most.
  PromptPacer(double share, int block_tokens) : share_(share), block_tokens_(block_tokens) {}

  // Beside num_decodes running ones, while prompts wait to be read. 0: decodes alone.
  int Rows(int num_decodes) const;
  // A step took so long. num_decodes: rows of decodes in it; running: decodes there are, in this step or not.
  // prompts_wait: there were prompts to be read, whether the step read of them or not.
  void Note(int num_decodes, int prompt_rows, double seconds, int running, bool prompts_wait);

  double decode_seconds() const { return decode_seconds_; }
  double row_seconds() const { return row_seconds_; }

 private:
  const double share_;
  const int block_tokens_;
  double decode_seconds_ = 0;  // of a step of decodes alone; 0: not measured yet
  double row_seconds_ = 0;     // that a row of a prompt adds to a step; 0: not measured yet
  double debt_seconds_ = 0;    // that prompts had beyond their share
};

}  // namespace pith::server

#endif  // PITH_SERVER_STEP_PLAN_H_
