#include "cli/read_tasks.h"

#include <algorithm>

#include "cli/command.h"
#include "lab/embedded.h"
#include "lab/eval_log.h"

namespace pith::cli {

Result<std::vector<Task>> ReadTasks(const std::string& path, const std::string& lengths, std::string& fingerprint) {
  std::string text(OwnTasks());
  if (!path.empty()) {
    PITH_ASSIGN_OR_RETURN(text, ReadFile(path));
  }
  fingerprint = Fingerprint(text);
  PITH_ASSIGN_OR_RETURN(std::vector<Task> tasks, ParseTasks(text, NameOfTasks(path)));
  if (lengths.empty()) return tasks;
  PITH_ASSIGN_OR_RETURN(const std::vector<int> wanted, ParseIntegers(lengths, "--lengths", 1, 100'000'000));
  std::erase_if(tasks, [&](const Task& task) { return std::ranges::find(wanted, task.length) == wanted.end(); });
  return tasks;
}

}  // namespace pith::cli
