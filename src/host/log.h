// What libllama says while it works.
#ifndef PITH_HOST_LOG_H_
#define PITH_HOST_LOG_H_

namespace pith {

// level: 1 (debug) to 4 (error), as ggml counts them. Called from any thread, one call at a time.
using HostLog = void (*)(void* user, int level, const char* text);

// Null: nobody listens, as in the beginning.
void SetHostLog(HostLog log, void* user);

// Passes a line on. libllama's callback, and whoever else takes its place.
void WriteHostLog(int level, const char* text);

}  // namespace pith

#endif  // PITH_HOST_LOG_H_
