// Whole runs on a disk that fails, and runs that are killed: what was reported as saved is there and whole,
// and the run that goes on ends with the bits of the run that nothing happened to. LAPIDARY_FAULTY_RUNS,
// LAPIDARY_KILLS: how many of each.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <iostream>
#include <random>
#include <thread>

#include "tests/temporary_folder.h"
#include "tests/trainer/disk_calls.h"
#include "tests/trainer/tiny_runs.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_directory.h"
#include "trainer/checkpoint_tools.h"

namespace lapidary {
namespace {

const std::vector<std::string> kSettings = {
    "train.steps=12",     "train.rows_per_step=1", "checkpoint.every=1",    "schedule.warmup_steps=2",
    "validation.every=6", "validation.rows=2",     "checkpoint.keep_best=1"};
constexpr auto kLast = "/step-00000012";

class RunFaults : public testing::Test {
 protected:
  RunFaults() { runs_.build_data(); }

  /// Everything published is whole, and the newest is what was last reported as saved, or the one after it.
  void expect_nothing_lost(const std::string& what) {
    const std::string directory = runs_.checkpoints_of("run");
    const std::int64_t saved = runs_.acknowledged("run");
    const auto steps = published_steps(directory);
    HostGroup alone;
    for (const std::int64_t step : steps)
      ASSERT_EQ(message_of([&] { open_checkpoint(directory + "/" + checkpoint_name(step), alone); }),
                "no error")
          << what;
    if (saved == 0) return;
    ASSERT_FALSE(steps.empty()) << what;
    ASSERT_GE(steps.front(), saved) << what;
  }
  void expect_the_calm_run(const std::string& what) {
    ASSERT_EQ(runs_.steps("run"), runs_.steps("calm")) << what;
    std::ostringstream out;
    ASSERT_TRUE(
        diff_checkpoints(runs_.checkpoints_of("run") + kLast, runs_.checkpoints_of("calm") + kLast, out))
        << what << ": " << out.str();
  }

  /// Code 0 or 76, and what ended the run or cost a save names the file.
  void expect_words(int code, const std::string& message, const std::string& console) {
    ASSERT_TRUE(code == 0 || code == static_cast<int>(ExitCode::peer_lost)) << code << ": " << message << "\n"
                                                                            << console;
    const std::string run = runs_.folder_of("run");
    ASSERT_TRUE(message.empty() || (code != 0 && contains(message, run))) << message;
    std::istringstream lines(console);
    for (std::string line; std::getline(lines, line);)
      ASSERT_TRUE(!contains(line, "NOT SAVED") || contains(line, run)) << line;
  }

  const TemporaryFolder folder_;
  const TinyRuns runs_{folder_.path()};
};

TEST_F(RunFaults, OnADiskThatFails) {
  ASSERT_EQ(runs_.run_alone("calm", kSettings), 0);
  std::map<std::string, int> ends;
  for (int trial = count_from_environment("LAPIDARY_FAULTY_RUNS", 100); trial > 0; --trial) {
    const std::string what = fmt::format("trial {}", trial);
    {
      DiskWatch watch(runs_.folder_of("run"));
      // A save makes some 400 such calls: one in a hundred fails nearly all saves, one in a thousand a third.
      watch.fail_at_random(trial % 2 == 0 ? 10 : 1, static_cast<unsigned>(trial));
      int code = 0;
      std::string message, console;
      try {
        code = runs_.run_alone("run", kSettings, &console);
      } catch (const Error& e) {
        code = static_cast<int>(e.code());
        message = e.what();
      }
      expect_words(code, message, console);
      if (HasFatalFailure()) return;
      ++ends[watch.failures() == 0 ? "no call failed"
             : code == 0           ? "went on"
             : message.empty()     ? "ended with 76: the last state could not be saved"
                                   : "ended with 76 and a message"];
    }
    expect_nothing_lost(what);
    if (HasFatalFailure()) return;
    ASSERT_EQ(runs_.run_alone("run", kSettings), 0) << what;
    expect_the_calm_run(what);
    if (HasFatalFailure()) return;
    runs_.remove("run");
  }
  for (const auto& [end, count] : ends) std::cout << count << " runs: " << end << "\n";
}

// Each victim is forked from this process, which has never computed anything: no start of a program.
TEST_F(RunFaults, KilledAtRandomMoments) {
  using std::chrono::microseconds;
  const auto begin = [&](const std::string& name) {
    const pid_t victim = fork();
    if (victim != 0) return victim;
    int code = 1;
    try {
      code = runs_.run_alone(name, kSettings);
    } catch (const std::exception& e) {
      std::fprintf(stderr, "%s\n", e.what());
    }
    _exit(code);
  };
  const auto end = [](pid_t victim) {
    int status = -1;
    return ::waitpid(victim, &status, 0) == victim ? status : -1;
  };
  const auto started = std::chrono::steady_clock::now();
  ASSERT_EQ(end(begin("calm")), 0);
  const auto whole = std::chrono::duration_cast<microseconds>(std::chrono::steady_clock::now() - started);
  std::mt19937_64 random(11);
  int killed = 0, finished = 0;
  std::int64_t saved_when_killed = 0;
  for (const int wanted = count_from_environment("LAPIDARY_KILLS", 180); killed < wanted;) {
    const pid_t victim = begin("run");
    std::this_thread::sleep_for(microseconds(random() % static_cast<std::uint64_t>(whole.count() * 2 / 3)));
    ::kill(victim, SIGKILL);
    const int status = end(victim);
    const std::string what = fmt::format("kill {}", killed);
    if (WIFSIGNALED(status)) {
      ++killed;
      saved_when_killed += runs_.acknowledged("run") > 0 ? 1 : 0;
      expect_nothing_lost(what);
    } else {
      ASSERT_EQ(status, 0) << what;
      ++finished;
      expect_the_calm_run(what);
      runs_.remove("run");
    }
    if (HasFatalFailure()) return;
  }
  ASSERT_EQ(end(begin("run")), 0);
  expect_the_calm_run("the last run");
  std::cout << killed << " kills, " << saved_when_killed << " of them after a save, in " << finished + 1
            << " runs\n";
  EXPECT_GT(saved_when_killed, killed / 4);
}

}  // namespace
}  // namespace lapidary
