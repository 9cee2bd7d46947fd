#include "lab/eval_html.h"

#include <string>
#include <string_view>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "lab/embedded.h"
#include "lab/jsonl.h"

namespace pith {
namespace {

using nlohmann::ordered_json;

// The data as a browser would read it.
ordered_json DataOf(const std::string& page) {
  constexpr std::string_view kBegin = "<script id=\"data\" type=\"application/json\">";
  const size_t begin = page.find(kBegin);
  EXPECT_NE(begin, std::string::npos);
  const size_t end = page.find("</script>", begin);
  return OrderedJsonOf(page.substr(begin + kBegin.size(), end - begin - kBegin.size()));
}

size_t Count(std::string_view text, std::string_view what) {
  size_t count = 0;
  for (size_t at = text.find(what); at != std::string_view::npos; at = text.find(what, at + 1)) ++count;
  return count;
}

TEST(EvalHtml, TextsCannotLeaveTheirPlace) {
  const std::string evil = "</script><script>alert(1)</script><!-- <b> & \xE2\x80\xA8 \xFF /*DATA*/ \"'";
  const ordered_json results = {{"model", evil}, {"items", {1, 2, 3}}, {"table", ordered_json::array()}};
  const ordered_json maps = {{"budgets", ordered_json::array()}, {"texts", {{{"id", evil}, {"pieces", {evil, "\n"}}}}}};
  const std::string page = ReportHtml(results, maps);
  const ordered_json data = DataOf(page);
  ASSERT_FALSE(data.is_discarded());
  // \xFF is no UTF-8 and comes back as U+FFFD; everything else as it was.
  std::string expected = evil;
  expected.replace(expected.find('\xFF'), 1, "\xEF\xBF\xBD");
  EXPECT_EQ(data["model"], expected);
  EXPECT_EQ(data["maps"]["texts"][0]["pieces"][0], expected);
  EXPECT_FALSE(data.contains("items"));
  EXPECT_EQ(Count(page, "<script"), 2u);
  EXPECT_EQ(Count(page, "</script>"), 2u);
  EXPECT_EQ(Count(page, "<!--"), 0u);
}

TEST(EvalHtml, PageNeedsNothingElse) {
  const std::string page(ReportPage());
  EXPECT_EQ(Count(page, "/*DATA*/"), 1u);
  EXPECT_TRUE(page.ends_with("</html>\n"));
  // The one address is the name of a namespace, which nothing fetches.
  EXPECT_EQ(Count(page, "http"), Count(page, "\"http://www.w3.org/2000/svg\""));
  for (const char* loads : {" src=", " href=", "@import", "url(", "fetch(", "XMLHttpRequest", "innerHTML"}) {
    EXPECT_EQ(Count(page, loads), 0u) << loads;
  }
  for (const char* place : {"plot-kl", "plot-nll", "plot-accuracy", "relative", "budget-map", "text"}) {
    EXPECT_EQ(Count(page, std::string("id=\"") + place + "\""), 1u) << place;
  }
}

// The program's own tasks are whole and of many kinds.
TEST(EvalHtml, OwnTasksParse) {
  const auto tasks = ParseTasks(OwnTasks(), "own");
  ASSERT_TRUE(tasks) << tasks.error().message;
  EXPECT_GE(tasks->size(), 20u);
  EXPECT_LT(OwnTasks().size(), 300'000u);
  size_t pinned = 0, lengthy = 0;
  for (const Task& task : *tasks) {
    pinned += !task.pinned_text.empty();
    lengthy += !task.long_text.empty();
  }
  EXPECT_GT(pinned, 0u);
  EXPECT_GT(lengthy, 0u);
}

}  // namespace
}  // namespace pith
