#include "trainer/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "kernels/check.h"
#include "kernels/file.h"

namespace lapidary {

RunLock::RunLock(const std::string& folder, std::chrono::seconds patience) {
  const std::string path = folder + "/.lock";
  descriptor_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail_with_errno("cannot open", path, errno);
  const auto give_up = std::chrono::steady_clock::now() + patience;
  while (flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    if (error == EWOULDBLOCK && std::chrono::steady_clock::now() < give_up) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      continue;
    }
    close(descriptor_);
    if (error != EWOULDBLOCK) fail_with_errno("cannot lock", path, error);
    throw Error(fmt::format("{}: another process is training in this folder (it holds {})", folder, path),
                ExitCode::peer_lost);
  }
}

RunLock::~RunLock() {
  close(descriptor_);
}

}  // namespace lapidary
