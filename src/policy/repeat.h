// A prompt that is read once more, so that its entries can be judged by the attention that the model pays while it
// repeats its own context (KVzip, arXiv:2505.23416). The engine does the reading, a scorer observes it.
#ifndef PITH_POLICY_REPEAT_H_
#define PITH_POLICY_REPEAT_H_

namespace pith {

struct RepeatOptions {
  int chunk = 2000;  // tokens of the context that one pass repeats
  int overlap = 8;   // last tokens of the chunk before, by which a pass is told where to begin
  bool whole = false;  // a pass sees the whole context, as the authors' does; else its chunk and what begins the prompt
  // Not the prompt is read again but one text after it (Engine::SetGuide()), whose attention over all of the cache is
  // observed. chunk: of the newest tokens, where there is no such text.
  bool guided = false;
  // A prompt that is read block by block: each block is repeated before the next one makes entries go, and what was
  // found of an entry stays with it.
  bool by_blocks = false;
  // Beside that: most blocks are judged as they come, by what their own queries would pay if the block came once more
  // (engine/block_echo.h), and are not repeated.
  bool by_echo = false;

  bool operator==(const RepeatOptions&) const = default;
};

// In such a column: its entry has not been repeated yet. Attention is at most 1.
inline constexpr float kNotRepeated = 2;

}  // namespace pith

#endif  // PITH_POLICY_REPEAT_H_
