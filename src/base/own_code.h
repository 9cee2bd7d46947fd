// Marks the code that is ours while a token is decoded, so that a test can tell
// our allocations from libllama's on the same threads.
#ifndef PITH_BASE_OWN_CODE_H_
#define PITH_BASE_OWN_CODE_H_

namespace pith {

// True while this thread runs pith's own part of a block.
inline thread_local bool in_own_code = false;

// Sets the mark for its lifetime: true where pith is entered, false where pith calls libllama.
class OwnCode {
 public:
  explicit OwnCode(bool own) : before_(in_own_code) { in_own_code = own; }
  ~OwnCode() { in_own_code = before_; }
  OwnCode(const OwnCode&) = delete;
  OwnCode& operator=(const OwnCode&) = delete;

 private:
  const bool before_;
};

}  // namespace pith

#endif  // PITH_BASE_OWN_CODE_H_
