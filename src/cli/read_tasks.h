// Tasks as commands take them: of a file, or pith's own, of some lengths.
#ifndef PITH_CLI_READ_TASKS_H_
#define PITH_CLI_READ_TASKS_H_

#include <string>
#include <vector>

#include "lab/jsonl.h"
#include "pith/types.h"

namespace pith::cli {

inline std::string NameOfTasks(const std::string& path) { return path.empty() ? "the set of tasks" : path; }

// lengths: between commas, empty for all. fingerprint: of the whole text.
Result<std::vector<Task>> ReadTasks(const std::string& path, const std::string& lengths, std::string& fingerprint);

}  // namespace pith::cli

#endif  // PITH_CLI_READ_TASKS_H_
