#include "lab/embedded.h"

#include "base/embed.h"

// CMake says where they are, and that this depends on them.
PITH_EMBED(pith_own_tasks, PITH_OWN_TASKS);
PITH_EMBED(pith_own_recipes, PITH_OWN_RECIPES);
PITH_EMBED(pith_report_page, PITH_REPORT_PAGE);
PITH_EMBED(pith_sim_page, PITH_SIM_PAGE);

namespace pith {

std::string_view OwnTasks() { return {pith_own_tasks_begin, pith_own_tasks_end}; }
std::string_view OwnRecipes() { return {pith_own_recipes_begin, pith_own_recipes_end}; }
std::string_view ReportPage() { return {pith_report_page_begin, pith_report_page_end}; }
std::string_view SimPage() { return {pith_sim_page_begin, pith_sim_page_end}; }

}  // namespace pith
