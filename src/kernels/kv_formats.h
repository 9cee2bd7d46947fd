// The storage formats of keys and values: what kv_formats.inc lists.
#ifndef PITH_KERNELS_KV_FORMATS_H_
#define PITH_KERNELS_KV_FORMATS_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace pith {

// What an element is. A new one needs its cases in row_codec.cc, group_codec.cc and attention_reference.cc.
enum class KvElement : uint8_t {
  kHalf,    // f16
  kBfloat,  // bf16
  kByte,    // int8, with a float32 scale for each entry
  kCode,    // an integer of a few bits, 32 of which share a scale and a zero (page_layout.h)
};

struct KvFormatInfo {
  std::string_view name;  // in recipes: format=NAME
  std::string_view flag;  // of -ctk
  std::string_view also = {};  // what else it may be called
  int bits = 0;                // of an element, scales apart
  KvElement element = KvElement::kHalf;
  int zero_units = 0;       // of codes: units of a group's zero in one scale
  bool clips_keys = false;  // of codes: a scale of keys may cut off what lies far out (ScaleGrid::kClipped)
  std::string_view auto_keys = {};  // format=auto may take this one for values, and for keys the one of this name
  double plain_bits = 0;  // of an element of libllama's type of the name `flag`, scales included; 0: it has none
};

// kCoded + n stands for integers in steps of at most a range's n-th part, Huffman-coded.
enum class KvFormat : uint8_t {
#define PITH_KV_FORMAT(id, ...) k##id,
#include "kernels/kv_formats.inc"
#undef PITH_KV_FORMAT
  kCoded = 64
};

// By number; those that are coded are none of them.
inline constexpr std::array kKvFormatInfos = {
#define PITH_KV_FORMAT(id, ...) KvFormatInfo{__VA_ARGS__},
#include "kernels/kv_formats.inc"
#undef PITH_KV_FORMAT
};
inline constexpr int kNumKvFormats = static_cast<int>(kKvFormatInfos.size());
static_assert(kNumKvFormats <= static_cast<int>(KvFormat::kCoded));

inline constexpr int kFewestCodedSteps = 2, kMostCodedSteps = 62;

inline constexpr bool IsCoded(KvFormat format) { return format >= KvFormat::kCoded; }
inline constexpr int CodedSteps(KvFormat format) {
  return static_cast<int>(format) - static_cast<int>(KvFormat::kCoded);
}
inline constexpr KvFormat CodedFormat(int steps) {
  return static_cast<KvFormat>(static_cast<int>(KvFormat::kCoded) + steps);
}

// Of a format that is not coded.
inline constexpr const KvFormatInfo& InfoOf(KvFormat format) { return kKvFormatInfos[static_cast<size_t>(format)]; }

inline constexpr std::string_view KvFormatName(KvFormat format) {
  return IsCoded(format) ? "comp" : InfoOf(format).name;
}

// By our names and llama.cpp's.
inline constexpr std::optional<KvFormat> FindKvFormat(std::string_view name) {
  for (int i = 0; i < kNumKvFormats && !name.empty(); ++i) {
    const KvFormatInfo& info = kKvFormatInfos[static_cast<size_t>(i)];
    if (name == info.name || name == info.flag || name == info.also) return static_cast<KvFormat>(i);
  }
  return std::nullopt;
}

// Of coded elements, about: no more than a code of one length takes.
inline constexpr int BitsOf(KvFormat format) { return IsCoded(format) ? 8 : InfoOf(format).bits; }

// Stored in groups of 32 with a scale and a zero each.
inline constexpr bool IsGrouped(KvFormat format) {
  return !IsCoded(format) && InfoOf(format).element == KvElement::kCode;
}
inline constexpr bool HasEntryScales(KvFormat format) {
  return !IsCoded(format) && InfoOf(format).element == KvElement::kByte;
}

inline constexpr int ZeroUnits(KvFormat format) { return InfoOf(format).zero_units; }

// The most precise ones first.
inline constexpr std::array kKvFormats = [] {
  std::array<KvFormat, kNumKvFormats> all = {};
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<KvFormat>(i);
  std::sort(all.begin(), all.end(), [](KvFormat a, KvFormat b) {
    return BitsOf(a) != BitsOf(b) ? BitsOf(a) > BitsOf(b) : a < b;
  });
  return all;
}();

// "f16, bf16, q8 and q4": that field of them all.
inline std::string ListKvFormats(std::string_view KvFormatInfo::* name, std::string_view before_last) {
  std::string text;
  for (const KvFormat format : kKvFormats) {
    text += format == kKvFormats.front() ? "" : format == kKvFormats.back() ? before_last : ", ";
    text += InfoOf(format).*name;
  }
  return text;
}

}  // namespace pith

#endif  // PITH_KERNELS_KV_FORMATS_H_
