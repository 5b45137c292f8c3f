#include "data/checked_file.h"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <utility>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "kernels/check.h"
#include "kernels/checksum.h"

namespace lapidary {

namespace {

// One read of up to 4 MiB: large enough for striped file systems, small beside the read-ahead.
constexpr std::int64_t kRunSegments = 16;

std::int64_t segment_hash(const std::byte* bytes, std::int64_t size) {
  return static_cast<std::int64_t>(XXH3_64bits(bytes, static_cast<std::size_t>(size)));
}

/// Segments [first, last) that requests[from] and its followers need without a gap.
std::pair<std::int64_t, std::int64_t> run_from(const std::vector<ReadRequest>& requests, std::size_t from,
                                               std::int64_t first) {
  std::int64_t last = segments_in(requests[from].offset + requests[from].bytes);
  for (std::size_t r = from + 1; r < requests.size() && requests[r].offset / kSegmentBytes <= last; ++r) {
    if (last - first >= kRunSegments) break;
    last = std::max(last, segments_in(requests[r].offset + requests[r].bytes));
  }
  return {first, std::min(last, first + kRunSegments)};
}

}  // namespace

FileHashes hash_with_segments(const std::string& path) {
  const File file = File::open_to_read(path);
  FileHashes hashes{.bytes = file.size()};
  Checksum whole;
  std::vector<std::byte> segment(kSegmentBytes);
  for (std::int64_t at = 0; at < hashes.bytes; at += kSegmentBytes) {
    const std::int64_t size = std::min(kSegmentBytes, hashes.bytes - at);
    file.read_at(segment.data(), static_cast<std::size_t>(size), at);
    whole.add(segment.data(), static_cast<std::size_t>(size));
    hashes.segments.push_back(segment_hash(segment.data(), size));
  }
  hashes.checksum = whole.hex();
  return hashes;
}

CheckedFile::CheckedFile(const std::string& path, std::int64_t bytes, std::span<const std::int64_t> segments)
    : file_(File::open_to_read(path)), bytes_(bytes), segments_(segments) {
  require(file_.size() == bytes, "{}: {} bytes, expected {}: truncated or replaced", path, file_.size(),
          bytes);
  require(static_cast<std::int64_t>(segments.size()) == segments_in(bytes),
          "{}: {} segment hashes, expected {}", path, segments.size(), segments_in(bytes));
}

std::int64_t CheckedFile::load(std::int64_t first, std::int64_t last, std::vector<std::byte>& scratch) const {
  const std::int64_t begin = first * kSegmentBytes, end = std::min(last * kSegmentBytes, bytes_);
  if (static_cast<std::int64_t>(scratch.size()) < end - begin)
    scratch.resize(static_cast<std::size_t>(end - begin));
  file_.read_at(scratch.data(), static_cast<std::size_t>(end - begin), begin);
  for (std::int64_t s = first; s < last; ++s) {
    const std::int64_t at = s * kSegmentBytes, size = std::min(kSegmentBytes, bytes_ - at);
    require(segment_hash(scratch.data() + (at - begin), size) == segments_[s],
            "{}: bytes {} to {} are not what was written (hash mismatch): the file is damaged", file_.path(),
            at, at + size - 1);
  }
  return end - begin;
}

std::int64_t CheckedFile::read(std::vector<ReadRequest>& requests, std::vector<std::byte>& scratch) const {
  std::sort(requests.begin(), requests.end(),
            [](const ReadRequest& a, const ReadRequest& b) { return a.offset < b.offset; });
  std::int64_t advised = 0;  // segments up to here are announced
  for (const ReadRequest& request : requests) {
    require(request.offset >= 0 && request.bytes >= 0 && request.offset <= bytes_ - request.bytes,
            "{}: asked for {} bytes from byte {}, but the file has {}", file_.path(), request.bytes,
            request.offset, bytes_);
    const std::int64_t first = request.offset / kSegmentBytes,
                       last = segments_in(request.offset + request.bytes);
    if (last > advised) file_.will_read(first * kSegmentBytes, (last - first) * kSegmentBytes);
    advised = std::max(advised, last);
  }
  std::int64_t run_first = 0, run_last = 0;  // segments that scratch holds
  std::int64_t bytes_read = 0;
  for (std::size_t r = 0; r < requests.size(); ++r) {
    const ReadRequest& request = requests[r];
    const std::int64_t end = request.offset + request.bytes;
    for (std::int64_t at = request.offset; at < end;) {
      const std::int64_t segment = at / kSegmentBytes;
      if (segment < run_first || segment >= run_last) {
        std::tie(run_first, run_last) = run_from(requests, r, segment);
        bytes_read += load(run_first, run_last, scratch);
      }
      const std::int64_t take = std::min(end, run_last * kSegmentBytes) - at;
      std::memcpy(static_cast<std::byte*>(request.to) + (at - request.offset),
                  scratch.data() + (at - run_first * kSegmentBytes), static_cast<std::size_t>(take));
      at += take;
    }
  }
  return bytes_read;
}

}  // namespace lapidary
