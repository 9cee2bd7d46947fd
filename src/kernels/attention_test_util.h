// Random attention tasks for tests: ragged heads, every format, every mask.
#ifndef PITH_KERNELS_ATTENTION_TEST_UTIL_H_
#define PITH_KERNELS_ATTENTION_TEST_UTIL_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "base/aligned.h"
#include "kernels/attention.h"
#include "kernels/group_codec.h"
#include "kernels/key_channels.h"

namespace pith::kernels {

// 64-byte aligned memory filled with NaN in every format, so that reading what
// nobody wrote shows.
class PoisonedBytes {
 public:
  explicit PoisonedBytes(size_t bytes) : data_(AllocateAligned<std::byte>(bytes + 64)) {
    std::memset(data_.get(), 0xFF, bytes + 64);
  }
  std::byte* get() const { return data_.get(); }

 private:
  AlignedArray<std::byte> data_;
};

inline std::vector<KvFormat> GroupedFormats() {
  std::vector<KvFormat> grouped;
  std::ranges::copy_if(kKvFormats, std::back_inserter(grouped), IsGrouped);
  return grouped;
}
// Those that attention multiplies in integers.
inline std::vector<KvFormat> IntegerFormats() {
  std::vector<KvFormat> formats = GroupedFormats();
  formats.push_back(CodedFormat(16));
  return formats;
}
inline KvFormat AnyFormat(std::mt19937* random) { return kKvFormats[(*random)() % kKvFormats.size()]; }

template <class T>
T OneOf(std::mt19937* random, std::initializer_list<T> choices) {
  return choices.begin()[std::uniform_int_distribution<size_t>(0, choices.size() - 1)(*random)];
}

struct TestShape {
  int num_queries = 1;
  int num_kv_heads = 1;
  int group = 1;
  int key_dim = 64;
  int value_dim = 64;
  std::vector<int> head_entries;  // [num_kv_heads]
  double q8_share = 0.0;          // of the entries, at random
  // Where q8 would be. Formats whose pages are written whole get whole pages; what is left over stays f16.
  PageFormat other = KvFormat::kQ8;
  int position_gap = 1;           // most positions from one entry to the next
  double pruned = 0.0;            // of the channels of keys in the other format
};

// The rows of one entry, before it is stored.
struct TestEntry {
  std::vector<float> key, value;
  int32_t position = 0;
  int format = 0;  // 0: f16, 1: the shape's other
};

// A task with everything it points to.
class TestTask {
 public:
  TestTask(const TestShape& shape, uint32_t seed) : shape_(shape), random_(seed) {
    layouts_[0] = PageLayout::Make(KvFormat::kF16, shape.key_dim, shape.value_dim, 1);
    layouts_[1] = PageLayout::Make(shape.other, ChannelsLeft(shape.key_dim, shape.pruned), shape.value_dim, 2);
    heads_.resize(static_cast<size_t>(shape.num_kv_heads));
    std::vector<uint16_t> all(static_cast<size_t>(shape.key_dim));
    std::iota(all.begin(), all.end(), uint16_t{0});
    for (StoredHead& head : heads_) {
      std::ranges::sample(all, std::back_inserter(head.channels), layouts_[1].key_dim, random_);
    }
    int32_t last = 0;
    for (size_t h = 0; h < heads_.size(); ++h) {
      MakeEntries(shape.head_entries[h], &heads_[h].entries);
      if (!heads_[h].entries.empty()) last = std::max(last, heads_[h].entries.back().position);
    }
    const int num_heads = shape.num_kv_heads * shape.group;
    task.num_queries = shape.num_queries;
    task.num_heads = num_heads;
    task.num_kv_heads = shape.num_kv_heads;
    task.key_dim = shape.key_dim;
    task.value_dim = shape.value_dim;
    task.query_head_stride = static_cast<size_t>(shape.key_dim) + 3;
    task.query_token_stride = task.query_head_stride * static_cast<size_t>(num_heads);
    queries_ = Normals(task.query_token_stride * static_cast<size_t>(shape.num_queries));
    // The last queries see everything, earlier ones only a part.
    for (int t = 0; t < shape.num_queries; ++t) positions_.push_back(std::max(0, last - shape.num_queries + 1 + t));
    task.output_head_stride = static_cast<size_t>(shape.value_dim) + 1;
    task.output_token_stride = task.output_head_stride * static_cast<size_t>(num_heads);
    output.resize(task.output_token_stride * static_cast<size_t>(shape.num_queries));
    log_sum_exp.resize(static_cast<size_t>(num_heads * shape.num_queries));
    task.scale = 1.0f / std::sqrt(static_cast<float>(shape.key_dim));
    Rebuild();
  }

  // Stores the entries anew after a change, and points the task to them.
  void Rebuild() {
    memory_.clear();
    head_entries_.assign(heads_.size(), {});
    for (size_t h = 0; h < heads_.size(); ++h) {
      StoredHead& head = heads_[h];
      head.segments.clear();
      for (int f = 0; f < 2; ++f) head.pages[f].clear();
      for (int f = 0; f < 2; ++f) {
        std::vector<const TestEntry*> stored;
        for (const TestEntry& entry : head.entries) {
          if (entry.format == f) stored.push_back(&entry);
        }
        StorePages(layouts_[f], head.channels, stored, &head.pages[f]);
        head.segments.push_back({&layouts_[f], head.pages[f].data(), static_cast<int>(stored.size())});
      }
      head_entries_[h] = {head.segments, head.channels.data()};
    }
    task.heads = head_entries_.data();
    task.queries = queries_.data();
    task.query_positions = positions_.data();
    task.output = output.data();
    task.log_sum_exp = log_sum_exp.data();
  }

  std::vector<float> Normals(size_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_);
    return values;
  }

  void ClearResults() {
    std::fill(output.begin(), output.end(), std::nanf(""));
    std::fill(log_sum_exp.begin(), log_sum_exp.end(), std::nanf(""));
  }

  // Runs attention on `threads` threads into poisoned output.
  void Run(int threads) {
    ClearResults();
    const PoisonedBytes scratch(AttentionScratchBytes(task, threads));
    OnTeam(threads, [&](const Team& team) { RunAttention(task, scratch.get(), team); });
  }

  // [kv head][G, T, n]
  std::vector<std::vector<float>> Probabilities(int threads) {
    std::vector<std::vector<float>> result = ProbabilityBuffers();
    const std::vector<float*> pointers = Pointers(&result);
    OnTeam(threads, [&](const Team& team) { RunProbabilities(task, pointers.data(), team); });
    return result;
  }
  std::vector<std::vector<float>> ProbabilityBuffers() const {
    std::vector<std::vector<float>> result;
    for (const HeadEntries& head : head_entries_) {
      result.emplace_back(static_cast<size_t>(shape_.group * task.num_queries * head.num_entries()), std::nanf(""));
    }
    return result;
  }
  static std::vector<float*> Pointers(std::vector<std::vector<float>>* buffers) {
    std::vector<float*> pointers;
    for (std::vector<float>& buffer : *buffers) pointers.push_back(buffer.data());
    return pointers;
  }

  template <class Function>
  static void OnTeam(int threads, const Function& function) {
    Barrier barrier;
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back([&, i] { function(Team{i, threads, &barrier}); });
    function(Team{0, threads, &barrier});
    for (std::thread& other : others) other.join();
  }

  std::vector<TestEntry>& entries(int head) { return heads_[static_cast<size_t>(head)].entries; }
  std::mt19937& random() { return random_; }

  AttentionTask task;
  std::vector<float> output;
  std::vector<float> log_sum_exp;

 private:
  struct StoredHead {
    std::vector<TestEntry> entries;
    std::vector<uint16_t> channels;  // of keys in the other format
    std::vector<std::byte*> pages[2];
    std::vector<Segment> segments;
  };

  void StorePages(const PageLayout& layout, const std::vector<uint16_t>& channels,
                  const std::vector<const TestEntry*>& entries, std::vector<std::byte*>* pages) {
    const PageLayout plain = PageLayout::Make(KvFormat::kF16, layout.key_dim, layout.value_dim, layout.num_columns);
    const PoisonedBytes staging(plain.page_bytes);
    for (size_t i = 0; i < entries.size(); ++i) {
      const int slot = static_cast<int>(i % kPageEntries);
      if (slot == 0) {
        memory_.emplace_back(layout.page_bytes);
        pages->push_back(memory_.back().get());
      }
      const bool whole = layout.format.whole_pages();
      std::vector<float> key = entries[i]->key;
      if (layout.key_dim < shape_.key_dim) {
        for (size_t c = 0; c < channels.size(); ++c) key[c] = entries[i]->key[channels[c]];
      }
      WriteEntryF32(whole ? plain : layout, whole ? staging.get() : pages->back(), slot, key.data(),
                    entries[i]->value.data(), entries[i]->position);
      if (whole && slot == kPageEntries - 1) ConvertPage(plain, staging.get(), layout, pages->back());
    }
  }

  void MakeEntries(int count, std::vector<TestEntry>* entries) {
    std::uniform_int_distribution<int> gap(1, shape_.position_gap);
    std::bernoulli_distribution q8(shape_.q8_share);
    int32_t position = -1;
    for (int i = 0; i < count; ++i) {
      position += gap(random_);
      entries->push_back({Normals(static_cast<size_t>(shape_.key_dim)), Normals(static_cast<size_t>(shape_.value_dim)),
                          position, q8(random_) ? 1 : 0});
    }
    if (!shape_.other.whole_pages()) return;
    int others = 0;
    for (const TestEntry& entry : *entries) others += entry.format;
    for (auto entry = entries->rbegin(); others % kPageEntries != 0; ++entry) {
      if (entry->format == 0) continue;
      entry->format = 0;
      --others;
    }
  }

  TestShape shape_;
  std::mt19937 random_;
  PageLayout layouts_[2];
  std::vector<StoredHead> heads_;
  std::vector<HeadEntries> head_entries_;
  std::vector<PoisonedBytes> memory_;
  std::vector<float> queries_;
  std::vector<int32_t> positions_;
};

}  // namespace pith::kernels

#endif  // PITH_KERNELS_ATTENTION_TEST_UTIL_H_
