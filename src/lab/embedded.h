// Files that are part of the program, so that it needs none beside it.
#ifndef PITH_LAB_EMBEDDED_H_
#define PITH_LAB_EMBEDDED_H_

#include <string_view>

namespace pith {

// eval/tasks.jsonl: the tasks of `pith eval` without --tasks.
std::string_view OwnTasks();
// eval/recipes.json: what `pith tune recipe` has measured on the default model, for --recipe auto.
std::string_view OwnRecipes();
// The page of `pith eval --html`, with one place for the data.
std::string_view ReportPage();
// The page of `pith sim --html`, likewise.
std::string_view SimPage();

}  // namespace pith

#endif  // PITH_LAB_EMBEDDED_H_
