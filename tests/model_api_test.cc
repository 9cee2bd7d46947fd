// The public interface: what is saved, restored or forked goes on as the original does.
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/paths.h"
#include "pith/pith.h"

namespace pith {
namespace {

constexpr GenerateOptions kGreedy = {.max_tokens = 8, .temperature = 0};

Result<Session> Open(int max_conversations) {
  return Session::Open(DefaultModelPath(),
                       {.recipe = "snapkv", .num_ctx = 512, .num_threads = 1, .max_conversations = max_conversations});
}

std::string Continue(Session& session, const std::string& prompt) {
  const auto generated = session.Generate(prompt, kGreedy);
  EXPECT_TRUE(generated) << generated.error().message;
  return generated ? generated->text : std::string();
}

TEST(ModelApi, SavedAndForkedConversationsGoOnAsTheOriginal) {
  const std::string path = ::testing::TempDir() + fmt::format("pith_api_{}", getpid());
  auto session = Open(2);
  ASSERT_TRUE(session) << session.error().message;
  Continue(*session, "The capital of Austria is");
  ASSERT_TRUE(session->Save(path));
  const std::string second = " The river that flows through it";
  std::string forked;
  {
    auto fork = session->Fork();
    ASSERT_TRUE(fork) << fork.error().message;
    const auto third = session->Fork();
    ASSERT_FALSE(third);
    EXPECT_EQ(third.error().code, ErrorCode::kOutOfBudget);
    forked = Continue(*fork, second);
  }
  EXPECT_TRUE(session->Fork()) << "a fork that has gone leaves its place";
  const std::string expected = Continue(*session, second);
  EXPECT_EQ(forked, expected);

  auto other = Open(1);
  ASSERT_TRUE(other) << other.error().message;
  EXPECT_NE(Continue(*other, second), expected) << "the control: without the beginning";
  const Status restored = other->Restore(path);
  ASSERT_TRUE(restored) << restored.error().message;
  EXPECT_EQ(Continue(*other, second), expected);

  const Status missing = other->Restore(path + ".missing");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_EQ(other->stats().num_tokens, 0);
  EXPECT_FALSE(Continue(*other, "Once upon a time").empty());
  unlink(path.c_str());
}

TEST(ModelApi, CancelEndsOneGeneration) {
  auto session = Open(1);
  ASSERT_TRUE(session) << session.error().message;
  int pieces = 0;
  const auto cancelled = session->Generate("Once upon a time", kGreedy, [&](std::string_view) {
    if (++pieces == 2) session->Cancel();
    return true;
  });
  ASSERT_FALSE(cancelled);
  EXPECT_EQ(cancelled.error().code, ErrorCode::kCancelled);
  EXPECT_EQ(pieces, 2);
  EXPECT_FALSE(Continue(*session, " there was").empty());
}

}  // namespace
}  // namespace pith
