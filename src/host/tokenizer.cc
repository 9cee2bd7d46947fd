#include "host/tokenizer.h"

#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <climits>
#include <exception>
#include <string>

#include "host/llama_util.h"

namespace pith {
namespace {

// 321 bytes were measured with every pre-tokenizer's expressions, on x86-64 with GCC 12; more, for other compilers.
constexpr size_t kStackPerCharacter = 1024;
constexpr size_t kStackBase = size_t{1} << 20;
constexpr size_t kMostStack = size_t{2} << 30;
// Up to here the caller's stack does.
constexpr size_t kShortReach = 512;

// Length of a valid UTF-8 prefix; text.size() if all of it is valid.
size_t ValidUtf8Prefix(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const size_t length = byte < 0x80                   ? 1
                          : byte >= 0xc2 && byte < 0xe0 ? 2
                          : byte >= 0xe0 && byte < 0xf0 ? 3
                          : byte >= 0xf0 && byte < 0xf5 ? 4
                                                        : 0;
    if (length == 0 || i + length > text.size()) return i;
    uint32_t code = length == 1 ? byte : byte & (0xffu >> (length + 1));
    for (size_t k = 1; k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      if ((next & 0xc0) != 0x80) return i;
      code = code << 6 | (next & 0x3f);
    }
    const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
    if (overlong || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return i;
    i += length;
  }
  return i;
}

// The character at `at` of valid UTF-8, which moves behind it.
uint32_t TakeCharacter(std::string_view text, size_t& at) {
  const auto lead = static_cast<unsigned char>(text[at++]);
  if (lead < 0x80) return lead;
  const int more = lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
  uint32_t code = lead & (0x3fu >> more);
  for (int i = 0; i < more; ++i) code = code << 6 | (static_cast<unsigned char>(text[at++]) & 0x3fu);
  return code;
}

// As libllama's tables have it.
bool IsBlank(uint32_t code) {
  return code == ' ' || (code >= '\t' && code <= '\r') || code == 0x85 || code == 0xa0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f ||
         code == 0x3000;
}

struct Call {
  const llama_vocab* vocab;
  std::string_view text;
  bool add_special, parse_special;
  std::vector<int32_t> tokens;
  bool done = false;
};

// libllama throws where an expression fails, and where memory ends.
void Run(Call& call) {
  try {
    call.tokens.resize(call.text.size() / 3 + 16);
    for (int attempt = 0; attempt < 2 && !call.done; ++attempt) {
      const int32_t count =
          llama_tokenize(call.vocab, call.text.data(), static_cast<int32_t>(call.text.size()), call.tokens.data(),
                         static_cast<int32_t>(call.tokens.size()), call.add_special, call.parse_special);
      if (count == INT32_MIN) return;
      call.tokens.resize(static_cast<size_t>(count < 0 ? -static_cast<int64_t>(count) : count));
      call.done = count >= 0;
    }
  } catch (const std::exception&) {
    call.done = false;
  }
}

Status RunWithStack(Call& call, size_t stack_bytes) {
  const auto no_thread = [] { return IoError("the system gives no thread with a stack to tokenise the text on"); };
  pthread_attr_t attributes;
  if (::pthread_attr_init(&attributes) != 0) return no_thread();
  pthread_t thread{};
  const auto start = [](void* argument) -> void* {
    Run(*static_cast<Call*>(argument));
    return nullptr;
  };
  const bool started = ::pthread_attr_setstacksize(&attributes, stack_bytes) == 0 &&
                       ::pthread_create(&thread, &attributes, start, &call) == 0;
  ::pthread_attr_destroy(&attributes);
  if (!started) return no_thread();
  ::pthread_join(thread, nullptr);
  return {};
}

}  // namespace

size_t ReachOfMatch(std::string_view text, std::string_view pre) {
  // This one's words go on over single blanks, but not over digits and punctuation.
  const bool over_blanks = pre == "exaone-moe";
  size_t blanks = 0, others = 0, words = 0, most_blanks = 0, most_others = 0, most_words = 0;
  for (size_t at = 0; at < text.size();) {
    const uint32_t code = TakeCharacter(text, at);
    const bool blank = IsBlank(code), letter = code >= 0x80 || ((code | 0x20) >= 'a' && (code | 0x20) <= 'z');
    blanks = blank ? blanks + 1 : 0;
    others = blank ? 0 : others + 1;
    words = letter || blank ? words + 1 : 0;
    most_blanks = std::max(most_blanks, blanks);
    most_others = std::max(most_others, others);
    most_words = std::max(most_words, words);
  }
  const size_t reach = most_blanks + most_others + 1;
  return over_blanks ? std::max(reach, most_words + 1) : reach;
}

Result<std::vector<int32_t>> TokenizeText(const llama_vocab* vocab, std::string_view pre, std::string_view text,
                                          bool add_special, bool parse_special, bool is_whole) {
  if (const size_t valid = ValidUtf8Prefix(text); valid != text.size()) {
    return InvalidArgument(fmt::format("the text is not valid UTF-8 (byte {})", valid));
  }
  if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) return Unsupported("this model has no tokenizer");
  if (text.size() > INT_MAX / 2) return InvalidArgument("the text is too long to tokenize");
  Call call{.vocab = vocab, .text = text, .add_special = add_special, .parse_special = parse_special, .tokens = {}};
  // Only byte-pair tokenizers split by expressions.
  const bool splits = llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_BPE;
  const size_t reach = splits ? ReachOfMatch(text, pre) : 0;
  if (reach <= kShortReach) {
    Run(call);
  } else if (reach > (kMostStack - kStackBase) / kStackPerCharacter) {
    return InvalidArgument(
        fmt::format("the text has a run of {} characters without a change between blanks and other "
                    "characters, more than this model's tokenizer can take",
                    reach));
  } else {
    PITH_RETURN_IF_ERROR(RunWithStack(call, kStackBase + reach * kStackPerCharacter));
  }
  if (!call.done) return InvalidArgument("this model's tokenizer fails on the text, or the text is too long for it");
  if (add_special && !is_whole && llama_vocab_get_add_eos(vocab) && !call.tokens.empty() &&
      call.tokens.back() == llama_vocab_eos(vocab)) {
    call.tokens.pop_back();
  }
  return std::move(call.tokens);
}

}  // namespace pith
