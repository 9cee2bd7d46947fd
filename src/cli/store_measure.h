// pith store bench and compare: what loading saves, and what placement by EVICPRESS adds.
#ifndef PITH_CLI_STORE_MEASURE_H_
#define PITH_CLI_STORE_MEASURE_H_

#include <cstdint>
#include <string>

#include "cli/command.h"
#include "pith/types.h"

namespace pith::cli {

struct StoreBenchFlags {
  ModelFlags model;
  OutputFlags out;
  std::string folder;
  std::string server;                     // bench: URL of one; empty: none
  std::string text;                       // of contexts; empty: pseudo-text
  std::string ctx = "250,500,1000,2000,4000";
  std::string recipe = "keydiff";
  std::string save_format = "exact";
  double keep = 0.2;
  double loss = 0.03;
  int repeat = 5;
  int contexts = 12;
  int requests = 48;
  double ram_share = 0.2;
};

// Time to the first token of prefixes of several lengths: read, from memory, from disk, from a server; and the disk's
// throughput.
Result<int> BenchStore(const StoreBenchFlags& flags);
// Requests for contexts of several lengths under one budget of memory: full prefill, LRU offload, one compressor and
// LRU, EVICPRESS.
Result<int> CompareStores(const StoreBenchFlags& flags);

}  // namespace pith::cli

#endif  // PITH_CLI_STORE_MEASURE_H_
