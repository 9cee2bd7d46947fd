#include "server/pieces.h"

#include <algorithm>

namespace pith::server {
namespace {

// Places of one stretch that are tried: texts that say the same again and again have many.
constexpr size_t kMostPlaces = 8;
constexpr uint64_t kBase = 0x9e3779b97f4a7c15;

// Of the stretch of so many tokens at a place that moves on by one (Karp and Rabin, 1987).
class RollingHash {
 public:
  RollingHash(std::span<const int32_t> text, size_t at, size_t length) : text_(text), at_(at), length_(length) {
    for (size_t i = at; i < at + length; ++i) Take(i), power_ *= kBase;
  }
  uint64_t value() const { return value_; }
  size_t at() const { return at_; }
  // False: this is the last one.
  bool Advance() {
    if (at_ + length_ >= text_.size()) return false;
    Take(at_ + length_);
    value_ -= power_ * Number(at_++);
    return true;
  }

 private:
  uint64_t Number(size_t i) const { return static_cast<uint64_t>(static_cast<uint32_t>(text_[i])) + 1; }
  void Take(size_t i) { value_ = value_ * kBase + Number(i); }

  std::span<const int32_t> text_;
  size_t at_, length_;
  uint64_t power_ = 1, value_ = 0;
};

struct Place {
  uint64_t hash = 0;         // of the stretch that begins there
  size_t from = 0, end = 0;  // end: of the range that it lies in

  std::pair<uint64_t, size_t> Order() const { return {hash, from}; }
};

}  // namespace

std::vector<Piece> FindPieces(std::span<const int32_t> text, size_t begin, size_t end, std::span<const int32_t> other,
                              std::span<const std::pair<int32_t, int32_t>> ranges, size_t least) {
  std::vector<Piece> pieces;
  if (least == 0 || end < begin + least) return pieces;
  std::vector<Place> places;  // by hash, then as they stand in `other`
  for (const auto& [first, last] : ranges) {
    const auto from = static_cast<size_t>(first), to = std::min(static_cast<size_t>(last), other.size());
    if (to < from + least) continue;
    RollingHash hash(other.first(to), from, least);
    do {
      places.push_back({hash.value(), hash.at(), to});
    } while (hash.Advance());
  }
  std::ranges::sort(places, {}, &Place::Order);
  const std::span<const int32_t> looked = text.first(end);
  size_t next = 0;  // of `other`: what lies before is behind the last piece
  const auto longest = [&](const RollingHash& hash) {
    Piece best{.at = hash.at()};
    auto place = std::ranges::lower_bound(places, std::pair(hash.value(), next), {}, &Place::Order);
    const auto is_it = [&] { return place != places.end() && place->hash == hash.value(); };
    for (size_t tried = 0; is_it() && tried < kMostPlaces; ++place, ++tried) {
      const auto a = looked.subspan(hash.at()), b = other.first(place->end).subspan(place->from);
      const auto same = static_cast<size_t>(std::ranges::mismatch(a, b).in1 - a.begin());
      if (same >= least && same > best.count) best.from = place->from, best.count = same;
    }
    return best;
  };
  for (size_t at = begin; at + least <= end;) {
    RollingHash hash(looked, at, least);
    Piece piece = longest(hash);
    while (piece.count == 0 && hash.Advance()) piece = longest(hash);
    if (piece.count == 0) break;
    pieces.push_back(piece);
    next = piece.from + piece.count;
    at = piece.end();
  }
  return pieces;
}

size_t TokensOf(std::span<const Piece> pieces) {
  size_t tokens = 0;
  for (const Piece& piece : pieces) tokens += piece.count;
  return tokens;
}

void DropBefore(size_t done, std::vector<Piece>& pieces) {
  std::erase_if(pieces, [done](const Piece& piece) { return piece.end() <= done; });
  if (pieces.empty() || pieces.front().at >= done) return;
  Piece& first = pieces.front();
  const size_t cut = done - first.at;
  first.at += cut, first.from += cut, first.count -= cut;
}

}  // namespace pith::server
