#include "store/store.h"

#include <fstream>
#include <set>
#include <thread>

#include <gtest/gtest.h>

#include "store/store_test_util.h"

namespace pith::store {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

std::shared_ptr<Store> OpenStore(const StoreOptions& options) {
  Result<std::shared_ptr<Store>> store = Store::Open(options);
  EXPECT_TRUE(store) << store.error().message;
  return store.value_or(nullptr);
}

std::vector<std::string> SegmentsIn(const std::string& folder) {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.push_back(entry.path().string());
  std::ranges::sort(paths);
  return paths;
}

uint64_t BytesIn(const std::string& folder) {
  uint64_t sum = 0;
  for (const std::string& path : SegmentsIn(folder)) sum += std::filesystem::file_size(path);
  return sum;
}

std::vector<Match> FindIn(Store& store, const std::vector<int32_t>& tokens, int32_t num_pinned = -1) {
  return store.Find({.roots = std::span(&kTestRoot, 1), .tokens = tokens, .num_pinned = num_pinned}).matches;
}

TEST(Store, KeepsInMemoryWithinItsLimit) {
  const auto store = OpenStore({.ram_bytes = 8 * kMiB, .folder = ""});
  for (uint32_t i = 0; i < 40; ++i) {
    EXPECT_TRUE(PutTest(*store, i, 64, kMiB / 2 + 100 * i));
    EXPECT_LE(store->stats().tiers[0].bytes, 8 * kMiB);
    (void)store->Load(TestKey(0, 64));  // stays, since it is used
  }
  EXPECT_GT(store->stats().tiers[0].evictions, 20U);
  EXPECT_TRUE(store->Load(TestKey(0, 64)));
  EXPECT_FALSE(store->Load(TestKey(1, 64)));
  const auto last = store->Load(TestKey(39, 64));
  ASSERT_TRUE(last);
  EXPECT_TRUE(IsWhole(*last));
  EXPECT_FALSE(PutTest(*store, 99, 64, 9 * kMiB));
  EXPECT_EQ(store->stats().errors["full"], 1U);
}

// What a reader holds stays whole whatever happens to the object.
TEST(Store, AReaderKeepsItsBytes) {
  const auto store = OpenStore({.ram_bytes = 4 * kMiB, .folder = ""});
  EXPECT_TRUE(PutTest(*store, 1, 64, kMiB));
  const auto held = store->Load(TestKey(1, 64));
  ASSERT_TRUE(held);
  EXPECT_TRUE(store->Remove(TestKey(1, 64)));
  for (uint32_t i = 2; i < 12; ++i) {
    (void)PutTest(*store, i, 64, kMiB);
    EXPECT_LE(store->stats().tiers[0].bytes, 4 * kMiB);
  }
  EXPECT_TRUE(IsWhole(*held));
  EXPECT_FALSE(store->Load(TestKey(1, 64)));
}

TEST(Store, OutlivesTheProcess) {
  const TestFolder folder;
  const StoreOptions options{.ram_bytes = 4 * kMiB, .folder = folder.path(), .ssd_bytes = 64 * kMiB};
  {
    const auto store = OpenStore(options);
    for (uint32_t i = 0; i < 20; ++i) EXPECT_TRUE(PutTest(*store, i, 64 + i, kMiB / 2 + i));
  }
  const auto store = OpenStore(options);
  EXPECT_EQ(store->List().size(), 20U);
  for (uint32_t i = 0; i < 20; ++i) {
    const auto loaded = store->Load(TestKey(i, 64 + i));
    ASSERT_TRUE(loaded) << i;
    EXPECT_EQ(loaded->tier, Tier::kSsd);
    EXPECT_TRUE(IsWhole(*loaded));
    EXPECT_LE(store->stats().tiers[0].bytes, 4 * kMiB);
  }
  EXPECT_EQ(store->Load(TestKey(19, 64 + 19))->tier, Tier::kRam);  // promoted
  EXPECT_EQ(SegmentsIn(folder.path()).size(), store->stats().ssd_segments);
}

TEST(Store, LargerThanRamPassesBy) {
  const TestFolder folder;
  const auto store = OpenStore({.ram_bytes = 0, .folder = folder.path(), .ssd_bytes = 64 * kMiB});
  EXPECT_TRUE(PutTest(*store, 1, 100, 3 * kMiB));
  const auto loaded = store->Load(TestKey(1, 100));
  ASSERT_TRUE(loaded);
  EXPECT_TRUE(IsWhole(*loaded));
  EXPECT_EQ(loaded->tier, Tier::kSsd);
}

TEST(Store, FindsWhatSavesMost) {
  const auto store = OpenStore({.ram_bytes = 8 * kMiB, .folder = ""});
  const std::vector<int32_t> text = TestTokens(1, 300);
  const auto front = [&](size_t count) { return std::vector<int32_t>(text.begin(), text.begin() + count); };
  // Two that can only be taken up whole, of 64 and 150 tokens, and one that begins like them and can go back.
  EXPECT_TRUE(store->Put(TestInfo(front(64)), std::vector<std::byte>(10)));
  EXPECT_TRUE(store->Put(TestInfo(front(150)), std::vector<std::byte>(10)));
  std::vector<int32_t> other = front(110);
  other.resize(200, 7);
  ObjectInfo rewinds = TestInfo(other);
  rewinds.rewind_least = 40;
  rewinds.rewind_most = 190;
  EXPECT_TRUE(store->Put(std::move(rewinds), std::vector<std::byte>(10)));

  std::vector<Match> found = FindIn(*store, text);
  ASSERT_EQ(found.size(), 1U);  // nothing shorter is looked at
  EXPECT_EQ(found[0].tokens, 150U);
  std::vector<int32_t> parted = front(120);
  parted.resize(300, 9);
  found = FindIn(*store, parted);
  ASSERT_GE(found.size(), 1U);
  EXPECT_EQ(found[0].tokens, 110U);
  found = FindIn(*store, front(150));  // no logits, and it cannot go back to 149
  ASSERT_GE(found.size(), 1U);
  EXPECT_EQ(found[0].tokens, 110U);
  found = FindIn(*store, front(33));
  EXPECT_TRUE(found.empty());  // too short to go back to
  EXPECT_EQ(store->Find({.roots = std::span(&kTestRoot, 1), .tokens = parted}).shared_tokens, 96U);
  found = FindIn(*store, TestTokens(2, 300));
  EXPECT_TRUE(found.empty());
  const Sha256Digest elsewhere = KeySpace{.model = "test", .format = "f16", .salt = "tenant"}.Root();
  EXPECT_TRUE(store->Find({.roots = std::span(&elsewhere, 1), .tokens = text}).matches.empty());
}

TEST(Store, PinsMustBeTheSame) {
  const auto store = OpenStore({.ram_bytes = 8 * kMiB, .folder = ""});
  ObjectInfo info = TestInfo(TestTokens(1, 100));
  info.num_pinned = 20;
  EXPECT_TRUE(store->Put(std::move(info), std::vector<std::byte>(10)));
  EXPECT_EQ(FindIn(*store, TestTokens(1, 200), 20).size(), 1U);
  EXPECT_EQ(FindIn(*store, TestTokens(1, 200), 0).size(), 0U);
  EXPECT_EQ(FindIn(*store, TestTokens(1, 200)).size(), 1U);
}

TEST(Store, WholeTextsNeedTheirLogits) {
  const auto store = OpenStore({.ram_bytes = 8 * kMiB, .folder = ""});
  ObjectInfo info = TestInfo(TestTokens(1, 100));
  info.has_logits = true;
  EXPECT_TRUE(store->Put(std::move(info), std::vector<std::byte>(10)));
  EXPECT_EQ(FindIn(*store, TestTokens(1, 100)).at(0).tokens, 100U);
  const std::vector<int32_t> longer = TestTokens(1, 101);
  Query query{.roots = std::span(&kTestRoot, 1), .tokens = longer, .num_pinned = -1, .whole_only = true};
  EXPECT_TRUE(store->Find(query).matches.empty());
}

TEST(Store, ReplacedAndRemovedObjectsDoNotComeBack) {
  const TestFolder folder;
  const StoreOptions options{.ram_bytes = 4 * kMiB, .folder = folder.path(), .ssd_bytes = 64 * kMiB};
  const std::vector<int32_t> tokens = TestTokens(5, 80);
  {
    const auto store = OpenStore(options);
    EXPECT_TRUE(store->Put(TestInfo(tokens), std::vector<std::byte>(100, std::byte{1})));
    EXPECT_TRUE(store->Sync());
    EXPECT_TRUE(store->Put(TestInfo(tokens), std::vector<std::byte>(50, std::byte{2})));
    EXPECT_TRUE(PutTest(*store, 6, 80, 1000));
  }
  {
    const auto store = OpenStore(options);
    EXPECT_EQ(store->Load(TestKey(5, 80))->payload->bytes().size(), 50U);
    EXPECT_TRUE(store->Remove(TestKey(5, 80)));
    EXPECT_FALSE(store->Remove(TestKey(5, 80)));
    EXPECT_FALSE(store->Load(TestKey(5, 80)));
  }
  const auto store = OpenStore(options);
  EXPECT_FALSE(store->Load(TestKey(5, 80)));
  EXPECT_TRUE(store->Load(TestKey(6, 80)));
  EXPECT_EQ(store->List().size(), 1U);
}

// Two processes over one folder: each sees what the other has written and removed.
TEST(Store, TwoStoresShareAFolder) {
  const TestFolder folder;
  const StoreOptions options{.ram_bytes = 0, .folder = folder.path(), .ssd_bytes = 64 * kMiB};
  const auto first = OpenStore(options), second = OpenStore(options);
  EXPECT_TRUE(PutTest(*first, 1, 64, 5000));
  EXPECT_TRUE(PutTest(*second, 2, 64, 5000));
  std::this_thread::sleep_for(std::chrono::milliseconds(1050));
  first->Refresh({});
  second->Refresh({});
  EXPECT_TRUE(IsWhole(*first->Load(TestKey(2, 64))));
  EXPECT_TRUE(IsWhole(*second->Load(TestKey(1, 64))));
  EXPECT_TRUE(first->Remove(TestKey(1, 64)));
  EXPECT_FALSE(second->Load(TestKey(1, 64)));
  EXPECT_EQ(second->stats().errors["gone"], 1U);
  EXPECT_EQ(SegmentsIn(folder.path()).size(), 2U);  // each holds its own
}

TEST(Store, FlippedBitsAreMisses) {
  const TestFolder folder;
  const StoreOptions options{.ram_bytes = 0, .folder = folder.path(), .ssd_bytes = 64 * kMiB};
  std::mt19937 random(3);  // NOLINT
  for (int round = 0; round < 60; ++round) {
    for (const std::string& path : SegmentsIn(folder.path())) std::filesystem::remove(path);
    {
      const auto store = OpenStore(options);
      for (uint32_t i = 0; i < 5; ++i) EXPECT_TRUE(PutTest(*store, i, 64, 6000));
    }
    const std::string path = SegmentsIn(folder.path()).at(0);
    const auto store = OpenStore(options);  // the index is made before the bit flips, and once more behind it
    const auto at = static_cast<std::streamoff>(random() % std::filesystem::file_size(path));
    {
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(at);
      const auto byte = static_cast<char>(file.get() ^ (1 << random() % 8));
      file.seekp(at);
      file.put(byte);
    }
    const auto reopened = OpenStore(options);
    for (Store* one : {store.get(), reopened.get()}) {
      size_t hits = 0;
      for (uint32_t i = 0; i < 5; ++i) {
        const auto loaded = one->Load(TestKey(i, 64));
        if (!loaded) continue;
        ++hits;
        EXPECT_TRUE(IsWhole(*loaded)) << at;
      }
      EXPECT_GE(hits, one == store.get() ? 4U : 0U) << at;
    }
  }
}

TEST(Store, VerifyDropsWhatIsDamaged) {
  const TestFolder folder;
  const StoreOptions options{.ram_bytes = 0, .folder = folder.path(), .ssd_bytes = 64 * kMiB};
  const auto store = OpenStore(options);
  for (uint32_t i = 0; i < 3; ++i) EXPECT_TRUE(PutTest(*store, i, 64, 6000));
  {
    std::fstream file(SegmentsIn(folder.path()).at(0), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(4096 + 8192 + 4096 + 17);  // in the second payload
    file.put('x');
    file.put('y');
  }
  const auto damaged = store->Verify([](size_t, size_t) { return true; });
  ASSERT_EQ(damaged.size(), 1U);
  EXPECT_EQ(damaged[0]->key, TestKey(1, 64));
  EXPECT_EQ(store->List().size(), 2U);
  EXPECT_EQ(OpenStore(options)->List().size(), 2U);
}

TEST(Store, FolderStaysWithinItsLimitAndEveryHitIsWhole) {
  for (const std::string evictor : {"lru", "s3fifo", "gdsf"}) {
    const TestFolder folder;
    constexpr uint64_t kLimit = 4 * kMiB;
    uint64_t most = 0;
    FaultyFiles files([&](const char*, uint64_t) {
      most = std::max(most, BytesIn(folder.path()));
      return FaultyFiles::Fault::kNone;
    });
    const StoreOptions options{.ram_bytes = 0,
                               .folder = folder.path(),
                               .ssd_bytes = kLimit,
                               .evictor = evictor,
                               .segment_bytes = 256 * 1024,
                               .files = &files};
    std::mt19937 random(1);  // NOLINT
    auto store = OpenStore(options);
    size_t hits = 0, puts = 0;
    for (int i = 0; i < 600; ++i) {
      const auto seed = static_cast<uint32_t>(random() % 100);
      if (const auto loaded = store->Load(TestKey(seed, 40))) {
        ++hits;
        ASSERT_TRUE(IsWhole(*loaded));
      } else {
        puts += PutTest(*store, seed, 40, 1000 + 1000 * seed) ? 1 : 0;
      }
      if (i % 200 == 199) store.reset(), store = OpenStore(options);
    }
    EXPECT_LE(most, kLimit) << evictor;
    EXPECT_GT(hits, 150U) << evictor;
    EXPECT_GT(puts, 200U) << evictor;
    EXPECT_GT(store->stats().tiers[1].bytes, kLimit / 3) << evictor;
    EXPECT_EQ(store->stats().ssd_file_bytes, BytesIn(folder.path()));
  }
}

// Each write may fail, at once or half-way; then the disk works again.
TEST(Store, FullDiskLosesAndNeverLies) {
  for (int fails_at = 0; fails_at < 60; ++fails_at) {
    const TestFolder folder;
    int count = 0;
    bool fails = true;
    FaultyFiles files([&](const char* what, uint64_t) {
      if (!fails || std::string_view(what) == "remove" || count++ < fails_at) return FaultyFiles::Fault::kNone;
      return fails_at % 2 == 0 ? FaultyFiles::Fault::kFails : FaultyFiles::Fault::kHalf;
    });
    const StoreOptions options{.ram_bytes = 0,
                               .folder = folder.path(),
                               .ssd_bytes = 2 * kMiB,
                               .segment_bytes = 64 * 1024,
                               .files = &files};
    std::set<uint32_t> kept;
    {
      const auto store = OpenStore(options);
      for (uint32_t i = 0; i < 20; ++i) {
        if (PutTest(*store, i, 40, 5000)) kept.insert(i);
      }
      EXPECT_LT(kept.size(), 20U);
      EXPECT_GE(store->stats().errors["io"], 1U);
      for (const uint32_t seed : kept) EXPECT_TRUE(IsWhole(*store->Load(TestKey(seed, 40))));
    }
    fails = false;
    const auto store = OpenStore(options);
    for (uint32_t i = 0; i < 20; ++i) {
      const auto loaded = store->Load(TestKey(i, 40));
      EXPECT_TRUE(loaded || !kept.contains(i)) << i;
      EXPECT_TRUE(!loaded || IsWhole(*loaded));
    }
    EXPECT_TRUE(PutTest(*store, 50, 40, 5000));
  }
}

TEST(Store, RamHoldsWhatSomebodyElsePlaces) {
  const TestFolder folder;
  const auto store = OpenStore({.ram_bytes = 4 * kMiB,
                                .folder = folder.path(),
                                .ssd_bytes = 64 * kMiB,
                                .evictor = "lru",
                                .places = true});
  for (uint32_t i = 0; i < 6; ++i) EXPECT_TRUE(PutTest(*store, i, 64, kMiB));
  for (uint32_t i = 0; i < 6; ++i) EXPECT_EQ(store->Load(TestKey(i, 64))->tier, Tier::kSsd);
  for (uint32_t i = 0; i < 4; ++i) EXPECT_EQ(store->MoveToRam(TestKey(i, 64)), i < 3);
  EXPECT_EQ(store->stats().tiers[static_cast<size_t>(Tier::kRam)].objects, 3U);
  EXPECT_TRUE(PutTest(*store, 0, 64, kMiB));  // anew: to the disk alone
  EXPECT_TRUE(store->MoveToRam(TestKey(5, 64)));
  EXPECT_FALSE(store->MoveToRam(TestKey(4, 64)));
  EXPECT_TRUE(IsWhole(*store->Load(TestKey(0, 64))));
  EXPECT_EQ(store->Load(TestKey(5, 64))->tier, Tier::kRam);
}

TEST(Store, PinnedObjectsStayInTheirTiers) {
  const TestFolder folder;
  const auto store = OpenStore({.ram_bytes = 8 * kMiB, .folder = folder.path(), .ssd_bytes = 24 * kMiB});
  EXPECT_FALSE(store->Pin(TestKey(1, 64), 100)) << "it is not there yet";
  EXPECT_TRUE(PutTest(*store, 1, 64, kMiB));
  EXPECT_TRUE(PutTest(*store, 2, 64, kMiB));
  ASSERT_TRUE(store->Sync());
  EXPECT_TRUE(store->Pin(TestKey(1, 64), 100));
  for (uint32_t i = 10; i < 50; ++i) EXPECT_TRUE(PutTest(*store, i, 64, kMiB));
  ASSERT_TRUE(store->Sync());
  const auto pinned = store->Load(TestKey(1, 64));
  ASSERT_TRUE(pinned);
  EXPECT_EQ(pinned->tier, Tier::kRam);
  EXPECT_TRUE(IsWhole(*pinned));
  EXPECT_FALSE(store->Contains(TestKey(2, 64))) << "neither tier was full";
  EXPECT_EQ(store->stats().tiers[0].pinned_bytes, kMiB);
  EXPECT_GE(store->stats().tiers[1].pinned_bytes, kMiB);
  // Put anew it stays pinned; removed it is gone.
  EXPECT_TRUE(PutTest(*store, 1, 64, kMiB));
  ASSERT_TRUE(store->Sync());
  EXPECT_EQ(store->stats().tiers[0].pinned_bytes, kMiB);
  EXPECT_TRUE(store->Remove(TestKey(1, 64)));
  EXPECT_EQ(store->stats().tiers[0].pinned_bytes + store->stats().tiers[1].pinned_bytes, 0U);
}

TEST(Store, RefusesWhatItCannotBe) {
  EXPECT_FALSE(Store::Open({.ram_bytes = kMiB, .folder = "", .evictor = "belady"}));
  EXPECT_FALSE(Store::Open({.ram_bytes = kMiB, .folder = "", .evictor = "nonsense"}));
  EXPECT_FALSE(Store::Open({.ram_bytes = kMiB, .folder = "/dev/null/store", .ssd_bytes = kMiB}));
}

TEST(Store, ManyThreads) {
  const TestFolder folder;
  const auto store = OpenStore({.ram_bytes = 2 * kMiB,
                                .folder = folder.path(),
                                .ssd_bytes = 4 * kMiB,
                                .segment_bytes = 256 * 1024});
  std::atomic<size_t> wrong = 0, hits = 0;
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);  // NOLINT
      for (int i = 0; i < 150; ++i) {
        const auto seed = static_cast<uint32_t>(random() % 40);
        if (random() % 8 == 0) (void)store->Remove(TestKey(seed, 40));
        if (const auto loaded = store->Load(TestKey(seed, 40))) {
          ++hits;
          wrong += IsWhole(*loaded) ? 0 : 1;
        } else {
          (void)PutTest(*store, seed, 40, 20000 + 1000 * seed);
        }
        if (i % 50 == 0) (void)store->Find({.roots = std::span(&kTestRoot, 1), .tokens = TestTokens(seed, 40)});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0U);
  EXPECT_GT(hits, 50U);
}

}  // namespace
}  // namespace pith::store
