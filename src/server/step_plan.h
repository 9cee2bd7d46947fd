// Which rows of prompts go into a step, without an engine: pure functions of what was measured.
//
// A step that reads a piece of a prompt beside running decodes takes longer, and every one of them waits for it. With
// time linear in rows, steps that are all g times as long as those of decodes alone leave prompts (g - 1) / g of the
// time: half of it at twice the gap. So prompts are read in fewer and larger pieces, which are cheaper by the row too:
//
//   | d |  d + piece     | d | d |  d + piece     | d |  d + piece     | d | d |     d: a step of decodes alone
//
// Fewer than half of the steps carry a piece, so that the gap between tokens is d in the median. How long a piece may
// take follows from what prompts are owed: what they should have had of the time so far, less what they had. So a slow
// step of decodes makes the next piece longer, and a piece that took longer than was foreseen makes it shorter.
//
// Time is not linear in rows: from some number of rows on, products unpack all weights first, whatever the number. So
// costs are measured for each size of piece, and of the sizes that are short enough the one is taken with which a
// prompt gets on fastest, the steps between two pieces included.
#ifndef PITH_SERVER_STEP_PLAN_H_
#define PITH_SERVER_STEP_PLAN_H_

#include <array>
#include <span>
#include <vector>

namespace pith::server {

// Divides `rows` among prompts that lack so many tokens each, in the order of their turns. The first gets half of them
// (as far as it wants so many) and so is never starved; the rest goes to those that lack least, so that a short prompt
// does not wait for a long one. What nobody else wants is the first one's, too. The sum is min(rows, sum of wanted).
std::vector<int> DivideRows(std::span<const int> wanted, int rows);

// What a row of a piece costs, by the piece's size.
class PieceCosts {
 public:
  void Note(int rows, double seconds);
  bool empty() const;
  // Of pieces like one of so many rows. Where none was measured, of smaller ones, else of larger ones. What was
  // measured long ago is believed to have become less, until it is tried again.
  double RowSeconds(int rows) const { return RowSecondsOf(SizeOf(rows)); }
  // At most `most` rows that take at most `seconds`: those with which a prompt gets on fastest if a piece is read every
  // `between` seconds beside its own time. 0: fewer than kLeastPiece.
  int Fastest(int most, double seconds, double between) const;

  static constexpr int kLeastPiece = 8;  // less is not worth a pass

 private:
  static constexpr int kNumSizes = 30;  // each a quarter as large again as the one before
  static int SizeOf(int rows);
  static int LeastOf(int size);
  double RowSecondsOf(int size) const;

  struct Cost {
    double row_seconds = 0;  // 0: not measured
    int age = 0;             // pieces of other sizes since it was
  };
  std::array<Cost, kNumSizes> costs_;
};

// How many rows of prompts the next step may have.
class PromptPacer {
 public:
  // share: of the time while prompts are read beside running decodes, (0, 1]; 1: prompts as fast as it goes.
  // block_tokens: rows of a step at most.
  PromptPacer(double share, int block_tokens) : share_(share), block_tokens_(block_tokens) {}

  // Of a prompt, in large pieces; 0: nothing was measured yet.
  double RowSeconds() const { return costs_.RowSeconds(block_tokens_); }
  // Beside num_decodes running ones, while prompts wait to be read. 0: decodes alone.
  int Rows(int num_decodes) const;
  // A step took so long. num_decodes: rows of decodes in it; running: decodes there are, in this step or not.
  // prompts_wait: there were prompts to be read, whether the step read of them or not.
  void Note(int num_decodes, int prompt_rows, double seconds, int running, bool prompts_wait);
  // Behind such a step prompts had so much time without reading any rows.
  void NoteBeside(double seconds, int running);

 private:
  void Owe(double seconds);
  // No piece is planned to hold running decodes up for longer.
  double LongestSeconds() const;

  const double share_;
  const int block_tokens_;
  double decode_seconds_ = 0;  // of a step of decodes alone; 0: not measured yet
  PieceCosts costs_;
  double owed_seconds_ = 0;  // to prompts; < 0: they had too much
  int turns_ = 0;            // steps so far that had no piece, beyond those that must not have one
};

}  // namespace pith::server

#endif  // PITH_SERVER_STEP_PLAN_H_
