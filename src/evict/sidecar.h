// Cold-RL's network in a process of its own: what is asked and answered, and who asks.
//
// A Unix socket (SOCK_SEQPACKET), one message each way, numbers as the machine has them:
//
//   question  u32 version, u32 sequence, u16 candidates, u16 features, f32 features[candidates][features]
//   answer    u32 version, u32 sequence, u32 mask, f32 margins[candidates]
//
// Features are those of ColdRl::Features, as they are: their scale is the model's, which whoever answers has. A margin
// is Q(evict) - Q(keep); bit c of the mask is set where candidate c's is above 0. The answer bears the question's
// sequence: one that comes too late answers nothing else.
#ifndef PITH_EVICT_SIDECAR_H_
#define PITH_EVICT_SIDECAR_H_

#include <sys/un.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "evict/learn/coldrl.h"
#include "pith/types.h"

namespace pith::evict {

struct SidecarQuestion {
  uint32_t version = 0;
  uint32_t sequence = 0;
  uint16_t candidates = 0;
  uint16_t features = 0;
  float values[ColdRl::kMostCandidates * ColdRl::kFeatures];

  static size_t Bytes(size_t candidates);
  // A message of so many bytes, of which the first are here, is a question that can be answered.
  bool IsOne(size_t bytes) const;
};

struct SidecarAnswer {
  uint32_t version = 0;
  uint32_t sequence = 0;
  uint32_t mask = 0;
  float margins[ColdRl::kMostCandidates];

  static size_t Bytes(size_t candidates);
  static uint32_t MaskOf(const float* margins, size_t count);
  // What a message of so many bytes, of which the first are here, answers. One of another length or of other words is
  // no answer, nor is one whose two halves contradict each other, or to what nobody has asked yet.
  enum class To : uint8_t { kThis, kEarlier, kNothing };
  To Answers(size_t bytes, uint32_t sequence, size_t candidates) const;
};

inline constexpr uint32_t kSidecarVersion = 1;

// kInvalidArgument: the path is too long for a socket.
Result<sockaddr_un> SidecarAddress(const std::string& path);

// What became of the questions.
struct SidecarCounters {
  uint64_t answered = 0;
  uint64_t late = 0;    // no answer within the time
  uint64_t wrong = 0;   // an answer that can't be one
  uint64_t absent = 0;  // nobody was there to ask
  uint64_t rested = 0;  // not asked, since too many others had no answer
};

// Asks. Never waits for longer than the time for one question; where nobody answers it tries again after 0.1 s, then
// 0.2 s, ... 10 s, and after five failures in a hundred questions it asks nobody for a second.
class SidecarClient {
 public:
  SidecarClient(const sockaddr_un& address, uint32_t deadline_us) : address_(address), deadline_us_(deadline_us) {}
  ~SidecarClient();
  SidecarClient(const SidecarClient&) = delete;
  SidecarClient& operator=(const SidecarClient&) = delete;

  // Margins of candidates with these features [count, ColdRl::kFeatures], to be read before the next call; null: there
  // is no answer, and somebody else must decide. At most ColdRl::kMostCandidates; allocates nothing.
  const float* Margins(const float* features, size_t count);

  const SidecarCounters& counters() const { return counters_; }

 private:
  enum class Outcome : uint8_t { kAnswered, kLate, kWrong, kAbsent };

  Outcome Ask(const float* features, size_t count);
  Outcome Await(size_t count, uint64_t deadline_ns);
  bool Connect(uint64_t now_ns);
  void Disconnect(uint64_t now_ns);
  void Judge(bool failed, uint64_t now_ns);

  const sockaddr_un address_;
  const uint32_t deadline_us_;
  int socket_ = -1;
  uint32_t sequence_ = 0;
  uint64_t backoff_ns_ = 0;     // until the next attempt to connect, next time
  uint64_t connect_at_ns_ = 0;  // no attempt before
  uint64_t rest_until_ns_ = 0;
  uint32_t recent_ = 0, failed_ = 0;  // questions, and those of them without an answer
  SidecarCounters counters_;
  SidecarQuestion question_;
  SidecarAnswer answer_;
};

}  // namespace pith::evict

#endif  // PITH_EVICT_SIDECAR_H_
