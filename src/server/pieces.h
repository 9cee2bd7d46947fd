// Pieces of a text that stand in another one, too: what is left of a prompt after an edit.
#ifndef PITH_SERVER_PIECES_H_
#define PITH_SERVER_PIECES_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace pith::server {

struct Piece {
  size_t at = 0;    // first token in the text
  size_t from = 0;  // and in the other one
  size_t count = 0;

  size_t end() const { return at + count; }
  bool operator==(const Piece&) const = default;
};

// Of text[begin, end), pieces of at least `least` tokens (at least 1) that `other` has, too, each within one of
// `ranges` [from, to) of it, in the order in which both have them. What was inserted, left out or replaced may lie
// between two. O(text + other log other) for texts that do not repeat themselves.
std::vector<Piece> FindPieces(std::span<const int32_t> text, size_t begin, size_t end, std::span<const int32_t> other,
                              std::span<const std::pair<int32_t, int32_t>> ranges, size_t least);

size_t TokensOf(std::span<const Piece> pieces);

// What of them lies behind the first `done` tokens of the text.
void DropBefore(size_t done, std::vector<Piece>& pieces);

}  // namespace pith::server

#endif  // PITH_SERVER_PIECES_H_
