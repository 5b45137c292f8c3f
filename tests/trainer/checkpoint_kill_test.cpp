// SIGKILL at random moments and at every point of the protocol, 220 times: whatever was acknowledged is found
// again, whole, and nothing half-written is taken for whole. The victims save, delete, sweep and load without
// pause.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <thread>

#include "tests/trainer/checkpoint_fixture.h"
#include "trainer/checkpoint_directory.h"
#include "trainer/checkpoint_saver.h"

namespace lapidary {
namespace {

using std::chrono::milliseconds;

std::string checkpoints_in(const std::string& folder) {
  return folder + "/checkpoints";
}

/// The newest step that a victim has acknowledged: what a user would have seen reported.
std::int64_t acknowledged(const std::string& folder) {
  std::ifstream in(folder + "/acknowledged");
  std::int64_t step = 0, last = 0;
  while (in >> step) last = step;
  return last;
}

/// Resumes from the newest checkpoint, then saves step after step until it is killed.
void save_for_ever(const std::string& folder, HostGroup& group, const CheckpointHook& hook) {
  const std::string directory = checkpoints_in(folder);
  if (group.rank() == 0) sweep_leftovers(directory);
  group.barrier("swept");
  const auto found = find_newest_checkpoint(directory, false, group);
  std::int64_t step = found ? found->manifest.step : 0;
  Holding holding(test_state(), group.rank(), group.size(), static_cast<unsigned>(step));
  if (found) {
    holding.clear();
    read_checkpoint(*found, holding.tensors(), group);
    require(holding.wrong(step) == 0, "the checkpoint of step {} holds something else", step);
  }
  const int acknowledge = ::open((folder + "/acknowledged").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  CheckpointSaver saver(directory, {.keep_last = 2}, holding.tensors(), cpu_backend(), 4096,
                        group.duplicate());
  const std::unique_ptr<Stream> compute = cpu_backend().make_stream("compute");
  for (;;) {
    holding.fill(++step);
    bool acknowledged_step = false;
    saver.start(step, "{}", std::nullopt, *compute, [&](std::string_view point) {
      if (hook) hook(point);
      if (point != "published" || std::exchange(acknowledged_step, true)) return;
      const std::string line = std::to_string(step) + "\n";
      require(::write(acknowledge, line.data(), line.size()) > 0, "cannot acknowledge");
    });
    holding.clear();  // training goes on
    const auto outcome = saver.wait();
    require(outcome->error.empty(), "{}", outcome->error);
    for (const std::string& problem : outcome->problems) fail("{}", problem);
  }
}

/// Everything published is whole; the newest is the last acknowledged, or the one that was being published.
void expect_nothing_lost(const std::string& folder, const std::string& what) {
  HostGroup alone;
  const std::string directory = checkpoints_in(folder);
  const std::int64_t step = acknowledged(folder);
  const auto steps = published_steps(directory);
  if (step > 0) {
    ASSERT_GE(steps.size(), std::min<std::size_t>(2, static_cast<std::size_t>(step))) << what;
    ASSERT_TRUE(steps[0] == step || steps[0] == step + 1)
        << what << ": found " << steps[0] << ", saved " << step;
  }
  for (const std::int64_t s : steps) {
    Holding holding(test_state(), 0, 1, 1);
    holding.clear();
    const Checkpoint checkpoint = open_checkpoint(directory + "/" + checkpoint_name(s), alone);
    read_checkpoint(checkpoint, holding.tensors(), alone);
    ASSERT_EQ(holding.wrong(s), 0) << what << ": step " << s;
  }
}

using Clock = std::chrono::steady_clock;

/// A moment to kill: so many acknowledged saves from now, then a random part of the time that one takes,
/// however fast the machine is.
void await_moment(const std::string& folder, std::mt19937& random) {
  const std::int64_t target = acknowledged(folder) + static_cast<std::int64_t>(random() % 3);
  auto since = Clock::now();
  auto one_save = Clock::duration(milliseconds(50));
  std::int64_t seen = acknowledged(folder);
  for (const auto end = Clock::now() + milliseconds(60000); seen < target && Clock::now() < end;) {
    std::this_thread::sleep_for(milliseconds(1));
    if (const std::int64_t now = acknowledged(folder); now > seen) {
      one_save = (Clock::now() - since) / (now - seen);
      since = Clock::now();
      seen = now;
    }
  }
  std::this_thread::sleep_for(one_save * (random() % 1000) / 1000);
}

class CheckpointKill : public testing::Test {
 protected:
  /// Runs a victim of one process until `hook` kills it, or, without one, until a random moment.
  void run_and_kill(const CheckpointHook& hook, const std::string& what) {
    const pid_t victim = fork();
    if (victim == 0) {
      try {
        HostGroup alone;
        save_for_ever(folder_.path(), alone, hook);
      } catch (const std::exception& e) {
        std::fprintf(stderr, "victim: %s\n", e.what());
      }
      _exit(1);
    }
    if (!hook) {
      await_moment(folder_.path(), random_);
      ::kill(victim, SIGKILL);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(victim, &status, 0), victim);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << what << ": ended with " << status;
    expect_nothing_lost(folder_.path(), what);
  }

  const TemporaryFolder folder_;
  std::mt19937 random_{20240229};
};

const std::vector<std::string> kPoints = {
    "folder created", "tensor written",  "file written",         "shard synced",
    "index synced",   "manifest synced", "folder synced",        "published",
    "delete renamed", "delete synced",   "delete removed a file"};

TEST_F(CheckpointKill, AtEveryPoint) {
  for (const std::string& point : kPoints) {
    for (int times : {1, 3}) {
      run_and_kill(
          [&](std::string_view at) {
            if (at == point && --times == 0) ::raise(SIGKILL);
          },
          point);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(CheckpointKill, AtRandomPoints) {
  for (int i = 0; i < 78; ++i) {
    int calls = 1 + static_cast<int>(random_() % 80);
    run_and_kill(
        [&](std::string_view) {
          if (--calls == 0) ::raise(SIGKILL);
        },
        fmt::format("after {} calls", calls));
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(acknowledged(folder_.path()), 20);
}

TEST_F(CheckpointKill, AtRandomMoments) {
  for (int i = 0; i < 100; ++i) {
    run_and_kill({}, "at a random moment");
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(acknowledged(folder_.path()), 20);
}

// -- over ranks: this program once more, under mpirun
std::vector<pid_t> victims_of(const std::string& folder, int ranks) {
  std::vector<pid_t> pids;
  for (int r = 0; r < ranks; ++r) {
    pid_t pid = 0;
    std::ifstream(folder + "/pid." + std::to_string(r)) >> pid;
    if (pid > 0) pids.push_back(pid);
  }
  return pids;
}

/// Gone, or dead and only not yet collected by its parent.
bool is_gone_soon(pid_t pid) {
  for (int tries = 0; tries < 1500; ++tries) {
    std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
    std::string number, name, state;
    if (!(in >> number >> name >> state) || state == "Z" || state == "X") return true;
    std::this_thread::sleep_for(milliseconds(10));
  }
  return false;
}

/// LAPIDARY_KILLS: how often, for a long run by hand.
int kills(int usual) {
  const char* asked = std::getenv("LAPIDARY_KILLS");
  return asked != nullptr ? std::atoi(asked) : usual;
}

TEST_F(CheckpointKill, AnyRankOfSeveral) {
  // On a loaded machine ranks are killed before they save much: go on until enough was saved to be lost.
  constexpr int kSaves = 20;
  for (int i = 0; i < kills(20) || (acknowledged(folder_.path()) <= kSaves && i < 3 * kills(20)); ++i) {
    const int ranks = 2 + i % 3;
    for (int r = 0; r < 4; ++r) std::filesystem::remove(folder_.path() + "/pid." + std::to_string(r));
    const pid_t launcher = fork();
    if (launcher == 0) {
      const int log = ::open((folder_.path() + "/log").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
      ::dup2(log, STDOUT_FILENO);
      ::dup2(log, STDERR_FILENO);
      const std::string script = LAPIDARY_SOURCE_DIR "/tests/mpirun.sh",
                        self = std::filesystem::read_symlink("/proc/self/exe");
      ::execl(script.c_str(), script.c_str(), std::to_string(ranks).c_str(), self.c_str(), "--victim",
              folder_.path().c_str(), nullptr);
      _exit(127);
    }
    std::vector<pid_t> victims;
    for (int tries = 0; tries < 2000 && static_cast<int>(victims.size()) < ranks; ++tries) {
      std::this_thread::sleep_for(milliseconds(10));
      victims = victims_of(folder_.path(), ranks);
    }
    ASSERT_EQ(static_cast<int>(victims.size()), ranks) << "the ranks did not start";
    await_moment(folder_.path(), random_);
    const std::size_t chosen = random_() % victims.size();
    ::kill(victims[chosen], SIGKILL);
    int status = 0;
    pid_t ended = 0;
    for (int tries = 0; tries < 1500 && (ended = ::waitpid(launcher, &status, WNOHANG)) == 0; ++tries)
      std::this_thread::sleep_for(milliseconds(10));
    ASSERT_EQ(ended, launcher) << "the others did not end within 15 s";
    ASSERT_NE(status, 0);
    for (const pid_t pid : victims) EXPECT_TRUE(is_gone_soon(pid)) << "rank left behind: " << pid;
    expect_nothing_lost(folder_.path(), fmt::format("rank {} of {}", chosen, ranks));
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(acknowledged(folder_.path()), kSaves);
}

int run_victim(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
  try {
    HostGroup world(MPI_COMM_WORLD, HostGroup::Duration(5000));
    const std::string name = fmt::format("{}/pid.{}", argv[2], world.rank());
    std::ofstream(name + ".new") << getpid() << "\n";
    std::filesystem::rename(name + ".new", name);
    save_for_ever(argv[2], world, {});
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    MPI_Abort(MPI_COMM_WORLD, 76);
  }
  return 0;
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) {
  if (argc == 3 && std::string(argv[1]) == "--victim") return lapidary::run_victim(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
