#include "store/spec.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "store/segment.h"
#include "store/store_test_util.h"

namespace pith::store {
namespace {

TEST(StoreSpec, Forms) {
  const auto plain = ParseStoreSpec("some/dir");
  ASSERT_TRUE(plain);
  EXPECT_EQ(plain->folder, "some/dir");
  EXPECT_EQ(plain->ram_bytes, kDefaultRamBytes);
  EXPECT_EQ(plain->ssd_bytes, kDefaultSsdBytes);
  const auto whole = ParseStoreSpec("file:/a b,ram=1MiB,ssd=64MiB,evictor=gdsf");
  ASSERT_TRUE(whole);
  EXPECT_EQ(whole->folder, "/a b");
  EXPECT_EQ(whole->ram_bytes, size_t{1} << 20);
  EXPECT_EQ(whole->ssd_bytes, size_t{64} << 20);
  EXPECT_EQ(whole->evictor, "gdsf");
  const auto placed = ParseStoreSpec("d,place=evicpress,loss=5%");
  ASSERT_TRUE(placed);
  EXPECT_TRUE(placed->places);
  EXPECT_DOUBLE_EQ(placed->quality_loss, 0.05);
  EXPECT_FALSE(plain->places);
  const auto ram = ParseStoreSpec("ram:2MiB");
  ASSERT_TRUE(ram);
  EXPECT_TRUE(ram->folder.empty());
  EXPECT_EQ(ram->ram_bytes, size_t{2} << 20);
}

// Records of 3 GiB each, more than the limit that a process has by itself. Their bytes are a hole in the file.
TEST(StoreSpec, WhoLooksForgetsNothing) {
  const TestFolder folder;
  const std::string path = folder.path() + "/segment-0000000000000001.pkv";
  std::ofstream file(path, std::ios::binary);
  uint64_t end = 0;
  for (uint32_t seed = 0; seed < 4; ++seed) {
    RecordHeader header;
    header.info = TestInfo(TestTokens(seed, 40));
    header.info.key = TestKey(seed, 40);
    header.info.payload_bytes = uint64_t{3} << 30;
    header.number = seed + 1;
    const std::vector<std::byte> bytes = EncodeHeader(header);
    file.seekp(static_cast<std::streamoff>(end));
    file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    end += bytes.size() + header.info.payload_bytes;
  }
  file.close();
  std::filesystem::resize_file(path, end);
  const auto listed = [](const Result<StoreOptions>& options) { return (*Store::Open(*options))->List().size(); };
  EXPECT_EQ(listed(ParseStoreSpecToLook(folder.path())), 4u);
  EXPECT_EQ(listed(ParseStoreSpec(folder.path())), 1u);
  EXPECT_EQ(listed(ParseStoreSpecToLook(folder.path() + ",ssd=8GiB")), 1u);
}

TEST(StoreSpec, MistakesAreNamed) {
  for (const char* bad :
       {"", ",ram=1MiB", "d,ram", "d,ram=", "d,ram=x", "d,rom=1MiB", "d,evictor=belady", "ram:", "ram:x", "d,ssd=1MiB",
        "d,place=x", "d,loss=2", "d,loss=200%", "ram:1MiB,place=evicpress", "redis-sentinel://host:6379",
        "valkeys://host", "redis://:1", "redis://a,b", "redis://x@a"}) {
    const auto spec = ParseStoreSpec(bad);
    EXPECT_FALSE(spec) << bad;
    EXPECT_TRUE(spec || !spec.error().message.empty());
  }
}

}  // namespace
}  // namespace pith::store
