// Whose turn comes first, of requests that wait and of prompts that are read: pure functions of lengths and times.
//
// First come, first served has a question of twenty tokens wait for the documents before it. The least time to the
// first token in the mean is had by reading the shortest prompt first (Schrage, "A proof of the optimality of the
// shortest remaining processing time discipline", 1968), which starves long ones. So each prompt has a time at which
// its turn comes, as with deadlines that follow from the size of a job (Bender, Chakrabarti and Muthukrishnan, "Flow
// and stretch metrics for scheduling continuous job streams", 1998): kStretch times as long after it came as it takes
// to read, but no more than `most` seconds. Nobody is overtaken by what comes after his turn.
#ifndef PITH_SERVER_QUEUE_ORDER_H_
#define PITH_SERVER_QUEUE_ORDER_H_

#include <algorithm>

namespace pith::server {

// Seconds of waiting for each second of reading.
inline constexpr double kStretch = 50;

// Of a prompt that came at `submitted` and takes `reading` seconds more, in the same seconds. most 0: as they came.
inline double TurnOf(double submitted, double reading, double most) {
  return submitted + std::min(kStretch * std::max(reading, 0.0), most);
}

}  // namespace pith::server

#endif  // PITH_SERVER_QUEUE_ORDER_H_
