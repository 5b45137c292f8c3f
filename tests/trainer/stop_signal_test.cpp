#include "trainer/stop_signal.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

namespace lapidary {
namespace {

TEST(StopSignals, SaveIsAnsweredOnceAndStopStays) {
  StopSignals signals;
  EXPECT_EQ(signals.take(), StopRequest::none);
  raise(SIGUSR2);
  raise(SIGUSR2);
  EXPECT_EQ(signals.take(), StopRequest::save);
  EXPECT_EQ(signals.take(), StopRequest::none);
  raise(SIGUSR2);
  raise(SIGUSR1);
  EXPECT_EQ(signals.take(), StopRequest::stop);
  EXPECT_EQ(signals.take(), StopRequest::stop);
}

TEST(StopSignals, EachLifeStartsWithoutRequests) {
  {
    StopSignals signals;
    raise(SIGTERM);
    EXPECT_EQ(signals.take(), StopRequest::stop);
  }
  StopSignals signals;
  EXPECT_EQ(signals.take(), StopRequest::none);
}

// The wait status of a child that does this.
int status_of(const std::function<void()>& action) {
  const pid_t child = fork();
  if (child == 0) {
    action();
    _exit(3);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return status;
}

TEST(StopSignals, ASecondTermEndsTheProcess) {
  int status = status_of([] {
    StopSignals signals;
    raise(SIGTERM);
    if (signals.take() != StopRequest::stop) _exit(4);
    raise(SIGTERM);
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGTERM);
  status = status_of([] {  // as a scheduler does it: a warning first
    StopSignals signals;
    raise(SIGUSR1);
    raise(SIGTERM);
    raise(SIGUSR1);
  });
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 3);
}

TEST(StopSignals, TheDefaultsComeBack) {
  const int status = status_of([] {
    { StopSignals signals; }
    raise(SIGUSR1);
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGUSR1);
}

TEST(StopSignals, InterruptedReadsGoOn) {
  StopSignals signals;
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) {
    usleep(50'000);
    kill(parent, SIGUSR2);
    usleep(50'000);
    _exit(write(ends[1], "x", 1) == 1 ? 0 : 1);
  }
  char byte = 0;
  EXPECT_EQ(read(ends[0], &byte, 1), 1);  // would be -1 with EINTR
  EXPECT_EQ(signals.take(), StopRequest::save);
  int status = 0;
  waitpid(child, &status, 0);
  close(ends[0]);
  close(ends[1]);
}

}  // namespace
}  // namespace lapidary
