#include "trainer/child_process.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "kernels/check.h"
#include "kernels/file.h"

namespace lapidary {

namespace {

/// Does not return. The message goes into the pipe; a length that is no message means success.
[[noreturn]] void be_the_child(const std::function<void()>& work, int pipe, int seconds) {
  const rlimit no_core{0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  std::signal(SIGALRM, SIG_DFL);
  alarm(static_cast<unsigned>(seconds));  // ends the process
  const int nowhere = ::open("/dev/null", O_WRONLY);
  ::dup2(nowhere, STDOUT_FILENO);
  ::dup2(nowhere, STDERR_FILENO);
  std::string message = "failed without a message";
  try {
    work();
    _exit(0);
  } catch (const std::exception& e) {
    message = e.what();
  } catch (...) {
  }
  message.resize(std::min<std::size_t>(message.size(), 4000));  // fits a pipe's buffer: never waits
  const bool written = ::write(pipe, message.data(), message.size()) >= 0;
  _exit(written ? 1 : 2);
}

}  // namespace

std::string run_in_child(const std::function<void()>& work, int seconds) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) fail_with_errno("cannot make", "a pipe", errno);
  const pid_t child = ::fork();
  if (child < 0) {
    const int error_number = errno;
    ::close(ends[0]);
    ::close(ends[1]);
    fail_with_errno("cannot start", "a process", error_number);
  }
  if (child == 0) be_the_child(work, ends[1], seconds);
  ::close(ends[1]);
  std::string message;
  char buffer[4096];
  for (ssize_t n = 0; (n = ::read(ends[0], buffer, sizeof buffer)) != 0;) {
    if (n > 0) message.append(buffer, static_cast<std::size_t>(n));
    if (n < 0 && errno != EINTR) break;
  }
  ::close(ends[0]);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return "";
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
    return fmt::format("did not end within {} s", seconds);
  if (WIFSIGNALED(status))
    return fmt::format("ended by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)));
  return message.empty() ? fmt::format("ended with code {}", WEXITSTATUS(status)) : message;
}

}  // namespace lapidary
