#include "kernels/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "kernels/check.h"

namespace lapidary {
namespace {

// The kernel transfers at most 2 GiB - 4 KiB a call.
constexpr std::size_t kLargestTransfer = std::size_t{1} << 30;

bool users_to_mend(int error_number) {
  switch (error_number) {
    case ENOENT:
    case EACCES:
    case EPERM:
    case EROFS:
    case ENOTDIR:
    case EISDIR:
    case EEXIST:
    case ENOTEMPTY:
    case ENAMETOOLONG:
      return true;
    default:
      return false;
  }
}

}  // namespace

void fail_with_errno(std::string_view verb, const std::string& path, int error_number) {
  throw Error(fmt::format("{} {}: {}", verb, path, std::generic_category().message(error_number)),
              users_to_mend(error_number) ? ExitCode::bad_input : ExitCode::peer_lost);
}

File::File(const std::string& path, int flags, const char* verb) : path_(path) {
  do {
    descriptor_ = ::open(path.c_str(), flags | O_CLOEXEC, 0644);
  } while (descriptor_ < 0 && errno == EINTR);
  if (descriptor_ < 0) fail_with_errno(verb, path, errno);
}

File File::open_to_read(const std::string& path) {
  return {path, O_RDONLY, "cannot open"};
}
File File::open_to_write(const std::string& path) {
  return {path, O_RDWR, "cannot open for writing"};
}
File File::create(const std::string& path) {
  return {path, O_RDWR | O_CREAT | O_EXCL, "cannot create"};
}

File File::in_memory() {
  File file;
  file.descriptor_ = ::memfd_create("lapidary", MFD_CLOEXEC);
  if (file.descriptor_ < 0) fail_with_errno("cannot create", "a file in memory", errno);
  file.path_ = fmt::format("/proc/self/fd/{}", file.descriptor_);
  return file;
}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

std::int64_t File::size() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) fail_with_errno("cannot examine", path_, errno);
  return status.st_size;
}

void File::read_at(void* to, std::size_t bytes, std::int64_t offset) const {
  auto* at = static_cast<char*>(to);
  std::size_t done = 0;
  while (done < bytes) {
    const std::size_t ask = std::min(bytes - done, kLargestTransfer);
    const ssize_t got = ::pread(descriptor_, at + done, ask, offset + static_cast<std::int64_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_with_errno("cannot read", path_, errno);
    if (got == 0)
      fail("{}: the file ends at byte {}, expected {} bytes from byte {}: truncated?", path_, size(), bytes,
           offset);
    done += static_cast<std::size_t>(got);
  }
}

void File::will_read(std::int64_t offset, std::int64_t bytes) const {
  ::posix_fadvise(descriptor_, offset, bytes, POSIX_FADV_WILLNEED);  // advice: nothing depends on its success
}

void File::write_at(const void* from, std::size_t bytes, std::int64_t offset) {
  const auto* at = static_cast<const char*>(from);
  std::size_t done = 0;
  while (done < bytes) {
    const std::size_t ask = std::min(bytes - done, kLargestTransfer);
    const ssize_t put = ::pwrite(descriptor_, at + done, ask, offset + static_cast<std::int64_t>(done));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail_with_errno("cannot write", path_, errno);
    done += static_cast<std::size_t>(put);
  }
}

void File::sync() {
  if (::fsync(descriptor_) != 0) fail_with_errno("cannot write back (fsync)", path_, errno);
}

void File::close() {
  if (::close(std::exchange(descriptor_, -1)) != 0) fail_with_errno("cannot close", path_, errno);
}

void sync_directory(const std::string& path) {
  const int descriptor = ::open(path.empty() ? "." : path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail_with_errno("cannot open directory", path, errno);
  const int error_number = ::fsync(descriptor) == 0 ? 0 : errno;
  ::close(descriptor);
  // Some network file systems cannot fsync a directory and say so with EINVAL: nothing more can be done
  // there.
  if (error_number != 0 && error_number != EINVAL)
    fail_with_errno("cannot write back (fsync) directory", path, error_number);
}

void create_directories(const std::string& path) {
  std::error_code ignored;
  if (path.empty() || std::filesystem::is_directory(path, ignored)) return;
  const std::string parent = std::filesystem::path(path).parent_path();
  if (parent != path) create_directories(parent);
  if (::mkdir(path.c_str(), 0777) != 0) {
    const int error_number = errno;
    if (std::filesystem::is_directory(path, ignored)) return;  // "a/" after "a", or somebody was faster
    fail_with_errno("cannot create folder", path, error_number == EEXIST ? ENOTDIR : error_number);
  }
  sync_directory(parent);
}

std::string read_text_file(const std::string& path, std::int64_t limit) {
  const File file = File::open_to_read(path);
  const std::int64_t size = file.size();
  require(size <= limit, "{}: {} bytes, expected at most {}", path, size, limit);
  std::string text(static_cast<std::size_t>(size), '\0');
  file.read_at(text.data(), text.size(), 0);
  return text;
}

void write_new_text_file(const std::string& path, std::string_view text) {
  File file = File::create(path);
  file.write_at(text.data(), text.size(), 0);
  file.sync();
  file.close();
}

void publish(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0)
    fail_with_errno(fmt::format("cannot rename {} to", from), to, errno);
  sync_directory(std::filesystem::path(to).parent_path());
}

void publish_text_file(const std::string& path, std::string_view text) {
  const std::string unfinished = path + ".new";  // perhaps there already, of a program that was killed
  if (::unlink(unfinished.c_str()) != 0 && errno != ENOENT)
    fail_with_errno("cannot remove", unfinished, errno);
  write_new_text_file(unfinished, text);
  publish(unfinished, path);
}

void publish_new(const std::string& from, const std::string& to) {
  int result = ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE);
  if (result != 0 && (errno == EINVAL || errno == ENOSYS)) {  // some network file systems cannot promise it
    if (std::filesystem::exists(to)) fail_with_errno(fmt::format("cannot rename {} to", from), to, EEXIST);
    result = ::rename(from.c_str(), to.c_str());
  }
  if (result != 0) fail_with_errno(fmt::format("cannot rename {} to", from), to, errno);
  sync_directory(std::filesystem::path(to).parent_path());
}

}  // namespace lapidary
