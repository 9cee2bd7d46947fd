// Objects in a folder: records appended to segments, in files that several processes may share.
//
// A process appends to one segment at a time, which it holds locked; segments that nobody holds may be taken up again,
// or made anew without what is dead in them and removed. There is no index on the disk: opening scans the headers.
//
// Threads: any.
#ifndef PITH_STORE_SSD_TIER_H_
#define PITH_STORE_SSD_TIER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "pith/types.h"
#include "store/files.h"
#include "store/segment.h"

namespace pith::store {

struct SsdOptions {
  std::string folder;
  uint64_t limit_bytes = 0;    // of all files, at any time
  uint64_t segment_bytes = 0;  // 0: from the limit
  Files* files = &Files::Real();
};

// Where a record lies.
struct Place {
  uint64_t segment = 0;
  uint64_t offset = 0;
  uint64_t record_bytes = 0;
  uint64_t payload_offset = 0;
  uint64_t payload_bytes = 0;
  uint32_t payload_crc = 0;
  uint64_t number = 0;

  bool operator==(const Place&) const = default;
};

class SsdTier {
 public:
  // Called with no lock of this object held.
  struct Listener {
    std::function<void(const Place&, RecordHeader)> found;   // a record
    // A record lies elsewhere now. False: its object is gone, so that the copy is dead.
    std::function<bool(const Key&, const Place& from, const Place& to)> moved;
    std::function<void(uint64_t segment)> gone;              // with all that lay in it
  };

  // Makes the folder and scans it. kIo, kInvalidArgument: it cannot be had.
  static Result<std::unique_ptr<SsdTier>> Open(const SsdOptions& options, Listener listener);

  // On the disk when it returns. kOutOfBudget: the limit leaves no room; kIo.
  Result<Place> Append(const ObjectInfo& info, std::span<const std::byte> payload);
  // The record is gone, for every process and for ever.
  Status Erase(const Place& place);
  // [payload_bytes], compared with its sum. kNotFound: it was removed, or its segment is gone; kCorrupt, kIo.
  Status Read(const Place& place, std::span<std::byte> to);
  // Nobody wants the record any more.
  void Forget(const Place& place);
  // What other processes have written or removed since the last time.
  void Refresh();
  // Makes segments anew whose live share is below `share`. Returns the bytes that the files lost.
  Result<uint64_t> Compact(double share);

  uint64_t file_bytes() const;
  uint64_t live_bytes() const;
  size_t num_segments() const;
  uint64_t limit_bytes() const { return options_.limit_bytes; }
  // Bytes that live records may have, so that what is dead can be made room of without copying everything.
  uint64_t most_live_bytes() const { return options_.limit_bytes / 10 * 7; }

 private:
  struct Segment {
    std::string path;
    std::shared_ptr<File> file;  // for reading
    uint64_t scanned = 0;        // up to here whole records are known
    uint64_t file_bytes = 0;
    uint64_t live_bytes = 0;
    std::map<uint64_t, Key> live;  // by offset
  };

  SsdTier(const SsdOptions& options, Listener listener);
  // Scans what is new of a segment; tells the listener.
  void ScanNew(uint64_t number);
  uint64_t NextNumber();
  Status OpenHead(uint64_t record_bytes);
  bool TakeUpHead(uint64_t number);
  void SealHead();
  Result<Place> Write(const RecordHeader& header, std::span<const std::byte> payload);
  Status WriteRecord(uint64_t offset, std::span<const std::byte> header, std::span<const std::byte> payload);
  Status MakeRoom(uint64_t record_bytes);
  // The segment that gives most for least; 0: none whose live share is below `share`.
  uint64_t Victim(double share) const;
  Status Renew(uint64_t number);
  Status CopyRecord(const Key& key, uint64_t segment, uint64_t offset);
  std::shared_ptr<File> FileOf(uint64_t segment) const;
  Result<RecordHeader> ReadHeader(File& file, uint64_t offset) const;

  const SsdOptions options_;
  const Listener listener_;

  std::mutex append_mutex_;  // whoever writes; taken before mutex_
  std::unique_ptr<File> head_file_;
  std::map<uint64_t, bool> held_elsewhere_;  // segments that another process had locked, within one MakeRoom()

  mutable std::mutex mutex_;
  std::map<uint64_t, Segment> segments_;
  uint64_t head_ = 0;  // 0: none; changed with both mutexes held
  uint64_t last_number_ = 0;
};

}  // namespace pith::store

#endif  // PITH_STORE_SSD_TIER_H_
