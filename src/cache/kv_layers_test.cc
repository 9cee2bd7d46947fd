#include <gtest/gtest.h>

#include "base/ledger.h"
#include "cache/kv_cache.h"

namespace pith {
namespace {

TEST(KvCache, LayersWithoutACacheHaveNoHeads) {
  Ledger ledger(64 << 10);
  const CacheLayer with{.num_kv_heads = 2, .key_dim = 8, .value_dim = 4, .global = true}, without;
  const auto cache = KvCache::Create(&ledger, {without, with, without});
  const int id = *cache->NewSequence({}, ledger.common());
  EXPECT_TRUE(cache->heads(id, 0).empty());
  EXPECT_TRUE(cache->heads(id, 2).empty());
  EXPECT_EQ(cache->heads(id, 1).size(), 2U);
  EXPECT_EQ(&cache->heads(id, 1)[1], &cache->head(id, 1, 1));
  EXPECT_EQ(cache->heads(id).size(), cache->num_heads());
  const auto none = KvCache::Create(&ledger, {without});
  EXPECT_TRUE(none->heads(*none->NewSequence({}, ledger.common()), 0).empty());
}

}  // namespace
}  // namespace pith
