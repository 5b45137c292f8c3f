// Every system call by which this program changes what is on a disk: seen, and refused where a test wants it.
// disk_calls.cpp defines the C library's functions in the test's own executable, so they come first, also for
// shared libraries.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace lapidary {

struct DiskCall {
  std::string what;  ///< "make folder", "create", "write", "close", "sync", "rename A to", "remove", "read"
  std::string path;  ///< relative to the watched folder, as the ones in `what`
  std::int64_t nanoseconds = 0;  ///< CLOCK_MONOTONIC when it had returned
  std::string text() const { return what + " " + path; }
};

/// Watches one folder and everything below it while it lives. One at a time; calls of any thread.
class DiskWatch {
 public:
  explicit DiskWatch(const std::string& folder);
  ~DiskWatch();
  DiskWatch(const DiskWatch&) = delete;
  DiskWatch& operator=(const DiskWatch&) = delete;

  /// What succeeded so far, in order; neither reads nor what is only opened to be read.
  std::vector<DiskCall> calls() const;
  /// From all files whose path contains `part`; bytes that are read twice count twice.
  std::int64_t bytes_read(const std::string& part) const;
  /// From now on so many of a thousand calls that change something fail, with ENOSPC or EIO.
  void fail_at_random(int per_thousand, unsigned seed);
  /// Calls whose text() contains `part` fail with this error number; empty: none.
  void fail_where(const std::string& part, int error_number);
  int failures() const;  ///< injected so far
};

}  // namespace lapidary
