#include "evict/one_bit.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "evict/naive_cache_test_util.h"

namespace pith::evict {
namespace {

struct Instance {
  size_t k;
  std::string_view requests;
  std::string_view discard;
  std::string_view phase;
  uint64_t opt, lru, fwa0, eta0, eta1, phase_eta0, phase_eta1;
  double mark0, mnp, marking;
};

// Computed by another implementation, in exact fractions.
const Instance kInstances[] = {
#include "evict/one_bit_test_data.inc"
};

Trace TraceOf(std::string_view requests) {
  Trace trace;
  std::map<char, uint32_t> dense;
  for (const char page : requests) {
    const auto [at, fresh] = dense.emplace(page, static_cast<uint32_t>(dense.size()));
    if (fresh) trace.ids.push_back(static_cast<unsigned char>(page));
    trace.object.push_back(at->second);
    trace.size.push_back(1);
    trace.time.push_back(static_cast<double>(trace.time.size()));
  }
  EXPECT_TRUE(trace.Finish());
  return trace;
}

std::vector<uint8_t> BitsOf(std::string_view text) {
  std::vector<uint8_t> bits;
  for (const char c : text) bits.push_back(c == '1');
  return bits;
}

uint64_t Faults(Evictor& evictor, const Trace& trace) {
  Tally tally;
  evictor.Replay(trace, false, tally);
  return tally.requests - tally.hits;
}

uint64_t FaultsOf(const std::string& policy, const Trace& trace, uint64_t k) {
  const auto evictor = MakeEvictor(policy, {k, trace.num_objects(), &trace});
  EXPECT_TRUE(evictor) << evictor.error().message;
  return evictor ? Faults(**evictor, trace) : 0;
}

double Harmonic(size_t k) {
  double sum = 0;
  for (size_t i = 1; i <= k; ++i) sum += 1.0 / static_cast<double>(i);
  return sum;
}

struct Page {
  uint32_t object;
  uint8_t bit;
  bool mark;
  auto operator<=>(const Page&) const = default;
};

// The exact expected number of faults: all that may be in the cache, with its probability, request after request.
double ExpectedFaults(bool mark0, const Trace& trace, size_t k, const std::vector<uint8_t>& bits) {
  std::map<std::set<Page>, double> states = {{{}, 1.0}};
  double faults = 0;
  for (size_t i = 0; i < trace.num_accesses(); ++i) {
    std::map<std::set<Page>, double> after;
    const Page now{trace.object[i], bits[i], true};
    for (const auto& [state, probability] : states) {
      std::set<Page> cache = state;
      const auto held = std::ranges::find(cache, now.object, &Page::object);
      if (held != cache.end()) {
        cache.erase(held);
        cache.insert(now);
        after[cache] += probability;
        continue;
      }
      faults += probability;
      if (cache.size() < k) {
        cache.insert(now);
        after[cache] += probability;
        continue;
      }
      const bool ones = std::ranges::any_of(cache, [](const Page& page) { return page.bit == 1; });
      const bool unmarked = std::ranges::any_of(cache, [](const Page& page) { return !page.mark; });
      if (!unmarked && !(mark0 && ones)) {
        std::set<Page> cleared;
        for (Page page : cache) {
          page.mark = false;
          cleared.insert(page);
        }
        cache = cleared;
      }
      std::vector<Page> choice;
      for (const Page& page : cache) {
        if (mark0 ? (ones ? page.bit == 1 : !page.mark) : (!page.mark && page.bit == 1)) choice.push_back(page);
      }
      if (choice.empty())
        std::ranges::copy_if(cache, std::back_inserter(choice), [](const Page& p) { return !p.mark; });
      for (const Page& victim : choice) {
        std::set<Page> next = cache;
        next.erase(victim);
        next.insert(now);
        after[next] += probability / static_cast<double>(choice.size());
      }
    }
    states = std::move(after);
  }
  return faults;
}

struct Mean {
  double mean;
  double error;  // standard error of the mean
};
template <typename Make>
Mean MeanFaults(const Trace& trace, int runs, const Make& make) {
  double sum = 0;
  double squares = 0;
  for (int run = 0; run < runs; ++run) {
    const std::unique_ptr<Evictor> evictor = make(static_cast<uint64_t>(run) * 977 + 3);
    const auto faults = static_cast<double>(Faults(*evictor, trace));
    sum += faults;
    squares += faults * faults;
  }
  const double mean = sum / runs;
  return {mean, std::sqrt(std::max(0.0, squares / runs - mean * mean) / runs)};
}

TEST(OneBit, CostsAreThoseOfAnotherImplementation) {
  for (const Instance& instance : kInstances) {
    SCOPED_TRACE(instance.requests);
    const Trace trace = TraceOf(instance.requests);
    const evict::Setup setup{instance.k, trace.num_objects(), &trace};
    const std::vector<uint8_t> discard = BitsOf(instance.discard);
    const std::vector<uint8_t> phase = BitsOf(instance.phase);
    EXPECT_EQ(FaultsOf("belady", trace, instance.k), instance.opt);
    EXPECT_EQ(FaultsOf("lru", trace, instance.k), instance.lru);
    EXPECT_EQ(Faults(*MakeFwa0WithBits(setup, discard), trace), instance.fwa0);
    // The perfect bits, by the errors that the figures count.
    const auto right = DiscardBits(trace, instance.k);
    ASSERT_TRUE(right);
    uint64_t eta[2] = {0, 0};
    for (size_t i = 0; i < discard.size(); ++i) eta[discard[i]] += discard[i] != (*right)[i];
    EXPECT_EQ(eta[0], instance.eta0);
    EXPECT_EQ(eta[1], instance.eta1);
    EXPECT_NEAR(ExpectedFaults(true, trace, instance.k, discard), instance.mark0, 1e-6);
    EXPECT_NEAR(ExpectedFaults(false, trace, instance.k, phase), instance.mnp, 1e-6);
    const std::vector<uint8_t> zeros(phase.size(), 0);
    EXPECT_NEAR(ExpectedFaults(false, trace, instance.k, zeros), instance.marking, 1e-6);
    const int runs = 300;
    const Mean mark0 = MeanFaults(trace, runs, [&](uint64_t seed) { return MakeMark0WithBits(setup, discard, seed); });
    EXPECT_NEAR(mark0.mean, instance.mark0, 4.5 * mark0.error + 1e-9);
    const Mean mnp =
        MeanFaults(trace, runs, [&](uint64_t seed) { return MakeMarkAndPredictWithBits(setup, phase, seed); });
    EXPECT_NEAR(mnp.mean, instance.mnp, 4.5 * mnp.error + 1e-9);
  }
}

TEST(OneBit, WorkedExample) {
  const Trace trace = TraceOf("abcdabeabcde");
  const auto discard = DiscardBits(trace, 3);
  ASSERT_TRUE(discard);
  EXPECT_EQ(*discard, BitsOf("001100001100"));
  EXPECT_EQ(PhaseBits(trace, 3), BitsOf("001100011111"));
  const std::vector<uint8_t> zeros(12, 0);
  const std::vector<uint8_t> ones(12, 1);
  EXPECT_EQ(FaultsOf("fwa0", trace, 3), 7u);
  EXPECT_EQ(FaultsOf("mark0", trace, 3), 7u);
  EXPECT_EQ(FaultsOf("mnp", trace, 3), 7u);
  EXPECT_EQ(FaultsOf("fwa0:bits=zero", trace, 3), 12u);
  EXPECT_EQ(FaultsOf("fwa0:bits=one", trace, 3), 10u);
  EXPECT_NEAR(ExpectedFaults(true, trace, 3, zeros), 9.333333, 1e-6);
  EXPECT_NEAR(ExpectedFaults(true, trace, 3, ones), 8.983539, 1e-6);
}

// Uniform, skewed and looping requests, and those that hurt: for what the evictor has just dropped.
Trace Sequence(uint64_t seed, size_t k) {
  Random random(seed);
  const size_t pages = k + 1 + random.Below(k);
  std::string text;
  const uint32_t kind = random.Below(4);
  std::vector<char> lately;  // least recently used first
  for (size_t i = 0; i < pages; ++i) lately.push_back(static_cast<char>('A' + i));
  for (size_t i = 0; i < 120; ++i) {
    size_t page = 0;
    const double u = random.Uniform();
    if (kind == 0) page = random.Below(pages);
    if (kind == 1) page = static_cast<size_t>(u * u * u * static_cast<double>(pages));
    if (kind == 2) page = i % (k + 1);
    // Against LRU: always what it has not; with a lapse now and then.
    if (kind == 3) page = static_cast<size_t>(lately[u < 0.9 ? pages - k - 1 : random.Below(pages)] - 'A');
    const auto name = static_cast<char>('A' + page);
    text += name;
    std::erase(lately, name);
    lately.push_back(name);
  }
  return TraceOf(text);
}

TEST(OneBit, BoundsHoldForPerfectNoisyAndHostileBits) {
  for (uint64_t seed = 1; seed <= 240; ++seed) {
    const size_t k = 2 + seed % 5;
    const Trace trace = Sequence(seed, k);
    const evict::Setup setup{k, trace.num_objects(), &trace};
    const auto right = DiscardBits(trace, k);
    ASSERT_TRUE(right);
    const std::vector<uint8_t> right_phase = PhaseBits(trace, k);
    const auto opt = static_cast<double>(FaultsOf("belady", trace, k));
    for (const double flip : {0.0, 0.05, 0.3, 1.0}) {
      SCOPED_TRACE(fmt::format("seed {}, k {}, flip {}", seed, k, flip));
      Random random(seed * 31 + static_cast<uint64_t>(flip * 100));
      std::vector<uint8_t> bits = *right;
      std::vector<uint8_t> phase = right_phase;
      double eta[2] = {0, 0};
      double phase_eta[2] = {0, 0};
      for (size_t i = 0; i < bits.size(); ++i) {
        bits[i] ^= random.Uniform() < flip;
        phase[i] ^= random.Uniform() < flip;
        eta[bits[i]] += bits[i] != (*right)[i];
        phase_eta[phase[i]] += phase[i] != right_phase[i];
      }
      const auto fwa0 = static_cast<double>(Faults(*MakeFwa0WithBits(setup, bits), trace));
      EXPECT_LE(fwa0, opt + static_cast<double>(k - 1) * eta[0] + eta[1]);
      const Mean mark0 = MeanFaults(trace, 40, [&](uint64_t s) { return MakeMark0WithBits(setup, bits, s); });
      EXPECT_LE(mark0.mean - 4 * mark0.error, opt + 2 * Harmonic(k) * eta[0] + eta[1]);
      const Mean mnp = MeanFaults(trace, 40, [&](uint64_t s) { return MakeMarkAndPredictWithBits(setup, phase, s); });
      EXPECT_LE(mnp.mean - 4 * mnp.error,
                2 * opt + Harmonic(k) * phase_eta[0] + phase_eta[1] + static_cast<double>(k));
      // Whatever the bits: a marking algorithm.
      EXPECT_LE(mnp.mean - 4 * mnp.error, 2 * Harmonic(k) * opt + static_cast<double>(k));
      if (flip == 0) {
        EXPECT_EQ(fwa0, opt);
        EXPECT_EQ(mark0.mean, opt);
      }
    }
  }
}

// Each victim of Mark&Predict was not asked for in this phase; each of Mark0 has a bit of 1, or no mark.
TEST(OneBit, MarkAndPredictNeverEvictsAMarkedPage) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    const size_t k = 2 + seed % 5;
    const Trace trace = Sequence(seed, k);
    Random random(seed);
    std::vector<uint8_t> bits(trace.num_accesses());
    for (uint8_t& bit : bits) bit = random.Next() & 1;
    const auto evictor = MakeMarkAndPredictWithBits({k, trace.num_objects(), &trace}, bits, seed);
    std::vector<uint32_t> victims;
    evictor->RecordVictims(&victims);
    std::set<uint32_t> phase;  // pages asked for since it began
    for (size_t i = 0; i < trace.num_accesses(); ++i) {
      const uint32_t object = trace.object[i];
      if (phase.count(object) == 0 && phase.size() == k) phase.clear();
      phase.insert(object);
      evictor->Contains(object) ? evictor->OnHit(trace.At(i)) : evictor->OnMiss(trace.At(i));
      for (const uint32_t victim : victims) EXPECT_EQ(phase.count(victim), 0u);
      victims.clear();
    }
  }
}

TEST(OneBit, TheGuardCapsTheLoss) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const Trace trace = RandomTrace(seed, 6000, 200, 1);
    const uint64_t k = 32;
    for (const char* flip : {"0", "0.1", "0.5", "1"}) {
      const std::string policy = fmt::format("mark0:flip={},seed={}", flip, seed);
      const uint64_t alone = FaultsOf(policy, trace, k);
      const uint64_t guarded = FaultsOf(policy + ",guard=lru", trace, k);
      const uint64_t better = std::min(alone, FaultsOf("lru", trace, k));
      EXPECT_LE(static_cast<double>(guarded), 1.15 * static_cast<double>(better) + 2.0 * k) << policy;
    }
  }
}

}  // namespace
}  // namespace pith::evict
