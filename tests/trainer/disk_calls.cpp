// Without the checks that some compilers put around the C library's functions: they would be defined twice.
#undef _FORTIFY_SOURCE
#include "tests/trainer/disk_calls.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <ctime>
#include <map>
#include <mutex>
#include <optional>
#include <random>

namespace lapidary {
namespace {

struct Watched {
  std::string folder;
  std::map<int, std::string> names;  ///< of open descriptors
  std::map<int, bool> writable;
  std::vector<DiskCall> calls;
  std::map<std::string, std::int64_t> bytes_read;
  int per_thousand = 0;
  std::mt19937 random;
  std::string part;
  int part_error = 0;
  int failures = 0;
};

std::mutex mutex;
std::optional<Watched> watched;

/// The path below the watched folder ("." for itself), or nothing.
std::optional<std::string> below(const std::string& path) {
  if (!watched) return std::nullopt;
  if (path == watched->folder) return ".";
  if (!path.starts_with(watched->folder + "/")) return std::nullopt;
  return path.substr(watched->folder.size() + 1);
}

/// The path of a call that is relative to a descriptor.
std::string full_path(int directory, const char* path) {
  if (path[0] == '/' || directory == AT_FDCWD) return path;
  char buffer[4096];
  const std::string link = "/proc/self/fd/" + std::to_string(directory);
  const long length = ::syscall(SYS_readlink, link.c_str(), buffer, sizeof buffer);
  return length < 0 ? path : std::string(buffer, static_cast<std::size_t>(length)) + "/" + path;
}

/// Whether the call is to fail; then errno is set.
bool refused(const std::string& what, const std::string& path) {
  Watched& w = *watched;
  int error_number = 0;
  if (!w.part.empty() && (what + " " + path).find(w.part) != std::string::npos) error_number = w.part_error;
  if (what != "read" && static_cast<int>(w.random() % 1000) < w.per_thousand)
    error_number = w.random() % 2 == 0 ? ENOSPC : EIO;
  if (error_number == 0) return false;
  ++w.failures;
  errno = error_number;
  return true;
}

void record(const std::string& what, const std::string& path) {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  watched->calls.push_back({what, path, now.tv_sec * 1'000'000'000LL + now.tv_nsec});
}

/// Runs `call` as `what` on `path`; -1 where it is to fail.
template <class Call>
auto observe(const std::string& what, const std::optional<std::string>& path, const Call& call)
    -> decltype(call()) {
  if (path && refused(what, *path)) return -1;
  const auto result = call();
  if (path && result >= 0 && what != "read") record(what, *path);
  return result;
}

std::optional<std::string> name_of(int descriptor) {
  if (!watched) return std::nullopt;
  const auto found = watched->names.find(descriptor);
  if (found == watched->names.end()) return std::nullopt;
  return found->second;
}

int open_at(int directory, const char* path, int flags, unsigned mode) {
  const std::lock_guard lock(mutex);
  const std::optional<std::string> name = below(full_path(directory, path));
  const auto call = [&] { return static_cast<int>(::syscall(SYS_openat, directory, path, flags, mode)); };
  const bool creates = (flags & O_CREAT) != 0 && ::syscall(SYS_access, path, F_OK) != 0;
  const int descriptor = creates ? observe("create", name, call) : call();
  if (name && descriptor >= 0) {
    watched->names[descriptor] = *name;
    watched->writable[descriptor] = (flags & O_ACCMODE) != O_RDONLY;
  }
  return descriptor;
}

int remove_at(int directory, const char* path, int flags) {
  const std::lock_guard lock(mutex);
  return observe("remove", below(full_path(directory, path)),
                 [&] { return static_cast<int>(::syscall(SYS_unlinkat, directory, path, flags)); });
}

int rename_at(int from_directory, const char* from, int to_directory, const char* to, unsigned flags) {
  const std::lock_guard lock(mutex);
  const auto source = below(full_path(from_directory, from));
  return observe("rename " + source.value_or(from) + " to", below(full_path(to_directory, to)), [&] {
    return static_cast<int>(::syscall(SYS_renameat2, from_directory, from, to_directory, to, flags));
  });
}

unsigned mode_of(int flags, std::va_list arguments) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, unsigned) : 0;
}

}  // namespace

DiskWatch::DiskWatch(const std::string& folder) {
  const std::lock_guard lock(mutex);
  watched.emplace();
  watched->folder = folder;
}
DiskWatch::~DiskWatch() {
  const std::lock_guard lock(mutex);
  watched.reset();
}
std::vector<DiskCall> DiskWatch::calls() const {
  const std::lock_guard lock(mutex);
  return watched->calls;
}
std::int64_t DiskWatch::bytes_read(const std::string& part) const {
  const std::lock_guard lock(mutex);
  std::int64_t sum = 0;
  for (const auto& [path, bytes] : watched->bytes_read)
    if (path.find(part) != std::string::npos) sum += bytes;
  return sum;
}
void DiskWatch::fail_at_random(int per_thousand, unsigned seed) {
  const std::lock_guard lock(mutex);
  watched->per_thousand = per_thousand;
  watched->random.seed(seed);
}
void DiskWatch::fail_where(const std::string& part, int error_number) {
  const std::lock_guard lock(mutex);
  watched->part = part;
  watched->part_error = error_number;
}
int DiskWatch::failures() const {
  const std::lock_guard lock(mutex);
  return watched->failures;
}

}  // namespace lapidary

using namespace lapidary;

#pragma GCC visibility push(default)  // for the shared libraries
extern "C" {

int open(const char* path, int flags, ...) {
  std::va_list arguments;
  va_start(arguments, flags);
  const unsigned mode = mode_of(flags, arguments);
  va_end(arguments);
  return open_at(AT_FDCWD, path, flags, mode);
}
int openat(int directory, const char* path, int flags, ...) {
  std::va_list arguments;
  va_start(arguments, flags);
  const unsigned mode = mode_of(flags, arguments);
  va_end(arguments);
  return open_at(directory, path, flags, mode);
}
int close(int descriptor) {
  const std::lock_guard lock(mutex);
  const auto name = name_of(descriptor);
  const auto call = [&] { return static_cast<int>(::syscall(SYS_close, descriptor)); };
  if (!name) return call();
  const bool writable = watched->writable[descriptor];
  watched->names.erase(descriptor);
  if (!writable) return call();
  const int result = call();  // a descriptor is gone even where close() fails
  return observe("close", name, [&] { return result; });
}
ssize_t pwrite(int descriptor, const void* from, std::size_t bytes, off_t offset) {
  std::optional<std::string> name;
  {
    const std::lock_guard lock(mutex);
    name = name_of(descriptor);
    if (name && refused("write", *name)) return -1;
  }
  const long written = ::syscall(SYS_pwrite64, descriptor, from, bytes, offset);
  const std::lock_guard lock(mutex);
  if (name && watched && written >= 0) record("write", *name);
  return written;
}
ssize_t pread(int descriptor, void* to, std::size_t bytes, off_t offset) {
  std::optional<std::string> name;
  {
    const std::lock_guard lock(mutex);
    name = name_of(descriptor);
    if (name && refused("read", *name)) return -1;
  }
  const long got = ::syscall(SYS_pread64, descriptor, to, bytes, offset);
  const std::lock_guard lock(mutex);
  if (name && watched && got > 0) watched->bytes_read[*name] += got;
  return got;
}
int fsync(int descriptor) {
  const std::lock_guard lock(mutex);
  return observe("sync", name_of(descriptor),
                 [&] { return static_cast<int>(::syscall(SYS_fsync, descriptor)); });
}
int mkdir(const char* path, mode_t mode) noexcept {
  const std::lock_guard lock(mutex);
  return observe("make folder", below(path),
                 [&] { return static_cast<int>(::syscall(SYS_mkdirat, AT_FDCWD, path, mode)); });
}
int unlink(const char* path) noexcept {
  return remove_at(AT_FDCWD, path, 0);
}
int unlinkat(int directory, const char* path, int flags) noexcept {
  return remove_at(directory, path, flags);
}
int rmdir(const char* path) noexcept {
  return remove_at(AT_FDCWD, path, AT_REMOVEDIR);
}
int remove(const char* path) noexcept {
  const int result = remove_at(AT_FDCWD, path, 0);
  return result != 0 && errno == EISDIR ? remove_at(AT_FDCWD, path, AT_REMOVEDIR) : result;
}
int rename(const char* from, const char* to) noexcept {
  return rename_at(AT_FDCWD, from, AT_FDCWD, to, 0);
}
int renameat2(int from_directory, const char* from, int to_directory, const char* to,
              unsigned flags) noexcept {
  return rename_at(from_directory, from, to_directory, to, flags);
}
}
#pragma GCC visibility pop
