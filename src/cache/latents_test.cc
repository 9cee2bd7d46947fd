#include "cache/latents.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include "base/aligned.h"
#include "base/byte_io.h"
#include "cache/kv_cache.h"
#include "cache/page_entries.h"
#include "kernels/attention.h"

namespace pith {
namespace {

constexpr int kKeyDim = 16, kValueDim = 24, kDim = kKeyDim + kValueDim;
constexpr int kNeighbours = 2;
// 10 of 40 numbers.
constexpr PageFormat kLatents = PageFormat::Latents(64, kNeighbours);

Rotation MakeRotation() {
  Rotation rotation;
  for (int p = 0; p < kKeyDim / 2; ++p) rotation.pairs.push_back({p, p + kKeyDim / 2, std::pow(100.0, -p / 8.0), 1.25});
  return rotation;
}

std::vector<float> RandomRows(std::mt19937& rng, int n, int dim) {
  std::normal_distribution<float> normal;
  std::vector<float> rows(static_cast<size_t>(n) * static_cast<size_t>(dim));
  for (float& x : rows) x = normal(rng);
  return rows;
}

// Vectors of so many dimensions, in kDim.
std::vector<float> RowsOfRank(std::mt19937& rng, int n, int rank) {
  const std::vector<float> axes = RandomRows(rng, rank, kDim), weights = RandomRows(rng, n, rank);
  std::vector<float> rows(static_cast<size_t>(n) * kDim, 0.0F);
  for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
    for (size_t r = 0; r < static_cast<size_t>(rank); ++r) {
      for (size_t c = 0; c < kDim; ++c) {
        rows[i * kDim + c] += 0.3F * weights[i * static_cast<size_t>(rank) + r] * axes[r * kDim + c];
      }
    }
  }
  return rows;
}

double Distance(const float* a, const float* b, size_t count) {
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  return std::sqrt(sum);
}

TEST(Latents, NearestAreThoseOfTheFormula) {
  std::mt19937 rng(1);
  const std::vector<float> rows = RandomRows(rng, 50, kDim);
  std::vector<float> references = RandomRows(rng, 37, kDim);
  std::copy_n(references.begin() + 5 * kDim, kDim, references.begin() + 20 * kDim);  // a tie
  const References near(references.data(), 37, kDim);
  std::vector<int32_t> visible(50);
  for (int i = 0; i < 50; ++i) visible[static_cast<size_t>(i)] = i % 38;
  for (const DeltaMetric metric : {DeltaMetric::kL2, DeltaMetric::kDot, DeltaMetric::kCosine}) {
    std::vector<uint16_t> nearest(50 * 3);
    near.Nearest(metric, rows.data(), visible, 3, nearest.data());
    for (size_t i = 0; i < 50; ++i) {
      std::vector<std::pair<double, int>> all;
      for (int j = 0; j < visible[i]; ++j) {
        const float* const other = references.data() + j * kDim;
        double dot = 0, square = 0;
        for (size_t c = 0; c < kDim; ++c) {
          dot += static_cast<double>(rows[i * kDim + c]) * static_cast<double>(other[c]);
          square += static_cast<double>(other[c]) * static_cast<double>(other[c]);
        }
        all.emplace_back(metric == DeltaMetric::kL2    ? square - 2 * dot
                         : metric == DeltaMetric::kDot ? -dot
                                                       : -dot / std::sqrt(square),
                         j == 20 ? 5 : j);
      }
      std::ranges::sort(all);
      for (size_t k = 0; k < 3; ++k) {
        const int found = nearest[i * 3 + k];
        ASSERT_EQ(found == 20 ? 5 : found, k < all.size() ? all[k].second : kNoReference) << i << ' ' << k;
      }
    }
  }
}

TEST(Latents, MapsFindTheAxesOfDifferences) {
  const PageLayout layout = PageLayout::Make(kLatents, kKeyDim, kValueDim, 0);
  ASSERT_EQ(layout.rank(), 10);
  std::mt19937 rng(2);
  constexpr int kCount = 96;
  const std::vector<int> ranks = {4, 10, kDim};
  std::vector<double> errors;
  for (const int rank : ranks) {
    std::vector<float> rows = RowsOfRank(rng, kCount, rank);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] *= i % kDim < kKeyDim ? 20.0F : 1.0F;  // keys vary more
    const std::vector<uint16_t> maps = FitLatentMaps(layout, rows.data(), kCount);
    ASSERT_EQ(maps.size(), NumMapNumbers(layout));
    std::vector<float> latents(kCount * 10), back(kP * kDim), scratch(kP * 10 + kDim);
    EncodeDifferences(layout, maps, rows.data(), kCount, latents.data());
    const auto memory = AllocateAligned<float>(ReadingTableFloats(layout));
    float* const table = memory.get();
    MakeReadingTable(layout, maps, scratch.data(), table);
    std::vector<std::byte> page(layout.page_bytes);
    const std::vector<uint16_t> none(kNeighbours, kNoReference);
    for (int i = 0; i < kP; ++i) WriteLatent(layout, page.data(), i, none, latents.data() + i * 10);
    ReadLatents(layout, page.data(), nullptr, table, scratch.data(), back.data());
    double values = 0, keys = 0, size = 0;
    for (size_t i = 0; i < kP; ++i) {
      keys += Distance(back.data() + i * kDim, rows.data() + i * kDim, kKeyDim) / 20;
      values += Distance(back.data() + i * kDim + kKeyDim, rows.data() + i * kDim + kKeyDim, kValueDim);
      size += Distance(rows.data() + i * kDim + kKeyDim, std::vector<float>(kDim).data(), kValueDim);
    }
    errors.push_back((keys + values) / size);
  }
  EXPECT_LT(errors[0], 3e-3);
  EXPECT_LT(errors[1], 3e-3);
  EXPECT_GT(errors[2], 0.3) << "control: there is more than ten numbers say";
  EXPECT_LT(errors[2], 1.5);
}

// One head, and what was appended to it.
class Head {
 public:
  explicit Head(size_t budget = size_t{4} << 20) : ledger_(budget), rotation_(MakeRotation()) {
    CacheLayer layer{.num_kv_heads = 1, .key_dim = kKeyDim, .value_dim = kValueDim, .global = true};
    layer.rotation = &rotation_;
    cache_ = KvCache::Create(&ledger_, {layer});
    sequence_ = *cache_->NewSequence(layout_, ledger_.common());
  }
  ~Head() {
    cache_->Free(sequence_);
    EXPECT_EQ(ledger_.used_bytes(), 0U);
  }

  KvCache& cache() { return *cache_; }
  Ledger& ledger() { return ledger_; }
  int sequence() const { return sequence_; }
  HeadCache& head() { return cache_->head(sequence_, 0, 0); }
  const SequenceLayout& layout() const { return layout_; }

  // Vectors before RoPE, [n, kDim].
  Status Append(const std::vector<float>& rows) {
    const int count = static_cast<int>(rows.size() / kDim), first = head().num_entries();
    PITH_RETURN_IF_ERROR(head().Extend(count));
    for (int i = 0; i < count; ++i) {
      std::vector<float> row(rows.begin() + i * kDim, rows.begin() + (i + 1) * kDim);
      const int at = first + i, position = next_position_++;
      turns_.Turn(position, row.data());
      kernels::WriteEntryF32(head().layout(), head().page_of(at), at % kP, row.data(), row.data() + kKeyDim, position);
      head().layout().column(head().page_of(at), 0)[at % kP] = static_cast<float>(position);
    }
    head().Commit(count);
    return {};
  }

  // By position: key as it is kept, then value.
  static std::map<int, std::vector<float>> Read(const HeadCache& head) {
    const auto n = static_cast<size_t>(head.num_entries());
    std::vector<int32_t> positions(n);
    std::vector<float> keys(n * kKeyDim), values(n * kValueDim), column(n);
    head.ReadPositions(positions);
    head.ReadKeys(keys.data());
    head.ReadValues(values.data());
    head.ReadColumn(0, column);
    std::map<int, std::vector<float>> read;
    for (size_t i = 0; i < n; ++i) {
      std::vector<float>& row = read[positions[i]];
      row.assign(keys.begin() + static_cast<ptrdiff_t>(i * kKeyDim),
                 keys.begin() + static_cast<ptrdiff_t>((i + 1) * kKeyDim));
      row.insert(row.end(), values.begin() + static_cast<ptrdiff_t>(i * kValueDim),
                 values.begin() + static_cast<ptrdiff_t>((i + 1) * kValueDim));
      EXPECT_EQ(column[i], static_cast<float>(positions[i]));
    }
    return read;
  }
  std::map<int, std::vector<float>> Read() { return Read(head()); }

  // All but the first, every `every`-th and the newest `recent` entries.
  std::vector<int32_t> Others(int every, int recent) {
    std::vector<int32_t> others;
    const int first = head().num_lower_entries();
    for (int i = std::max(first + head().num_references(), 1); i < head().num_entries() - recent; ++i) {
      if ((i - first) % every != 0) others.push_back(i);
    }
    return others;
  }

 private:
  Ledger ledger_;
  Rotation rotation_;
  const TurnTable turns_{MakeRotation()};
  const SequenceLayout layout_{.num_columns = 1, .lower = kLatents};
  std::unique_ptr<KvCache> cache_;
  int sequence_ = -1;
  int next_position_ = 0;
};

// The largest distance of an entry to what it was, over the largest entry.
double ErrorOf(const std::map<int, std::vector<float>>& before, const std::map<int, std::vector<float>>& after) {
  double error = 0, size = 0;
  EXPECT_EQ(before.size(), after.size());
  for (const auto& [position, row] : before) {
    const auto found = after.find(position);
    if (found == after.end()) return 1e9;
    error = std::max(error, Distance(row.data(), found->second.data(), kDim));
    size = std::max(size, Distance(row.data(), std::vector<float>(kDim).data(), kDim));
  }
  return error / size;
}

TEST(LatentHeads, EntriesComeBackAsFarAsTheirNumbersSayThem) {
  for (const auto& [rank, least, most] : {std::tuple(5, 0.0, 5e-3), std::tuple(kDim, 0.1, 1.0)}) {
    Head test;
    std::mt19937 rng(3);
    const std::vector<float> rows = RowsOfRank(rng, 200, rank);
    ASSERT_TRUE(test.Append(rows));
    const auto before = test.Read();
    const size_t pages = test.ledger().used_bytes(MemoryTag::kPages);
    const std::vector<int32_t> others = test.Others(10, 20);
    ASSERT_TRUE(test.head().Lower(others));
    ASSERT_TRUE(test.cache().Verify()) << test.cache().Verify().error().message;
    EXPECT_EQ(test.head().num_lower_entries(), static_cast<int>(others.size()) / kP * kP);
    EXPECT_LT(test.ledger().used_bytes(MemoryTag::kPages), pages / 2 + 2 * test.head().layout().page_bytes);
    const auto after = test.Read();
    const double error = ErrorOf(before, after);
    EXPECT_LT(error, most);
    EXPECT_GT(error, least) << "control: forty numbers are not in ten";
    // What is no latent is as it was.
    int exact = 0;
    for (const auto& [position, row] : before) exact += row == after.at(position);
    EXPECT_EQ(exact, 200 - test.head().num_lower_entries());
    // And the rows of some are those of all.
    const std::vector<int32_t> some = {0, 3, 40, test.head().num_lower_entries(), 199};
    std::vector<float> keys(some.size() * kKeyDim), values(some.size() * kValueDim), all_keys(200 * kKeyDim),
        all_values(200 * kValueDim);
    test.head().ReadKeysOf(some, keys.data());
    test.head().ReadValuesOf(some, values.data());
    test.head().ReadKeys(all_keys.data());
    test.head().ReadValues(all_values.data());
    for (size_t i = 0; i < some.size(); ++i) {
      const auto at = static_cast<size_t>(some[i]);
      EXPECT_TRUE(std::equal(keys.begin() + static_cast<ptrdiff_t>(i * kKeyDim),
                             keys.begin() + static_cast<ptrdiff_t>((i + 1) * kKeyDim),
                             all_keys.begin() + static_cast<ptrdiff_t>(at * kKeyDim)));
      EXPECT_TRUE(std::equal(values.begin() + static_cast<ptrdiff_t>(i * kValueDim),
                             values.begin() + static_cast<ptrdiff_t>((i + 1) * kValueDim),
                             all_values.begin() + static_cast<ptrdiff_t>(at * kValueDim)));
    }
  }
}

TEST(LatentHeads, ReferencesStay) {
  Head test;
  std::mt19937 rng(4);
  ASSERT_TRUE(test.Append(RowsOfRank(rng, 150, 5)));
  ASSERT_TRUE(test.head().Lower(test.Others(10, 30)));
  ASSERT_TRUE(test.head().has_latents());
  const int latents = test.head().num_lower_entries(), references = test.head().num_references();
  EXPECT_GT(references, 9);
  const auto before = test.Read();
  std::vector<int32_t> kept(150);
  std::iota(kept.begin(), kept.end(), 0);
  std::vector<int32_t> without = kept;
  without.erase(without.begin() + latents);
  EXPECT_FALSE(test.head().Keep(without));
  without = kept;
  without.erase(without.begin());
  EXPECT_FALSE(test.head().Keep(without));
  EXPECT_FALSE(test.head().Truncate(latents + references - 1));
  EXPECT_FALSE(test.cache().SetLower(test.sequence(), PageFormat(KvFormat::kQ2)));
  EXPECT_EQ(test.Read(), before) << "nothing has changed";
  // Those that nothing refers to may go.
  kept.erase(kept.end() - 4, kept.end() - 2);
  EXPECT_TRUE(test.head().Keep(kept));
  EXPECT_TRUE(test.head().Truncate(latents + references));
  EXPECT_TRUE(test.cache().Verify());
  EXPECT_TRUE(test.head().Truncate(0));
  EXPECT_TRUE(test.cache().Verify());
  EXPECT_TRUE(test.head().maps().empty());
}

TEST(LatentHeads, ABudgetThatDoesNotHoldThemIsSaid) {
  Head test(size_t{40} << 10);
  std::mt19937 rng(5);
  ASSERT_TRUE(test.Append(RowsOfRank(rng, 150, 5)));
  auto filler = MemoryAccount::Open(&test.ledger(), 0, size_t{40} << 10);
  ASSERT_NE(filler, nullptr);
  const size_t left = test.ledger().limit_bytes() - test.ledger().used_bytes();
  ASSERT_TRUE(filler->TryCharge(MemoryTag::kTokens, left));
  const auto before = test.Read();
  const Status status = test.head().Lower(test.Others(10, 20));
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kOutOfBudget);
  EXPECT_EQ(test.Read(), before);
  EXPECT_TRUE(test.cache().Verify());
  filler->Release(MemoryTag::kTokens, left);
  EXPECT_TRUE(test.head().Lower(test.Others(10, 20)));
  filler.reset();
}

TEST(LatentHeads, DamagedFilesAreRefused) {
  Head test;
  std::mt19937 rng(6);
  ASSERT_TRUE(test.Append(RowsOfRank(rng, 120, 5)));
  ASSERT_TRUE(test.head().Lower(test.Others(10, 10)));
  MemoryWriter writer;
  test.cache().Save(test.sequence(), writer);
  const auto restore = [&](const std::vector<std::byte>& bytes) {
    const int other = *test.cache().NewSequence(test.layout(), test.ledger().common());
    MemoryReader reader(bytes);
    const Status status = test.cache().Restore(other, reader, 120);
    if (status) {
      EXPECT_EQ(Head::Read(test.cache().head(other, 0, 0)), test.Read());
      EXPECT_TRUE(test.cache().Verify());
    }
    test.cache().Free(other);
    return status;
  };
  EXPECT_TRUE(restore(writer.bytes())) << "the control";
  // u32 layers, heads, 8 of the shape, entries, low and lower pages; then references and numbers of maps.
  for (const size_t word : {13U, 14U}) {
    std::vector<std::byte> damaged = writer.bytes();
    damaged[4 * word] ^= std::byte{0x7f};
    EXPECT_FALSE(restore(damaged)) << word;
  }
  // A latent's reference.
  const size_t first_page = 4 * 15 + test.head().maps().size_bytes();
  std::vector<std::byte> damaged = writer.bytes();
  damaged[first_page + 1] = std::byte{0x20};
  const Status status = restore(damaged);
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("refer to entries that it does not have"), std::string::npos)
      << status.error().message;
  damaged = writer.bytes();
  damaged[4 * 15 + 1] = std::byte{0x7f};
  EXPECT_FALSE(restore(damaged)) << "a map that is no number";
}

// Random operations on a head and its forks: what was exact stays so until it becomes a latent, and latents never
// change.
TEST(LatentHeads, RandomOperationsAgreeWithWhatWasRead) {
  size_t lowered = 0, restored = 0;
  for (uint32_t seed = 0; seed < 12; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 rng(seed);
    Head test;
    std::map<int, std::map<int, std::vector<float>>> known;  // by sequence
    known[test.sequence()] = {};
    for (int step = 0; step < 60; ++step) {
      HeadCache& head = test.head();
      auto& own = known[test.sequence()];
      switch (rng() % 6) {
        case 0:
        case 1:
          ASSERT_TRUE(test.Append(RowsOfRank(rng, 1 + static_cast<int>(rng() % 50), 5)));
          own = test.Read();
          break;
        case 2:
        case 3: {
          const int latents = head.num_lower_entries();
          ASSERT_TRUE(head.Lower(test.Others(4 + static_cast<int>(rng() % 8), static_cast<int>(rng() % 40))));
          lowered += static_cast<size_t>(head.num_lower_entries() - latents);
          const auto now = test.Read();
          std::vector<int32_t> positions(static_cast<size_t>(head.num_entries()));
          head.ReadPositions(positions);
          for (size_t i = 0; i < positions.size(); ++i) {
            const bool fresh = static_cast<int>(i) >= latents && static_cast<int>(i) < head.num_lower_entries();
            if (!fresh) {
              ASSERT_EQ(now.at(positions[i]), own.at(positions[i]));
            }
          }
          own = now;
          break;
        }
        case 4: {
          if (known.size() > 3) {
            const int last = known.rbegin()->first;
            test.cache().Free(last);
            known.erase(last);
          }
          known[*test.cache().Fork(test.sequence(), test.ledger().common())] = own;
          break;
        }
        default: {
          MemoryWriter writer;
          test.cache().Save(test.sequence(), writer);
          const int other = *test.cache().NewSequence(test.layout(), test.ledger().common());
          MemoryReader reader(writer.bytes());
          ASSERT_TRUE(test.cache().Restore(other, reader, 100000));
          ASSERT_EQ(Head::Read(test.cache().head(other, 0, 0)), own);
          test.cache().Free(other);
          ++restored;
        }
      }
      ASSERT_TRUE(test.cache().Verify()) << test.cache().Verify().error().message;
      for (const auto& [id, rows] : known) ASSERT_EQ(Head::Read(test.cache().head(id, 0, 0)), rows);
    }
    for (const auto& [id, rows] : known) {
      if (id != test.sequence()) test.cache().Free(id);
    }
  }
  EXPECT_GT(lowered, 2000U);
  EXPECT_GT(restored, 50U);
}

}  // namespace
}  // namespace pith
