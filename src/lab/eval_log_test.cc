#include "lab/eval_log.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "base/text.h"

namespace pith {
namespace {

EvalRow Row(const std::string& id, double keep) {
  EvalRow row;
  row.id = id;
  row.task = "facts";
  row.length = 512;
  row.tokens = 500;
  row.policy = "snapkv";
  row.keep = keep;
  row.kept = keep;
  row.nll = 1.0 / 3;
  row.ok = true;
  return row;
}

class EvalLogTest : public testing::Test {
 protected:
  EvalLogTest() : path_(testing::TempDir() + "/eval_log_" + std::to_string(::getpid()) + ".jsonl") {
    std::filesystem::remove(path_);
  }
  ~EvalLogTest() override { std::filesystem::remove(path_); }
  std::string Text() const { return *ReadFile(path_); }
  void Write(const std::string& text) const { std::ofstream(path_) << text; }

  const std::string path_;
  const nlohmann::ordered_json run_ = {{"model", "m"}, {"mode", "agnostic"}};
};

TEST_F(EvalLogTest, RowsComeBackExactly) {
  {
    const auto log = EvalLog::Open(path_, run_);
    ASSERT_TRUE(log) << log.error().message;
    ASSERT_TRUE((*log)->Append(Row("a\"\\\n", 0.5)));
    EvalRow lengthy = Row("b", 0.2);
    lengthy.long_nll = 2.25;
    lengthy.long_kl = 0.125;
    ASSERT_TRUE((*log)->Append(lengthy));
  }
  const auto log = EvalLog::Open(path_, run_);
  ASSERT_TRUE(log) << log.error().message;
  ASSERT_EQ((*log)->rows().size(), 2u);
  EXPECT_EQ((*log)->rows()[0].id, "a\"\\\n");
  EXPECT_EQ((*log)->rows()[0].nll, 1.0 / 3);
  EXPECT_TRUE((*log)->rows()[0].ok);
  EXPECT_LT((*log)->rows()[0].long_nll, 0);
  EXPECT_EQ((*log)->rows()[1].long_nll, 2.25);
}

// Whatever byte a kill cut the file at, whole rows are read and the file can be continued.
TEST_F(EvalLogTest, AnyTornEndIsMended) {
  {
    const auto log = EvalLog::Open(path_, run_);
    ASSERT_TRUE((*log)->Append(Row("a", 0.5)));
    ASSERT_TRUE((*log)->Append(Row("b", 0.5)));
  }
  const std::string whole = Text();
  for (size_t cut = 0; cut <= whole.size(); ++cut) {
    Write(whole.substr(0, cut));
    size_t rows = 0;
    {
      const auto log = EvalLog::Open(path_, run_);
      ASSERT_TRUE(log) << cut << ": " << log.error().message;
      rows = (*log)->rows().size();
      ASSERT_TRUE((*log)->Append(Row("c", 0.1)));
    }
    const auto log = EvalLog::Open(path_, run_);
    ASSERT_TRUE(log) << cut << ": " << log.error().message;
    ASSERT_EQ((*log)->rows().size(), rows + 1) << cut;
    EXPECT_EQ((*log)->rows().back().id, "c");
  }
}

TEST_F(EvalLogTest, RefusesWhatIsNotItsOwn) {
  const std::string strangers[] = {"my diary", "my diary\n", "{}\n", "[1]\n",
                                   "{\"pith_eval\":1,\"model\":\"m\",\"mode\":\"agnostic\"}\n{\"id\":\"a\"}\n"};
  for (const std::string& text : strangers) {
    Write(text);
    const auto log = EvalLog::Open(path_, run_);
    ASSERT_FALSE(log) << text;
    EXPECT_EQ(log.error().code, ErrorCode::kCorrupt) << text;
    EXPECT_EQ(Text(), text) << "must be left as it was";
  }
  Write("{\"pith_eval\":1,\"model\":\"m\",\"mode\":\"aware\"}\n");
  const auto log = EvalLog::Open(path_, run_);
  ASSERT_FALSE(log);
  EXPECT_NE(log.error().message.find("another mode"), std::string::npos);
  EXPECT_FALSE(EvalLog::Open("/nonexistent/folder/rows.jsonl", run_));
}

TEST_F(EvalLogTest, FingerprintTellsTextsApart) {
  EXPECT_EQ(Fingerprint("").size(), 16u);
  EXPECT_EQ(Fingerprint("abc"), Fingerprint("abc"));
  EXPECT_NE(Fingerprint("abc"), Fingerprint("abd"));
}

}  // namespace
}  // namespace pith
