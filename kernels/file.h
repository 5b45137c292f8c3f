// Files by descriptor: exact reads and writes at an offset, fsync, and publication by rename. Everything that
// must survive a crash (checkpoints, exported weights) is written through here, so that every return code is
// checked and every message names the path.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lapidary {

/// An open file. Not copied; closed by the destructor, which ignores errors: a writer calls sync() and
/// close(). Reads and writes at an offset may be called by several threads at once. Errors: what the user can
/// mend (no such file, no permission, read-only) is bad input; a failing device, a full disk and the like
/// carry ExitCode::peer_lost, on which a batch script tries again.
class File {
 public:
  static File open_to_read(const std::string& path);
  static File open_to_write(const std::string& path);  ///< must exist; reads and writes
  /// Without a place on any disk: gone when closed. path() works for other libraries of this process. Sparse.
  static File in_memory();
  static File create(const std::string& path);  ///< must not exist; reads and writes

  File() = default;
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  const std::string& path() const { return path_; }
  std::int64_t size() const;  ///< bytes now
  /// Exactly `bytes` from `offset`; Error naming the file's size if it ends before.
  void read_at(void* to, std::size_t bytes, std::int64_t offset) const;
  /// Tells the system that these bytes are read soon, so that slow storage fetches them together.
  void will_read(std::int64_t offset, std::int64_t bytes) const;
  void write_at(const void* from, std::size_t bytes, std::int64_t offset);
  void sync();   ///< fsync
  void close();  ///< and reports a failure that only shows now

 private:
  File(const std::string& path, int flags, const char* verb);
  std::string path_;
  int descriptor_ = -1;
};

/// fsync of a directory: makes the names in it survive a crash.
void sync_directory(const std::string& path);

/// A directory and those above it that are missing; the names of new ones survive a crash. Nothing to do
/// where it is there.
void create_directories(const std::string& path);

/// The whole file; Error if it is larger than `limit` bytes.
std::string read_text_file(const std::string& path, std::int64_t limit);

/// A new file with this text, fsynced (its directory is not).
void write_new_text_file(const std::string& path, std::string_view text);

/// rename(2) and fsync of the directory that holds `to`. A file at `to` is replaced.
void publish(const std::string& from, const std::string& to);

/// Replaces the file at `path`, or makes it: readers see the old text or the new one, also after a crash.
/// What is unfinished is called <path>.new.
void publish_text_file(const std::string& path, std::string_view text);

/// The same as publish() where nothing may be replaced: Error if there is anything at `to`.
void publish_new(const std::string& from, const std::string& to);

/// Throws Error "<verb> <path>: <what the error number means>" with the exit code described at File.
[[noreturn]] void fail_with_errno(std::string_view verb, const std::string& path, int error_number);

}  // namespace lapidary
