// A run that is broken off and resumed is the run that was not: bit for bit on the same ranks, whatever it is
// made of; on other ranks and meshes with the same tensors and the same losses up to the order of sums.
// LAPIDARY_RESUMES, LAPIDARY_PAIRS: how many of each (LAPIDARY_PAIRS=375: all there are).
#include <gtest/gtest.h>
#include <mpi.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <random>
#include <set>

#include "tests/temporary_folder.h"
#include "tests/trainer/tiny_runs.h"
#include "trainer/checkpoint_directory.h"
#include "trainer/checkpoint_tools.h"

namespace lapidary {
namespace {

using Settings = std::vector<std::string>;

/// Layouts of weights and optimizer state, and how far losses may be off on other ranks: sums in another
/// order in float32; in bf16 they move roundings.
struct Layout {
  std::string name;
  Settings settings;
  double bound;
};
const std::vector<Layout> kLayouts = {
    {"wide", {"run.precision=float32"}, 1e-6},
    {"float32", {"run.precision=bf16", "optimizer.state=float32"}, 2e-3},
    {"split", {"run.precision=bf16", "optimizer.state=split"}, 2e-3},
    {"bf16", {"run.precision=bf16", "optimizer.state=bf16"}, 2e-3},
    {"float8", {"run.precision=bf16", "optimizer.state=float8"}, 2e-3},
};

std::string difference(const std::string& a, const std::string& b) {
  std::ostringstream out;
  return diff_checkpoints(a, b, out) ? "" : out.str();
}

// -- bit for bit, in this process
Settings random_features(std::mt19937& random) {
  const auto one_of = [&](const std::string& key, const std::vector<std::string>& values) {
    return key + "=" + values[random() % values.size()];
  };
  Settings settings = kLayouts[random() % kLayouts.size()].settings;
  if (settings.size() > 1 && random() % 2 == 0) settings.emplace_back("parallel.gradient_dtype=bf16");
  for (const auto& [key, values] : std::vector<std::pair<std::string, std::vector<std::string>>>{
           {"parallel.zero", {"2", "3"}},
           {"memory.activations", {"keep", "recompute_cheap", "recompute_gate_up", "recompute_block"}},
           {"model.image_attention", {"sliding", "all"}},
           {"schedule.kind", {"constant", "linear", "cosine"}},
           {"schedule.warmup_steps", {"0", "2"}},
           {"loss.label_smoothing", {"0", "0.1"}},
           {"loss.z_loss", {"0", "1e-4"}},
           {"optimizer.clip_norm", {"0", "1"}},
           {"optimizer.weight_decay", {"0", "0.1"}},
           {"optimizer.offload", {"true", "false"}},
           {"checkpoint.staging", {"1MiB", "1GiB"}},
           {"data.sequence_length", {"192", "256"}},
           {"train.rows_per_step", {"2", "3"}},
           {"train.rows_per_rank", {"1", "2"}},
           {"validation.every", {"0", "3"}},
           {"run.seed", {"1", "2", "3"}}})
    settings.push_back(one_of(key, values));
  settings.emplace_back("validation.rows=2");
  return settings;
}

TEST(Resume, AtAnyStepOfAnyRunIsTheSameBits) {
  const TemporaryFolder folder;
  const TinyRuns runs(folder.path());
  runs.build_data();
  ::setenv("LAPIDARY_FAULTS", "1", 1);
  std::mt19937 random(8);
  for (int trial = count_from_environment("LAPIDARY_RESUMES", 100); trial > 0; --trial) {
    const auto steps = 3 + static_cast<std::int64_t>(random() % 18),
               broken = 1 + static_cast<std::int64_t>(random() % (steps - 1));
    Settings settings = random_features(random);
    settings.push_back(fmt::format("train.steps={}", steps));
    const std::string what = fmt::format("{} of {}: {}", broken, steps, fmt::join(settings, " "));
    ASSERT_EQ(runs.run_alone("whole", settings), 0) << what;
    settings.push_back(fmt::format("checkpoint.every={}", broken));
    Settings failing = settings;
    failing.emplace_back("fault.kind=throw");
    failing.push_back(fmt::format("fault.step={}", broken + 1));
    ASSERT_THROW(runs.run_alone("broken", failing), Error) << what;
    std::string console;
    ASSERT_EQ(runs.run_alone("broken", settings, &console), 0) << what;
    ASSERT_TRUE(contains(console, fmt::format("Resuming from {}", runs.checkpoints_of("broken")))) << console;
    ASSERT_EQ(runs.steps("broken"), runs.steps("whole")) << what;
    ASSERT_EQ(runs.validation_losses("broken"), runs.validation_losses("whole")) << what;
    const std::string last = checkpoint_name(steps);
    ASSERT_EQ(
        difference(runs.checkpoints_of("whole") + "/" + last, runs.checkpoints_of("broken") + "/" + last), "")
        << what;
    runs.remove("whole");
    runs.remove("broken");
  }
}

// What would be saved again, or loaded by the next resume, belongs to another history.
TEST(Resume, RefusesToBeginBeforeWhatIsThere) {
  const TemporaryFolder folder;
  const TinyRuns runs(folder.path());
  runs.build_data();
  const Settings settings = {"train.steps=3", "train.rows_per_step=2", "checkpoint.every=1",
                             "checkpoint.keep_last=9"};
  ASSERT_EQ(runs.run_alone("run", settings), 0);
  const auto resumed = [&](const std::string& from, const std::string& name) {
    Settings more = settings;
    more.push_back("checkpoint.resume=" + from);
    return message_of([&] { runs.run_alone(name, more); });
  };
  const std::string first = runs.checkpoints_of("run") + "/" + checkpoint_name(1);
  const std::string newer = runs.checkpoints_of("run") + "/step-00000003 is newer than step ";
  EXPECT_TRUE(contains(resumed("none", "run"), newer + "0"));
  EXPECT_TRUE(contains(resumed(first, "run"), newer + "1"));
  EXPECT_EQ(resumed(first, "elsewhere"), "no error");
  EXPECT_EQ(runs.steps("elsewhere").at(3), runs.steps("run").at(3));
}

// -- on other ranks: this program once more under mpirun, which does all that so many ranks have to do
struct Pair {
  std::size_t layout;
  std::string shape;
  int writers, readers;
  std::string saved() const { return fmt::format("{}-{}-{}", kLayouts[layout].name, shape, writers); }
  std::string resumed() const { return fmt::format("{}-to-{}", saved(), readers); }
};

/// Every combination in an order in which the first ones say much; all of them with LAPIDARY_PAIRS=375.
std::vector<Pair> pairs() {
  const std::vector<int> counts = {1, 2, 3, 4, 7};
  std::vector<Pair> all;
  for (std::size_t layout = 0; layout < kLayouts.size(); ++layout)
    for (const char* shape : {"zero3", "zero2", "hybrid"})
      for (const int writers : counts)
        for (const int readers : counts) all.push_back({layout, shape, writers, readers});
  std::mt19937 random(20);
  std::shuffle(all.begin(), all.end(), random);
  all.resize(std::min(all.size(), static_cast<std::size_t>(count_from_environment("LAPIDARY_PAIRS", 20))));
  return all;
}

/// How weights are spread over so many ranks. hybrid: the largest shard group of at most half of them.
Settings spread(const std::string& shape, int ranks) {
  if (shape != "hybrid") return {"parallel.zero=" + shape.substr(4)};
  int shard = std::max(ranks / 2, 1);
  while (ranks % shard != 0) --shard;
  return {fmt::format("parallel.shard={}", shard)};
}

constexpr std::int64_t kSaved = 4, kSteps = 24;

class Worker {
 public:
  explicit Worker(const std::string& folder)
      : runs_(folder), world_(MPI_COMM_WORLD, std::chrono::seconds(300)) {}

  void save() {
    std::set<std::string> done;
    for (const Pair& pair : pairs())
      if (pair.writers == world_.size() && done.insert(pair.saved()).second)
        run(pair, pair.saved(), {"checkpoint.every=4", "checkpoint.keep_last=10"}, kSteps);
  }
  void resume() {
    for (const Pair& pair : pairs())
      if (pair.readers == world_.size()) resume(pair);
  }

 private:
  void run(const Pair& pair, const std::string& name, const Settings& more, std::int64_t steps) {
    Settings settings = {"data.sequence_length=96", "data.overlong=skip",
                         "train.rows_per_step=7",   "schedule.kind=constant",
                         "schedule.warmup_steps=2", fmt::format("train.steps={}", steps)};
    for (const Settings& list : {kLayouts[pair.layout].settings, spread(pair.shape, world_.size()), more})
      settings.insert(settings.end(), list.begin(), list.end());
    std::ostringstream console;
    const int code = train(runs_.config(name, settings), world_, {world_.rank(), world_.size()}, console);
    require(code == 0, "{}: ended with {}:\n{}", name, code, console.str());
  }
  void resume(const Pair& pair) {
    const std::string saved = runs_.checkpoints_of(pair.saved()) + "/" + checkpoint_name(kSaved),
                      name = pair.resumed();
    const Settings from = {"checkpoint.resume=" + saved, "checkpoint.every=0"};
    run(pair, name + "-same", from, kSaved);  // nothing to do but to save again
    run(pair, name, from, kSteps);
    world_.all_or_error("comparing", [&] {
      if (world_.rank() != 0) return;
      const std::string other =
          difference(saved, runs_.checkpoints_of(name + "-same") + "/" + checkpoint_name(kSaved));
      require(other.empty(), "{}: other tensors:\n{}", name, other);
      compare_losses(pair);
      runs_.remove(name + "-same");
      runs_.remove(name);
    });
  }
  void compare_losses(const Pair& pair) const {
    const auto resumed = runs_.steps(pair.resumed()), whole = runs_.steps(pair.saved());
    const Layout& layout = kLayouts[pair.layout];
    require(resumed.size() == kSteps - kSaved, "{}: {} steps", pair.resumed(), resumed.size());
    double off = 0;
    for (const auto& [step, line] : resumed) {
      const LoggedStep& expected = whole.at(step);
      require(line.data_hash == expected.data_hash, "{}: step {}: other samples", pair.resumed(), step);
      off = std::max(off, std::abs(line.loss - expected.loss) / std::abs(expected.loss));
      if (pair.readers == pair.writers)
        require(line == expected, "{}: step {}: other bits", pair.resumed(), step);
    }
    std::cout << fmt::format("{}, {}: {} to {} ranks: the same tensors, losses off by {:.1e}\n", layout.name,
                             pair.shape, pair.writers, pair.readers, off)
              << std::flush;
    require(off <= layout.bound, "{}: losses off by {:.1e}, expected at most {:.1e}", pair.resumed(), off,
            layout.bound);
  }

  TinyRuns runs_;
  HostGroup world_;
};

/// Runs `verb` on each of these numbers of ranks, at the same time; true: all went well.
bool on_ranks(const std::set<int>& counts, const std::string& verb, const std::string& folder) {
  const std::string script = LAPIDARY_SOURCE_DIR "/tests/mpirun.sh",
                    self = std::filesystem::read_symlink("/proc/self/exe");
  std::vector<pid_t> launchers;
  for (const int ranks : counts) {
    launchers.push_back(fork());
    if (launchers.back() != 0) continue;
    ::execl(script.c_str(), script.c_str(), std::to_string(ranks).c_str(), self.c_str(), verb.c_str(),
            folder.c_str(), nullptr);
    _exit(127);
  }
  bool well = true;
  for (const pid_t launcher : launchers) {
    int status = -1;
    well = ::waitpid(launcher, &status, 0) == launcher && status == 0 && well;
  }
  return well;
}

TEST(Resume, OnOtherRanksAndMeshes) {
  const TemporaryFolder folder;
  TinyRuns(folder.path()).build_data();
  std::set<int> writers, readers;
  for (const Pair& pair : pairs()) {
    writers.insert(pair.writers);
    readers.insert(pair.readers);
  }
  ASSERT_TRUE(on_ranks(writers, "--save", folder.path()));
  ASSERT_TRUE(on_ranks(readers, "--resume", folder.path()));
}

int work(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
  try {
    Worker worker(argv[2]);
    if (std::string(argv[1]) == "--save")
      worker.save();
    else
      worker.resume();
  } catch (const std::exception& e) {
    std::cerr << e.what() << std::endl;
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return 0;
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) {
  if (argc == 3) return lapidary::work(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
