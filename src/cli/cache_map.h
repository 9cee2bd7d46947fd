// What a sequence's cache keeps of its text, as lines of a terminal.
#ifndef PITH_CLI_CACHE_MAP_H_
#define PITH_CLI_CACHE_MAP_H_

#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace pith::cli {

// Of each position that the sequence has read, the share of heads (in layers that recipes act on) that hold it.
std::vector<double> KeptByPosition(const Engine& engine, SequenceId sequence);

// A stretch of the text, from its first position on; the next one begins where it ends.
struct MapRow {
  int from = 0;
  std::string label;
};

// One line for each row: label, shades of what is kept from its first token to its last, and the share. Rows ascend.
std::string DrawCacheMap(std::span<const double> kept, std::span<const MapRow> rows);

}  // namespace pith::cli

#endif  // PITH_CLI_CACHE_MAP_H_
