// Decoding allocates nothing of ours.
//
// Every allocation of the program passes through here. What a thread allocates
// while it runs pith's own code (base/own_code.h) is counted; libllama's, on the
// same threads, is not. AddressSanitizer has its own malloc, so this file stays
// out of its builds.
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/crowd.h"
#include "base/own_code.h"
#include "engine/engine.h"
#include "host/model.h"
#include "tests/support/default_model.h"

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && defined(__GLIBC__)

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
}

namespace {

std::atomic<bool> counting = false;
std::atomic<int> num_counted = 0;

void Count() {
  if (pith::in_own_code && counting.load(std::memory_order_relaxed))
    num_counted.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

extern "C" {
void* malloc(size_t size) {
  Count();
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  Count();
  return __libc_calloc(count, size);
}
void* realloc(void* pointer, size_t size) {
  Count();
  return __libc_realloc(pointer, size);
}
void* memalign(size_t alignment, size_t size) {
  Count();
  return __libc_memalign(alignment, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  Count();
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** pointer, size_t alignment, size_t size) {
  Count();
  *pointer = __libc_memalign(alignment, size);
  return *pointer == nullptr ? ENOMEM : 0;
}
}

namespace pith {
namespace {

using testing::kThreads;

std::shared_ptr<HostModel> Model() { return testing::DefaultModel(); }

int CountedIn(const auto& code) {
  num_counted = 0;
  counting = true;
  code();
  counting = false;
  return num_counted;
}

// Allocations of ours in 70 decoded tokens, more than two pages of entries.
int CountedInDecode(const char* recipe, int keep_entries, KvFormat format, int num_sequences) {
  EngineOptions options;
  options.num_ctx = 400;
  options.num_threads = kThreads;
  options.format = format;
  options.keep_entries = keep_entries;
  options.max_sequences = num_sequences;
  options.recipe = *ParseRecipe(recipe);
  auto engine = Engine::Create(Model(), options);
  EXPECT_TRUE(engine) << engine.error().message;
  std::vector<SequenceId> ids;
  const std::vector<int32_t> prompt(100, 300), tokens(static_cast<size_t>(num_sequences), 301);
  for (int i = 0; i < num_sequences; ++i) {
    ids.push_back(*(*engine)->NewSequence());
    EXPECT_TRUE((*engine)->Prefill(ids.back(), prompt));
  }
  EXPECT_TRUE((*engine)->DecodeBatch(ids, tokens));  // the first token of a batch of this size warms up
  return CountedIn([&] {
    for (int i = 0; i < 70; ++i) {
      if (!(*engine)->DecodeBatch(ids, tokens)) ADD_FAILURE();
    }
  });
}

TEST(ModelAllocation, DecodingAllocatesNothing) {
  EXPECT_EQ(CountedInDecode("full", 0, KvFormat::kF16, 1), 0);
  EXPECT_EQ(CountedInDecode("full", 0, KvFormat::kQ8, 1), 0);
  EXPECT_EQ(CountedInDecode("full", 0, KvFormat::kF16, 3), 0);
  EXPECT_EQ(CountedInDecode("snapkv", 300, KvFormat::kF16, 1), 0) << "a recipe that has nothing to drop yet";
  EXPECT_EQ(CountedInDecode("expectedattention", 300, KvFormat::kF16, 1), 0) << "one that counts every query";
  EXPECT_EQ(CountedInDecode("deltakv:recent=16", 0, KvFormat::kF16, 1), 0) << "latents are read for each token";
}

// A thread that a busy machine kept away while the first token warmed up joins later.
TEST(ModelAllocation, AThreadThatJoinsLaterAllocatesNothing) {
  Crowd::OfProcess().Settle(1, false);
  EXPECT_EQ(CountedInDecode("full", 0, KvFormat::kF16, 1), 0);
  Crowd::OfProcess().Settle(0, false);
}

// The controls: an allocation in our code is seen, on any of the threads; one outside is not. Evictions allocate.
TEST(ModelAllocation, TheCountSeesOursAndNothingElse) {
  std::unique_ptr<std::vector<int>> kept;
  EXPECT_EQ(CountedIn([&] { kept = std::make_unique<std::vector<int>>(100); }), 0);
  EXPECT_EQ(CountedIn([&] {
              const OwnCode own(true);
              kept = std::make_unique<std::vector<int>>(200);
            }),
            2);
  EXPECT_GT(CountedInDecode("snapkv", 60, KvFormat::kF16, 1), 0);
}

}  // namespace
}  // namespace pith

#endif
