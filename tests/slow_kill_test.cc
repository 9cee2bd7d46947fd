// A process that is killed while it saves a session: the file is always a whole one, the one before or the new one.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "tests/support/default_model.h"

namespace pith {
namespace {

constexpr int kTries = 200;

TEST(SlowKill, ASavedSessionIsAlwaysWhole) {
  EngineOptions options;
  options.num_ctx = 1024;
  options.num_threads = testing::kThreads;
  options.recipe = *ParseRecipe("flowkv");
  const auto model = testing::DefaultModel();
  auto engine = Engine::Create(model, options);
  ASSERT_TRUE(engine);
  const SequenceId id = *(*engine)->NewSequence();
  auto tokens = model->Tokenize(std::string(1500, 'a') + " and the river ran on.", true, false);
  ASSERT_TRUE(tokens);
  tokens->resize(std::min<size_t>(tokens->size(), 300));
  ASSERT_TRUE((*engine)->Prefill(id, *tokens));
  std::string pattern = ::testing::TempDir() + "pith-kill-XXXXXX";
  ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
  const std::string path = pattern + "/session";
  ASSERT_TRUE((*engine)->Save(id, path, {.tokens = {}, .text = "0"}));
  const std::vector<int32_t> positions = (*engine)->EntryPositions(id, 3, 1);
  std::mt19937 random(7);  // NOLINT: a fixed seed is meant
  int num_new = 0;
  std::string before = "0";
  EngineOptions other = options;
  auto reader = Engine::Create(model, other);
  ASSERT_TRUE(reader);
  for (int i = 1; i <= kTries; ++i) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {  // writes until it is killed; saving needs no other thread
      for (int save = 0;; ++save) {
        if (!(*engine)->Save(id, path, {.tokens = {}, .text = std::to_string(i) + "." + std::to_string(save)}))
          ::_exit(1);
      }
    }
    ::usleep(static_cast<useconds_t>(random() % 25000));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "it ended by itself: a save failed";
    const Result<RestoredSequence> restored = (*reader)->Restore(path);
    ASSERT_TRUE(restored) << "try " << i << ": " << restored.error().message;
    const std::string& text = restored->note.text;
    EXPECT_TRUE(text == before || text.starts_with(std::to_string(i) + ".")) << text << " after " << before;
    num_new += text != before ? 1 : 0;
    before = text;
    EXPECT_EQ((*reader)->EntryPositions(restored->sequence, 3, 1), positions);
    (*reader)->Free(restored->sequence);
  }
  EXPECT_GT(num_new, kTries / 10) << "some were killed late enough to have written";
  std::filesystem::remove_all(pattern);
}

}  // namespace
}  // namespace pith
