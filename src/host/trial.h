// Work that may end the process, done in a child first.
#ifndef PITH_HOST_TRIAL_H_
#define PITH_HOST_TRIAL_H_

#include <cstddef>
#include <functional>
#include <string>

#include "pith/types.h"

namespace pith {

struct TrialLimits {
  size_t memory_bytes = 0;  // beyond what this process has now
  int cpu_seconds = 0;
  int wall_seconds = 0;  // 0: without an end. Of a child that waits and computes nothing
};

// What a file of that size may take: twice its bytes and what libllama needs around any model; the time to read it,
// also from a slow disk.
TrialLimits LimitsForFile(size_t file_bytes);

// Runs `work` in a forked child under the limits and returns its status, so that an abort, a crash, a leak or an
// endless loop in it becomes kCorrupt with one sentence that begins with `what`. `keep_waiting` is called about 20
// times a second; false ends the child (kCancelled). Nothing that `work` does remains but its status.
//
// Other threads do not exist in the child: `work` must neither wait for them nor use thread pools that they belong to.
// Where one of them held a lock just then, such as that of malloc, the child waits for it until its time is over.
// kIo: no child can be made, or its time is over.
Status TryInChild(const std::string& what, const TrialLimits& limits, const std::function<Status()>& work,
                  const std::function<bool()>& keep_waiting);

// From here on an abort inside ggml ends the program with one sentence on standard error and exit code 1, in place of a
// stack trace and a signal. For programs, not for libraries.
void ExitOnGgmlAbort();

}  // namespace pith

#endif  // PITH_HOST_TRIAL_H_
