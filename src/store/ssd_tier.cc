#include "store/ssd_tier.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>

#include <fmt/format.h>

#include "base/crc32c.h"

namespace pith::store {
namespace {

constexpr uint64_t kMostSegmentBytes = uint64_t{256} << 20;
constexpr uint64_t kLeastSegmentBytes = uint64_t{1} << 20;
constexpr uint64_t kPieceBytes = uint64_t{256} << 10;  // read at a time
constexpr uint64_t kAhead = 8;                         // pieces that the system is asked for
constexpr std::string_view kPrefix = "segment-";
constexpr std::string_view kSuffix = ".pkv";

std::string NameOf(uint64_t number) { return fmt::format("{}{:016x}{}", kPrefix, number, kSuffix); }

// 0: no segment.
uint64_t NumberOf(std::string_view name) {
  if (name.size() != kPrefix.size() + 16 + kSuffix.size() || !name.starts_with(kPrefix) || !name.ends_with(kSuffix)) {
    return 0;
  }
  uint64_t number = 0;
  const char* const first = name.data() + kPrefix.size();
  const auto [end, error] = std::from_chars(first, first + 16, number, 16);
  return error == std::errc() && end == first + 16 ? number : 0;
}

Place PlaceOf(uint64_t segment, uint64_t offset, const RecordHeader& header) {
  return {.segment = segment,
          .offset = offset,
          .record_bytes = header.record_bytes(),
          .payload_offset = offset + header.header_bytes,
          .payload_bytes = header.info.payload_bytes,
          .payload_crc = header.payload_crc,
          .number = header.number};
}

uint64_t SegmentBytes(const SsdOptions& options) {
  if (options.segment_bytes > 0) return options.segment_bytes;
  return std::clamp(options.limit_bytes / 16, kLeastSegmentBytes, kMostSegmentBytes);
}

}  // namespace

SsdTier::SsdTier(const SsdOptions& options, Listener listener)
    : options_{options.folder, options.limit_bytes, SegmentBytes(options), options.files},
      listener_(std::move(listener)) {}

Result<std::unique_ptr<SsdTier>> SsdTier::Open(const SsdOptions& options, Listener listener) {
  PITH_RETURN_IF_ERROR(options.files->MakeFolder(options.folder));
  PITH_RETURN_IF_ERROR(options.files->List(options.folder));
  std::unique_ptr<SsdTier> tier(new SsdTier(options, std::move(listener)));
  tier->Refresh();
  return tier;
}

void SsdTier::Refresh() {
  const Result<std::vector<std::string>> names = options_.files->List(options_.folder);
  if (!names) return;
  std::vector<uint64_t> here, gone;
  for (const std::string& name : *names) {
    if (const uint64_t number = NumberOf(name); number != 0) here.push_back(number);
  }
  std::ranges::sort(here);
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [number, segment] : segments_) {
      if (!std::ranges::binary_search(here, number)) gone.push_back(number);
    }
    for (const uint64_t number : gone) segments_.erase(number);
  }
  for (const uint64_t number : gone) listener_.gone(number);
  for (const uint64_t number : here) ScanNew(number);
}

void SsdTier::ScanNew(uint64_t number) {
  std::shared_ptr<File> file = FileOf(number);
  uint64_t from = 0;
  const std::string path = options_.folder + "/" + NameOf(number);
  if (file == nullptr) {
    Result<std::unique_ptr<File>> opened = options_.files->Open(path, Files::Mode::kRead);
    if (!opened) return;
    file = std::move(*opened);
  } else {
    const std::lock_guard lock(mutex_);
    if (number == head_) return;  // ours: all of it is known
    from = segments_[number].scanned;
  }
  const Result<uint64_t> size = file->Size();
  if (!size) return;
  std::vector<std::pair<Place, RecordHeader>> found;
  const uint64_t end = ScanSegment(
      [&](uint64_t offset, std::span<std::byte> to) { return file->ReadAt(offset, to); }, from, *size,
      [&](uint64_t offset, RecordHeader header) {
        const Place place = PlaceOf(number, offset, header);
        found.emplace_back(place, std::move(header));
      });
  {
    const std::lock_guard lock(mutex_);
    Segment& segment = segments_[number];
    if (segment.scanned != from) return;  // another thread was here
    segment.path = path;
    segment.file = file;
    segment.scanned = end;
    segment.file_bytes = *size;
    for (const auto& [place, header] : found) {
      last_number_ = std::max(last_number_, header.number);
      if (header.removed) continue;
      segment.live_bytes += place.record_bytes;
      segment.live[place.offset] = header.info.key;
    }
  }
  for (auto& [place, header] : found) {
    if (!header.removed) listener_.found(place, std::move(header));
  }
}

std::shared_ptr<File> SsdTier::FileOf(uint64_t segment) const {
  const std::lock_guard lock(mutex_);
  const auto found = segments_.find(segment);
  return found == segments_.end() ? nullptr : found->second.file;
}

// Greater than all before, and in the order of time between processes.
uint64_t SsdTier::NextNumber() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto micros = static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(now).count());
  const std::lock_guard lock(mutex_);
  return last_number_ = std::max(last_number_ + 1, micros);
}

void SsdTier::SealHead() {
  head_file_.reset();
  const std::lock_guard lock(mutex_);
  head_ = 0;
}

// A segment that some process began and nobody holds.
bool SsdTier::TakeUpHead(uint64_t number) {
  const std::string path = options_.folder + "/" + NameOf(number);
  Result<std::unique_ptr<File>> file = options_.files->Open(path, Files::Mode::kWrite);
  if (!file || !(*file)->TryLock()) return false;
  // Whoever removed it had the lock.
  if (!options_.files->Open(path, Files::Mode::kRead)) return false;
  ScanNew(number);
  uint64_t end = 0, size = 0;
  {
    const std::lock_guard lock(mutex_);
    end = segments_[number].scanned;
    size = segments_[number].file_bytes;
  }
  if (size > end) {  // the torn end of a process that was killed
    if (!(*file)->Truncate(end)) return false;
    const std::lock_guard lock(mutex_);
    segments_[number].file_bytes = end;
  }
  head_file_ = std::move(*file);
  const std::lock_guard lock(mutex_);
  head_ = number;
  return true;
}

Status SsdTier::OpenHead(uint64_t record_bytes) {
  const uint64_t most = options_.segment_bytes - std::min(options_.segment_bytes, record_bytes);
  std::vector<uint64_t> open;
  {
    const std::lock_guard lock(mutex_);
    if (head_ != 0) {
      const uint64_t end = segments_[head_].scanned;
      if (end == 0 || end <= most) return {};
    }
    for (const auto& [number, segment] : segments_) {
      if (number != head_ && segment.scanned <= most) open.push_back(number);
    }
  }
  SealHead();
  std::ranges::reverse(open);  // the newest first
  for (const uint64_t number : open) {
    if (TakeUpHead(number)) return {};
  }
  constexpr int kTries = 16;
  tl::unexpected<Error> error = IoError("no segment of the store could be made");
  for (int i = 0; i < kTries; ++i) {
    const uint64_t number = NextNumber();
    const std::string path = options_.folder + "/" + NameOf(number);
    Result<std::unique_ptr<File>> file = options_.files->Open(path, Files::Mode::kCreate);
    if (!file) {
      error = tl::unexpected<Error>(file.error());
      continue;
    }
    if (!(*file)->TryLock()) continue;
    Result<std::unique_ptr<File>> reader = options_.files->Open(path, Files::Mode::kRead);
    if (!reader) return tl::unexpected<Error>(reader.error());
    (void)options_.files->SyncFolder(options_.folder);
    head_file_ = std::move(*file);
    const std::lock_guard lock(mutex_);
    head_ = number;
    Segment& segment = segments_[number];
    segment.path = path;
    segment.file = std::move(*reader);
    return {};
  }
  return error;
}

Status SsdTier::WriteRecord(uint64_t offset, std::span<const std::byte> header, std::span<const std::byte> payload) {
  static constexpr std::array<std::byte, kRecordAlignment> kZeros{};
  const uint64_t padding = AlignRecord(payload.size()) - payload.size();
  const uint64_t at = offset + header.size();
  if (!payload.empty()) PITH_RETURN_IF_ERROR(head_file_->WriteAt(at, payload));
  if (padding > 0) {
    PITH_RETURN_IF_ERROR(head_file_->WriteAt(at + payload.size(), std::span(kZeros).first(padding)));
  }
  PITH_RETURN_IF_ERROR(head_file_->WriteAt(offset, header));
  return head_file_->Sync();
}

Result<Place> SsdTier::Write(const RecordHeader& header, std::span<const std::byte> payload) {
  const std::vector<std::byte> encoded = EncodeHeader(header);
  const uint64_t record_bytes = encoded.size() + AlignRecord(payload.size());
  PITH_RETURN_IF_ERROR(OpenHead(record_bytes));
  uint64_t offset = 0;
  {
    const std::lock_guard lock(mutex_);
    offset = segments_[head_].scanned;
  }
  if (Status status = WriteRecord(offset, encoded, payload); !status) {
    // What was written of it is no record; the next one takes its place.
    const bool cut = head_file_->Truncate(offset).has_value();
    const uint64_t head = head_;
    if (!cut) SealHead();
    const std::lock_guard lock(mutex_);
    if (!cut) segments_[head].file_bytes = std::max(segments_[head].file_bytes, offset + record_bytes);
    return tl::unexpected<Error>(status.error());
  }
  RecordHeader whole = header;
  whole.header_bytes = encoded.size();
  const Place place = PlaceOf(head_, offset, whole);
  const std::lock_guard lock(mutex_);
  Segment& segment = segments_[head_];
  segment.scanned = segment.file_bytes = offset + record_bytes;
  segment.live_bytes += record_bytes;
  segment.live[offset] = header.info.key;
  return place;
}

Result<Place> SsdTier::Append(const ObjectInfo& info, std::span<const std::byte> payload) {
  RecordHeader header;
  header.info = info;
  header.info.payload_bytes = payload.size();
  header.payload_crc = Crc32c(payload);
  const std::lock_guard writing(append_mutex_);
  header.number = NextNumber();
  PITH_RETURN_IF_ERROR(MakeRoom(EncodeHeader(header).size() + AlignRecord(payload.size())));
  return Write(header, payload);
}

Status SsdTier::Erase(const Place& place) {
  Forget(place);
  std::string path;
  {
    const std::lock_guard lock(mutex_);
    const auto segment = segments_.find(place.segment);
    if (segment == segments_.end()) return {};
    path = segment->second.path;
  }
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<File> file, options_.files->Open(path, Files::Mode::kWrite));
  PITH_ASSIGN_OR_RETURN(RecordHeader header, ReadHeader(*file, place.offset));
  if (header.number != place.number) return {};
  header.removed = true;
  // All that changes is in its first bytes.
  const std::vector<std::byte> bytes = EncodeHeader(header);
  PITH_RETURN_IF_ERROR(file->WriteAt(place.offset, std::span(bytes).first(kRecordAlignment)));
  return file->Sync();
}

Status SsdTier::Read(const Place& place, std::span<std::byte> to) {
  const std::shared_ptr<File> file = FileOf(place.segment);
  if (file == nullptr) return NotFound("its segment is gone");
  std::array<std::byte, kRecordAlignment> first;
  PITH_RETURN_IF_ERROR(file->ReadAt(place.offset, first));
  if (HeaderBytes(first) == 0) return Corrupt("its header on the disk is damaged");
  if (IsRemoved(first)) return NotFound("it was removed");
  // In pieces that are summed while they are in the processor's cache, and with the next ones on their way.
  uint64_t asked = 0;
  uint32_t crc = 0;
  for (uint64_t at = 0; at < to.size(); at += kPieceBytes) {
    for (; asked < to.size() && asked < at + kAhead * kPieceBytes; asked += kPieceBytes) {
      file->WillRead(place.payload_offset + asked, std::min(kPieceBytes, to.size() - asked));
    }
    const std::span<std::byte> piece = to.subspan(at, std::min<uint64_t>(kPieceBytes, to.size() - at));
    PITH_RETURN_IF_ERROR(file->ReadAt(place.payload_offset + at, piece));
    crc = Crc32c(piece, crc);
  }
  return crc == place.payload_crc ? Status() : Status(Corrupt("its bytes on the disk are damaged"));
}

void SsdTier::Forget(const Place& place) {
  const std::lock_guard lock(mutex_);
  const auto segment = segments_.find(place.segment);
  if (segment == segments_.end() || segment->second.live.erase(place.offset) == 0) return;
  segment->second.live_bytes -= place.record_bytes;
}

uint64_t SsdTier::Victim(double share) const {
  const std::lock_guard lock(mutex_);
  uint64_t victim = 0;
  double least = share;
  for (const auto& [number, segment] : segments_) {
    if (held_elsewhere_.contains(number)) continue;
    const double live = static_cast<double>(segment.live_bytes) /
                        static_cast<double>(std::max<uint64_t>(segment.file_bytes, 1));
    if (live < least) victim = number, least = live;
  }
  return victim;
}

Result<RecordHeader> SsdTier::ReadHeader(File& file, uint64_t offset) const {
  std::vector<std::byte> bytes(kRecordAlignment);
  PITH_RETURN_IF_ERROR(file.ReadAt(offset, bytes));
  bytes.resize(std::max(HeaderBytes(bytes), kRecordAlignment));
  PITH_RETURN_IF_ERROR(file.ReadAt(offset, bytes));
  return DecodeHeader(bytes);
}

// Behind the head's end. What is damaged is left behind.
Status SsdTier::CopyRecord(const Key& key, uint64_t segment, uint64_t offset) {
  const std::shared_ptr<File> file = FileOf(segment);
  const Result<RecordHeader> header = ReadHeader(*file, offset);
  const auto counter = std::make_shared<std::atomic<size_t>>(0);
  const std::shared_ptr<Block> payload = header ? Block::Make(header->info.payload_bytes, counter) : nullptr;
  if (payload == nullptr) return {};
  const Place from = PlaceOf(segment, offset, *header);
  if (!Read(from, payload->bytes())) return {};
  PITH_ASSIGN_OR_RETURN(const Place to, Write(*header, payload->bytes()));
  if (!listener_.moved(key, from, to)) Forget(to);
  return {};
}

// Its live records go elsewhere, and it goes.
Status SsdTier::Renew(uint64_t number) {
  if (number == head_) SealHead();
  std::string path;
  std::map<uint64_t, Key> live;
  {
    const std::lock_guard lock(mutex_);
    path = segments_[number].path;
  }
  const Result<std::unique_ptr<File>> file = options_.files->Open(path, Files::Mode::kWrite);
  if (!file || !(*file)->TryLock()) {
    held_elsewhere_[number] = true;
    return {};
  }
  ScanNew(number);
  {
    const std::lock_guard lock(mutex_);
    Segment& segment = segments_[number];
    segment.scanned = UINT64_MAX;  // no head any more
    live = segment.live;
  }
  for (const auto& [offset, key] : live) PITH_RETURN_IF_ERROR(CopyRecord(key, number, offset));
  PITH_RETURN_IF_ERROR(options_.files->Remove(path));
  {
    const std::lock_guard lock(mutex_);
    segments_.erase(number);
  }
  listener_.gone(number);
  return {};
}

// So that live records of one segment more than the limit never stand twice, this much is left free.
Status SsdTier::MakeRoom(uint64_t record_bytes) {
  const auto refused = [] { return OutOfBudget("the store's folder has no room left within its limit"); };
  held_elsewhere_.clear();
  if (record_bytes > options_.limit_bytes / 4 && record_bytes > kRecordAlignment) return refused();
  const uint64_t slack = std::min(options_.segment_bytes, options_.limit_bytes / 8);
  while (file_bytes() + record_bytes + slack > options_.limit_bytes) {
    constexpr double kWorthIt = 0.95;
    const uint64_t victim = Victim(kWorthIt);
    if (victim == 0) return file_bytes() + record_bytes > options_.limit_bytes ? Status(refused()) : Status();
    PITH_RETURN_IF_ERROR(Renew(victim));
  }
  return {};
}

Result<uint64_t> SsdTier::Compact(double share) {
  const std::lock_guard writing(append_mutex_);
  held_elsewhere_.clear();
  const uint64_t before = file_bytes();
  // What was written anew is not done twice.
  for (size_t left = num_segments(); left > 0; --left) {
    const uint64_t victim = Victim(share);
    if (victim == 0) break;
    PITH_RETURN_IF_ERROR(Renew(victim));
  }
  const uint64_t after = file_bytes();
  return before - std::min(before, after);
}

uint64_t SsdTier::file_bytes() const {
  const std::lock_guard lock(mutex_);
  uint64_t sum = 0;
  for (const auto& [number, segment] : segments_) sum += segment.file_bytes;
  return sum;
}

uint64_t SsdTier::live_bytes() const {
  const std::lock_guard lock(mutex_);
  uint64_t sum = 0;
  for (const auto& [number, segment] : segments_) sum += segment.live_bytes;
  return sum;
}

size_t SsdTier::num_segments() const {
  const std::lock_guard lock(mutex_);
  return segments_.size();
}

}  // namespace pith::store
