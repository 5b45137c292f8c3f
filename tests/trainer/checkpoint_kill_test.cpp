// SIGKILL at random moments and at every point of the protocol: whatever was acknowledged is found again,
// whole, and nothing half-written is taken for whole. The victims sweep, load, save and delete without pause
// and say what they are doing, so that each of these is killed equally often, short as it may be. SIGSTOP
// over ranks: nobody waits for ever, and the message names who did not come. LAPIDARY_KILLS: how many over
// ranks.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <fstream>
#include <iostream>
#include <map>
#include <thread>

#include "kernels/file.h"
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

enum Phase : int { starting, sweeping, loading, saving, deleting };
constexpr const char* kPhaseNames[] = {"starting", "sweeping", "loading", "saving", "deleting"};
constexpr Phase kStruck[] = {sweeping, loading, saving, deleting};

/// What a rank is doing, in a page of a file that outlives it.
class PhaseOfRank {
 public:
  PhaseOfRank(const std::string& folder, int rank) {
    const int file =
        ::open(fmt::format("{}/phase.{}", folder, rank).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    require(file >= 0 && ::ftruncate(file, sizeof(*phase_)) == 0, "cannot make a page for the phase");
    void* const page = ::mmap(nullptr, sizeof(*phase_), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    require(page != MAP_FAILED, "cannot map a page for the phase");
    ::close(file);
    phase_ = static_cast<std::atomic<int>*>(page);
  }
  ~PhaseOfRank() { ::munmap(phase_, sizeof(*phase_)); }
  PhaseOfRank(const PhaseOfRank&) = delete;
  PhaseOfRank& operator=(const PhaseOfRank&) = delete;
  void set(Phase phase) { phase_->store(phase); }
  Phase get() const { return static_cast<Phase>(phase_->load()); }

 private:
  std::atomic<int>* phase_ = nullptr;
};

/// The newest checkpoint into `holding`; returns its step, 0 if there is none.
std::int64_t load_newest(const std::string& directory, Holding& holding, HostGroup& group) {
  holding.clear();
  const auto found = restore_newest_checkpoint(directory, false, holding.tensors(), group);
  if (!found) return 0;
  require(holding.wrong(found->manifest.step) == 0, "the checkpoint of step {} holds something else",
          found->manifest.step);
  return found->manifest.step;
}

/// Resumes from the newest checkpoint, then saves step after step until it is killed; every other one is
/// loaded again, and there is always something to sweep.
void save_for_ever(const std::string& folder, HostGroup& group, const CheckpointHook& hook) {
  const std::string directory = checkpoints_in(folder);
  PhaseOfRank phase(folder, group.rank());
  const auto sweep = [&] {
    phase.set(sweeping);
    if (group.rank() == 0) sweep_leftovers(directory);
    group.barrier("swept");
  };
  sweep();
  phase.set(loading);
  Holding holding(test_state(), group.rank(), group.size(), 3);
  std::int64_t step = load_newest(directory, holding, group);
  const int acknowledge = ::open((folder + "/acknowledged").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  CheckpointSaver saver(directory, {.keep_last = 2}, holding.tensors(), cpu_backend(), 4096,
                        group.duplicate());
  const std::unique_ptr<Stream> compute = cpu_backend().make_stream("compute");
  for (;;) {
    phase.set(saving);
    holding.fill(++step);
    bool acknowledged_step = false;
    saver.start(step, "{}", std::nullopt, *compute, [&](std::string_view point) {
      if (hook) hook(point);
      if (point != "published" || std::exchange(acknowledged_step, true)) return;
      const std::string line = std::to_string(step) + "\n";
      require(::write(acknowledge, line.data(), line.size()) > 0, "cannot acknowledge");
      phase.set(deleting);
    });
    holding.clear();  // training goes on
    const auto outcome = saver.wait();
    require(outcome->error.empty(), "{}", outcome->error);
    for (const std::string& problem : outcome->problems) fail("{}", problem);
    if (step % 2 != 0) continue;
    phase.set(sweeping);
    if (group.rank() == 0) {
      const std::string left = create_hidden_folder(directory, "tmp", step);
      for (const char* name : {"a", "b", "c"}) std::ofstream(left + "/" + name) << "left";
    }
    sweep();
    phase.set(loading);
    require(load_newest(directory, holding, group) == step, "step {} was saved, but is not the newest", step);
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

/// Waits until the rank does `wanted`, then for a random part of a millisecond: a moment to kill it. What it
/// does then is what get() says afterwards.
void await_moment(const PhaseOfRank& rank, Phase wanted, std::mt19937& random) {
  // Anywhere in the program's loop, not always in its first round.
  std::this_thread::sleep_for(milliseconds(random() % 60));
  const auto end = Clock::now() + milliseconds(20000);
  while (rank.get() != wanted && Clock::now() < end)
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  std::this_thread::sleep_for(std::chrono::microseconds(random() % 1000));
}

class CheckpointKill : public testing::Test {
 protected:
  /// Runs a victim of one process until `hook` kills it, or, without one, until a random moment.
  void run_and_kill(const CheckpointHook& hook, const std::string& what) {
    PhaseOfRank phase(folder_.path(), 0);
    phase.set(starting);
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
      await_moment(phase, static_cast<Phase>(sweeping + random_() % 4), random_);
      ::kill(victim, SIGKILL);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(victim, &status, 0), victim);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << what << ": ended with " << status;
    ++killed_in_[phase.get()];
    expect_nothing_lost(folder_.path(), what);
  }
  /// Something that a victim does was interrupted less than `least` times.
  bool too_few(int least) {
    return std::ranges::any_of(kStruck, [&](Phase phase) { return killed_in_[phase] < least; });
  }
  void expect_all_phases(int least) {
    for (const Phase phase : kStruck) {
      std::cout << fmt::format("{} killed while {}; ", killed_in_[phase], kPhaseNames[phase]);
      EXPECT_GE(killed_in_[phase], least) << kPhaseNames[phase];
    }
    std::cout << "\n";
  }

  const TemporaryFolder folder_;
  std::mt19937 random_{20240229};
  std::map<Phase, int> killed_in_;
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
  // On a loaded machine what is short is often over before the signal comes: go on until it was hit.
  constexpr int kLeast = 5;
  for (int i = 0; i < 100 || (too_few(kLeast) && i < 500); ++i) {
    run_and_kill({}, "at a random moment");
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(acknowledged(folder_.path()), 20);
  expect_all_phases(kLeast);
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

class CheckpointKillRanks : public CheckpointKill {
 protected:
  /// Starts ranks that save for ever; returns the launcher and their processes.
  std::pair<pid_t, std::vector<pid_t>> start(int ranks) {
    for (int r = 0; r < 4; ++r) {
      std::filesystem::remove(folder_.path() + "/pid." + std::to_string(r));
      PhaseOfRank(folder_.path(), r).set(starting);
    }
    const pid_t launcher = fork();
    if (launcher == 0) {
      const int log = ::open(log_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
      ::dup2(log, STDOUT_FILENO);
      ::dup2(log, STDERR_FILENO);
      const std::string script = LAPIDARY_SOURCE_DIR "/tests/mpirun.sh",
                        self = std::filesystem::read_symlink("/proc/self/exe");
      ::execl(script.c_str(), script.c_str(), std::to_string(ranks).c_str(), self.c_str(), "--victim",
              folder_.path().c_str(), nullptr);
      _exit(127);
    }
    std::vector<pid_t> victims;
    for (int tries = 0; tries < 6000 && static_cast<int>(victims.size()) < ranks; ++tries) {
      std::this_thread::sleep_for(milliseconds(10));
      victims = victims_of(folder_.path(), ranks);
    }
    return {launcher, victims};
  }
  /// All ranks and their launcher are gone within 15 s.
  void expect_all_gone(pid_t launcher, const std::vector<pid_t>& victims) {
    int status = 0;
    pid_t ended = 0;
    for (int tries = 0; tries < 1500 && (ended = ::waitpid(launcher, &status, WNOHANG)) == 0; ++tries)
      std::this_thread::sleep_for(milliseconds(10));
    ASSERT_EQ(ended, launcher) << "the others did not end within 15 s";
    ASSERT_NE(status, 0);
    for (const pid_t pid : victims) EXPECT_TRUE(is_gone_soon(pid)) << "rank left behind: " << pid;
  }
  /// Sends `signal` to a random rank of `ranks` at a random moment of what is asked for; returns the rank.
  int strike(int ranks, Phase wanted, int signal) {
    const auto [launcher, victims] = start(ranks);
    if (static_cast<int>(victims.size()) != ranks) {
      ADD_FAILURE() << "the ranks did not start";
      return -1;
    }
    // Only rank 0 deletes and sweeps.
    const std::size_t chosen = wanted == deleting || wanted == sweeping ? 0 : random_() % victims.size();
    const PhaseOfRank phase(folder_.path(), static_cast<int>(chosen));
    await_moment(phase, wanted, random_);
    ::kill(victims[chosen], signal);
    expect_all_gone(launcher, victims);
    ++killed_in_[phase.get()];
    expect_nothing_lost(folder_.path(), fmt::format("rank {} of {}", chosen, ranks));
    return static_cast<int>(chosen);
  }

  const std::string log_ = folder_.path() + "/log";
};

TEST_F(CheckpointKillRanks, AnyRankAtAnyMoment) {
  // On a loaded machine ranks are killed before they save much: go on until enough was saved to be lost.
  constexpr int kSaves = 10;
  const int wanted = kills(20);
  const auto enough = [&] { return acknowledged(folder_.path()) > kSaves && !too_few(1); };
  for (int i = 0; i < wanted || (!enough() && i < 3 * wanted); ++i) {
    strike(2 + i % 3, static_cast<Phase>(sweeping + i % 4), SIGKILL);
    if (HasFailure()) return;
  }
  EXPECT_GT(acknowledged(folder_.path()), kSaves);
  expect_all_phases(1);
}

// A rank that hangs: the others give up after their deadline of 5 s, and say who did not come, and to what.
TEST_F(CheckpointKillRanks, ARankThatStopsIsNamed) {
  for (int i = 0; i < kills(20) / 10; ++i) {
    const int stopped = strike(2 + i % 3, static_cast<Phase>(sweeping + i % 4), SIGSTOP);
    if (HasFailure()) return;
    const std::string log = read_text_file(log_, 1 << 20);
    EXPECT_TRUE(contains(log, fmt::format("missing: rank {}", stopped)) && contains(log, "gave up after"))
        << log;
  }
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
