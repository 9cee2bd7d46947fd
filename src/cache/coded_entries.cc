#include "cache/coded_entries.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/half.h"
#include "base/parse_number.h"
#include "cache/page_entries.h"
#include "kernels/attention.h"

namespace pith {
namespace {

using kernels::BoundedCodes;
using kernels::ErrorBound;
using kernels::ErrorUnit;

constexpr auto kBlock = static_cast<size_t>(kCodedBlock);
static_assert(kCodedBlock % kP == 0);
constexpr uint16_t kNoStep = 0xffff;
constexpr int kMostRecent = 1 << 20;

tl::unexpected<Error> BrokenBlock() { return Corrupt("a block of coded entries in its cache is damaged"); }

template <typename T>
void Append(std::vector<uint8_t>& bytes, T value) {
  const auto* from = reinterpret_cast<const uint8_t*>(&value);
  bytes.insert(bytes.end(), from, from + sizeof value);
}

void AppendInteger(std::vector<uint8_t>& bytes, int64_t value) {
  auto bits = static_cast<uint64_t>(value) << 1 ^ static_cast<uint64_t>(value >> 63);
  for (; bits >= 0x80; bits >>= 7) bytes.push_back(static_cast<uint8_t>(bits | 0x80));
  bytes.push_back(static_cast<uint8_t>(bits));
}

// Of at most 35 bits.
bool ReadInteger(MemoryReader& reader, int64_t& value) {
  uint64_t bits = 0;
  for (int shift = 0; shift < 35; shift += 7) {
    uint8_t byte = 0;
    if (!reader.Number(byte)) return false;
    bits |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if ((byte & 0x80) != 0) continue;
    value = static_cast<int64_t>(bits >> 1) ^ -static_cast<int64_t>(bits & 1);
    return true;
  }
  return false;
}

bool IsBound(const ErrorBound& bound) {
  const bool unit =
      bound.unit == ErrorUnit::kToken || bound.unit == ErrorUnit::kChannel || bound.unit == ErrorUnit::kBlockPerHead;
  return unit && bound.share >= kernels::kLeastErrorShare && bound.share <= kernels::kGreatestErrorShare &&
         bound.block == kCodedBlock && bound.recent >= bound.block && bound.recent <= kMostRecent;
}

// Sets what the name says of the form. False: it is no number, or no such name.
bool SetField(std::string_view name, std::string_view text, CodedForm& form) {
  if (name == "unit") {
    if (text != "channel" && text != "head") return false;
    form.key.unit = text == "channel" ? ErrorUnit::kChannel : ErrorUnit::kBlockPerHead;
    return true;
  }
  const std::optional<double> number = ParseNumber<double>(text);
  if (!number || *number <= 0 || *number > kMostRecent) return false;
  if (name == "ek")
    form.key.share = *number;
  else if (name == "ev")
    form.value.share = *number;
  else if (name == "recent")
    form.key.recent = form.value.recent = static_cast<int>(*number);
  else
    return false;
  return true;
}

}  // namespace

int CodedForm::CodedEntries(const PageLayout& layout, int num_entries) const {
  const PageFormat format = layout.format;
  if (format.coded() || IsGrouped(format.key) || IsGrouped(format.value) || layout.is_latent()) return 0;
  return key.CutOf(num_entries);
}

std::string CodedForm::Name() const {
  return fmt::format("comp:ek={},ev={},unit={},recent={}", key.share, value.share,
                     key.unit == ErrorUnit::kChannel ? "channel" : "head", key.recent);
}

void CodedForm::Save(ByteWriter& writer) const {
  for (const ErrorBound* bound : {&key, &value}) {
    writer.Number(static_cast<uint8_t>(bound->unit));
    writer.Number(bound->share);
  }
  writer.Number(static_cast<int32_t>(key.recent));
}

Result<CodedForm> CodedForm::Read(ByteReader& reader) {
  CodedForm form;
  uint8_t units[2] = {};
  int32_t recent = 0;
  const bool read = reader.Number(units[0]) && reader.Number(form.key.share) && reader.Number(units[1]) &&
                    reader.Number(form.value.share) && reader.Number(recent);
  form.key.unit = static_cast<ErrorUnit>(units[0]);
  form.value.unit = static_cast<ErrorUnit>(units[1]);
  form.key.recent = form.value.recent = recent;
  if (!read || !IsBound(form.key) || !IsBound(form.value)) return Corrupt("the form of its coded entries is none");
  return form;
}

Result<std::optional<CodedForm>> ParseCodedForm(std::string_view text) {
  if (text == "exact") return std::optional<CodedForm>();
  CodedForm form;
  const std::string_view kind = text.substr(0, text.find(':'));
  std::string_view rest = kind.size() < text.size() ? text.substr(kind.size() + 1) : std::string_view();
  bool valid = kind == "comp";
  while (valid && !rest.empty()) {
    const std::string_view part = rest.substr(0, rest.find(','));
    rest = part.size() < rest.size() ? rest.substr(part.size() + 1) : std::string_view();
    const size_t equals = part.find('=');
    valid = equals != std::string_view::npos && SetField(part.substr(0, equals), part.substr(equals + 1), form);
  }
  if (!valid || !IsBound(form.key) || !IsBound(form.value)) {
    return InvalidArgument(fmt::format(
        "\"{}\" is no form of saved entries: exact, or comp:ek=F,ev=F,unit=channel|head,recent=N with F from 1/254 to "
        "0.5 and N from {} on",
        text, kCodedBlock));
  }
  return std::optional(form);
}

RowCoder::RowCoder(const ErrorBound& bound) : bound_(bound), counts_(static_cast<size_t>(bound.alphabet()), 1) {}

void RowCoder::Count(std::span<const float> rows, size_t dim) {
  BoundedCodes coded = kernels::BoundErrors(bound_, rows, 1, kBlock, dim, 0, kBlock);
  Block& block = blocks_.emplace_back();
  block.codes.reserve(coded.codes.size());
  for (const int32_t code : coded.codes) {
    ++counts_[static_cast<size_t>(code)];
    block.codes.push_back(static_cast<uint8_t>(code));
  }
  block.steps = std::move(coded.steps);
  block.minima = std::move(coded.minima);
  if (!std::ranges::all_of(block.steps, [](float step) { return step > 0; }))
    block.rows.assign(rows.begin(), rows.end());
}

void RowCoder::SaveCode(ByteWriter& writer) const {
  for (const int32_t length : code_->lengths()) writer.Number(static_cast<uint8_t>(length));
}

Status RowCoder::ReadCode(ByteReader& reader) {
  std::vector<uint8_t> lengths(counts_.size());
  if (!reader.Array(std::span(lengths))) return Corrupt("it ends within its cache");
  code_ = kernels::HuffmanCode::FromLengths(lengths);
  return code_ ? Status() : Corrupt("the code of its entries is none");
}

void RowCoder::Write(size_t dim, std::vector<uint8_t>& bytes) {
  PITH_CHECK(next_ < blocks_.size());
  const Block coded = std::move(blocks_[next_++]);
  // Of each unit without codes: its numbers, or the one that all are.
  std::vector<std::vector<float>> exact(coded.steps.size());
  for (size_t i = 0; i < coded.rows.size(); ++i) {
    const size_t unit = kernels::UnitOf(bound_, 1, dim, 0, i / dim, i % dim);
    const float step = coded.steps[unit];
    if (std::isnan(step) || (step == 0 && exact[unit].empty())) exact[unit].push_back(coded.rows[i]);
  }
  for (size_t unit = 0; unit < coded.steps.size(); ++unit) {
    const float step = coded.steps[unit];
    Append(bytes, std::isnan(step) ? kNoStep : HalfBits(static_cast<double>(step)));
    if (step > 0) AppendInteger(bytes, coded.minima[unit]);
    for (const float number : exact[unit]) Append(bytes, number);
  }
  std::vector<int32_t> vector(dim);
  for (size_t t = 0; t < kBlock; ++t) {
    std::copy_n(coded.codes.begin() + static_cast<std::ptrdiff_t>(t * dim), dim, vector.begin());
    code_->Write(vector, bytes);
  }
}

bool RowCoder::Read(MemoryReader& reader, size_t dim, std::span<float> rows) const {
  BoundedCodes coded;
  const size_t num_units = kernels::NumUnits(bound_, 1, kBlock, dim);
  std::vector<std::vector<float>> exact(num_units);
  for (size_t unit = 0; unit < num_units; ++unit) {
    uint16_t step = 0;
    int64_t minimum = 0;
    if (!reader.Number(step)) return false;
    if (step == 0 || step == kNoStep) {
      if (!reader.Fill(step == 0 ? 1 : rows.size() / num_units, exact[unit])) return false;
    } else if (!IsFiniteHalf(step) || (step & 0x8000) != 0 || !ReadInteger(reader, minimum) ||
               std::abs(minimum) > INT16_MAX) {
      return false;
    }
    coded.steps.push_back(step == kNoStep ? std::nanf("") : static_cast<float>(HalfOf(step)));
    coded.minima.push_back(static_cast<int32_t>(minimum));
  }
  coded.codes.resize(rows.size());
  for (size_t t = 0; t < kBlock; ++t) {
    const std::span<const std::byte> rest = reader.rest();
    const auto used = code_->Read({reinterpret_cast<const uint8_t*>(rest.data()), rest.size()},
                                  std::span(coded.codes).subspan(t * dim, dim));
    if (!used) return false;
    reader.Skip(*used);
  }
  coded.values.resize(rows.size());
  const bool all_coded = std::ranges::all_of(exact, [](const auto& numbers) { return numbers.empty(); });
  std::vector<size_t> next(num_units, 0);
  for (size_t i = 0; i < rows.size() && !all_coded; ++i) {
    const size_t unit = kernels::UnitOf(bound_, 1, dim, 0, i / dim, i % dim);
    if (exact[unit].size() == 1)
      coded.values[i] = exact[unit][0];
    else if (!exact[unit].empty())
      coded.values[i] = exact[unit][next[unit]++];
  }
  kernels::SetValues(bound_, 1, kBlock, dim, coded);
  std::ranges::copy(coded.values, rows.begin());
  return true;
}

void LayerCoder::Count(const PageLayout& layout, std::span<const std::byte* const> pages) {
  const auto key_dim = static_cast<size_t>(layout.key_dim), value_dim = static_cast<size_t>(layout.value_dim);
  key_rows_.resize(kBlock * key_dim);
  value_rows_.resize(kBlock * value_dim);
  for (size_t i = 0; i < pages.size(); ++i) {
    kernels::ReadKeys(layout, pages[i], kP, key_rows_.data() + i * kP * key_dim);
    kernels::ReadValues(layout, pages[i], kP, value_rows_.data() + i * kP * value_dim);
  }
  keys_.Count(key_rows_, key_dim);
  values_.Count(value_rows_, value_dim);
}

Status LayerCoder::ReadCodes(ByteReader& reader) {
  PITH_RETURN_IF_ERROR(keys_.ReadCode(reader));
  return values_.ReadCode(reader);
}

void LayerCoder::Write(const PageLayout& layout, std::span<const std::byte* const> pages, ByteWriter& writer) {
  bytes_.clear();
  int64_t before = 0;
  for (const std::byte* page : pages) {
    for (int i = 0; i < kP; ++i) {
      const int64_t position = layout.positions(page)[i];
      AppendInteger(bytes_, position - before);
      before = position;
    }
  }
  for (int c = 0; c < layout.num_columns; ++c) {
    for (const std::byte* page : pages) {
      for (int i = 0; i < kP; ++i) Append(bytes_, layout.column(page, c)[i]);
    }
  }
  keys_.Write(static_cast<size_t>(layout.key_dim), bytes_);
  values_.Write(static_cast<size_t>(layout.value_dim), bytes_);
  writer.Number(static_cast<uint32_t>(bytes_.size()));
  writer.Write(std::as_bytes(std::span(bytes_)));
}

size_t LayerCoder::LeastBytes(const PageLayout& layout) {
  // A bit for each code, a byte for each position, columns as they are.
  const auto row_bytes = static_cast<size_t>((layout.key_dim + 7) / 8 + (layout.value_dim + 7) / 8);
  return kBlock * (1 + row_bytes + static_cast<size_t>(layout.num_columns) * sizeof(float));
}

Status LayerCoder::Read(ByteReader& reader, const PageLayout& layout, std::span<std::byte* const> pages) {
  uint32_t num_bytes = 0;
  if (!reader.Number(num_bytes) || !reader.Fill(num_bytes, bytes_)) return Corrupt("it ends within its cache");
  MemoryReader block(std::as_bytes(std::span(bytes_)));
  std::vector<int32_t> positions;
  int64_t position = 0;
  for (size_t i = 0; i < kBlock; ++i) {
    int64_t difference = 0;
    if (!ReadInteger(block, difference)) return BrokenBlock();
    position += difference;
    if (position < 0 || position > INT32_MAX) return BrokenBlock();
    positions.push_back(static_cast<int32_t>(position));
  }
  std::vector<float> columns;
  if (!block.Fill(kBlock * static_cast<size_t>(layout.num_columns), columns)) return BrokenBlock();
  const auto key_dim = static_cast<size_t>(layout.key_dim), value_dim = static_cast<size_t>(layout.value_dim);
  key_rows_.resize(kBlock * key_dim);
  value_rows_.resize(kBlock * value_dim);
  if (!keys_.Read(block, key_dim, key_rows_) || !values_.Read(block, value_dim, value_rows_) || block.left() != 0) {
    return BrokenBlock();
  }
  for (size_t i = 0; i < kBlock; ++i) {
    std::byte* const page = pages[i / kP];
    const auto slot = static_cast<int>(i % kP);
    kernels::WriteEntryF32(layout, page, slot, &key_rows_[i * key_dim], &value_rows_[i * value_dim], positions[i]);
    for (int c = 0; c < layout.num_columns; ++c) {
      layout.column(page, c)[slot] = columns[static_cast<size_t>(c) * kBlock + i];
    }
  }
  return {};
}

}  // namespace pith
