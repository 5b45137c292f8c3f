// What may be deleted: random folders full of sound, damaged, hidden and foreign things, against a plain
// restatement of the rule.
#include <fstream>
#include <set>

#include "kernels/file.h"
#include "tests/trainer/checkpoint_fixture.h"
#include "trainer/checkpoint_directory.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;

/// A checkpoint of one small file, without HDF5: retention looks at the manifest and the sizes.
void make_checkpoint(const std::string& directory, std::int64_t step, std::optional<double> metric) {
  const std::string path = directory + "/" + checkpoint_name(step);
  fs::create_directories(path);
  CheckpointManifest manifest;
  manifest.step = step;
  manifest.metric = metric;
  manifest.files = {{"shard-00000.h5", 5, std::string(32, '0')}};
  std::ofstream(path + "/shard-00000.h5") << "12345";
  std::ofstream(path + "/manifest.json") << to_text(manifest);
}

std::set<std::string> names_in(const std::string& directory) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) names.insert(entry.path().filename().string());
  return names;
}

/// The rule once more: of the sound ones, the newest, the multiples and the best stay.
std::set<std::int64_t> kept_steps(const std::vector<SoundCheckpoint>& sound, const CheckpointRetention& r) {
  std::set<std::int64_t> kept;
  for (const SoundCheckpoint& one : sound) {
    int newer = 0, better = 0;
    for (const SoundCheckpoint& other : sound) {
      newer += other.step > one.step ? 1 : 0;
      const bool is_better =
          other.metric && one.metric &&
          (*other.metric < *one.metric || (*other.metric == *one.metric && other.step > one.step));
      better += is_better ? 1 : 0;
    }
    const bool multiple = r.keep_every > 0 && one.step % r.keep_every == 0;
    if (newer < r.keep_last || multiple || (one.metric && better < r.keep_best)) kept.insert(one.step);
  }
  return kept;
}

TEST(CheckpointRetention, RandomSets) {
  std::mt19937 random(7);
  const auto below = [&](unsigned n) { return static_cast<int>(random() % n); };
  for (int trial = 0; trial < 10000; ++trial) {
    std::vector<SoundCheckpoint> sound;
    for (int step = below(10); step < 200; step += 1 + below(30))
      sound.push_back({step, below(2) == 0 ? std::optional<double>(below(6)) : std::nullopt});
    std::shuffle(sound.begin(), sound.end(), random);
    const CheckpointRetention retention{1 + below(5), below(3) * 20, below(4)};
    std::set<std::int64_t> left;
    for (const SoundCheckpoint& checkpoint : sound) left.insert(checkpoint.step);
    for (const std::int64_t step : superfluous_steps(sound, retention)) ASSERT_EQ(left.erase(step), 1u);
    ASSERT_EQ(left, kept_steps(sound, retention));
    ASSERT_GE(left.size(), std::min(sound.size(), static_cast<std::size_t>(retention.keep_last)));
  }
}

TEST(CheckpointRetention, RandomFolders) {
  std::mt19937 random(42);
  const auto below = [&](unsigned n) { return static_cast<int>(random() % n); };
  for (int trial = 0; trial < 25; ++trial) {
    const TemporaryFolder folder;
    std::vector<SoundCheckpoint> sound;
    std::set<std::string> stays = {"step-5", "step-0000000x", "notes.txt", ".tmp-x", "run"};  // foreign
    for (const std::string& name : stays) fs::create_directory(folder.path() + "/" + name);
    fs::create_directory_symlink("/", folder.path() + "/step-99999998");
    stays.insert("step-99999998");
    for (std::int64_t step = 0; step < 30; ++step) {
      const std::string path = folder.path() + "/" + checkpoint_name(step);
      const std::optional<double> metric = below(2) == 0 ? std::optional<double>(below(8)) : std::nullopt;
      switch (below(6)) {
        case 0:
        case 1:
        case 2:
          make_checkpoint(folder.path(), step, metric);
          sound.push_back({step, metric});
          break;
        case 3: {  // damaged in one of several ways
          make_checkpoint(folder.path(), step, metric);
          const auto way = below(4);
          if (way == 0) fs::remove(path + "/manifest.json");
          if (way == 1) fs::remove(path + "/shard-00000.h5");
          if (way == 2) fs::resize_file(path + "/shard-00000.h5", 4);
          if (way == 3) fs::resize_file(path + "/manifest.json", 100);
          stays.insert(checkpoint_name(step));
          break;
        }
        case 4:  // never published
          fs::create_directory(folder.path() + "/.tmp-" + std::to_string(step) + "-1");
          stays.insert(".tmp-" + std::to_string(step) + "-1");
          break;
        default:
          break;
      }
    }
    const CheckpointRetention retention{1 + below(5), below(2) * 7, below(4)};
    for (const std::int64_t step : kept_steps(sound, retention)) stays.insert(checkpoint_name(step));
    EXPECT_TRUE(delete_old_checkpoints(folder.path(), retention).empty());
    ASSERT_EQ(names_in(folder.path()), stays) << "trial " << trial;
    EXPECT_TRUE(delete_old_checkpoints(folder.path(), retention).empty());  // once more changes nothing
    ASSERT_EQ(names_in(folder.path()), stays);
  }
}

TEST(CheckpointRetention, FewerThanItKeeps) {
  const TemporaryFolder folder;
  EXPECT_TRUE(sound_checkpoints(folder.path() + "/absent").empty());
  EXPECT_TRUE(superfluous_steps({}, {}).empty());
  make_checkpoint(folder.path(), 1, std::nullopt);
  EXPECT_TRUE(superfluous_steps(sound_checkpoints(folder.path()), {.keep_last = 1000}).empty());
  EXPECT_TRUE(contains(message_of([&] { superfluous_steps({}, {.keep_last = 0}); }), "keep_last is 0"));
}

TEST(CheckpointRetention, OneFailureDoesNotStopTheOthers) {
  const TemporaryFolder folder;
  for (std::int64_t step = 1; step <= 4; ++step) make_checkpoint(folder.path(), step, std::nullopt);
  int calls = 0;
  const auto problems = delete_old_checkpoints(folder.path(), {.keep_last = 1}, [&](std::string_view point) {
    if (point == "delete renamed" && ++calls == 1) throw Error("device is gone", ExitCode::peer_lost);
  });
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_TRUE(contains(problems[0], "step-00000003 could not be deleted: device is gone"));
  EXPECT_EQ(published_steps(folder.path()), std::vector<std::int64_t>{4});
  EXPECT_EQ(sweep_leftovers(folder.path()), std::vector<std::string>{".del-3-1"});
}

TEST(CheckpointSweep, RemovesLeftoversAndNothingElse) {
  const TemporaryFolder folder;
  const std::set<std::string> foreign = {".tmp",    ".tmp-5",  ".tmp-5-x", ".tmp-5-1-2",   ".delete",
                                         ".del--1", "tmp-5-1", ".git",     "step-00000005"};
  for (const std::string& name : foreign) fs::create_directory(folder.path() + "/" + name);
  for (const char* name : {".tmp-5-1", ".tmp-123456789-12", ".del-0-1"}) {
    fs::create_directories(folder.path() + "/" + name + "/inner");
    std::ofstream(folder.path() + "/" + name + "/shard") << "x";
  }
  fs::create_directory_symlink("/", folder.path() + "/.tmp-6-1");
  EXPECT_EQ(sweep_leftovers(folder.path()),
            (std::vector<std::string>{".del-0-1", ".tmp-123456789-12", ".tmp-5-1"}));
  auto expected = foreign;
  expected.insert(".tmp-6-1");
  EXPECT_EQ(names_in(folder.path()), expected);
  EXPECT_TRUE(sweep_leftovers(folder.path() + "/absent").empty());
}

TEST(CheckpointNames, OnlyOurOwn) {
  EXPECT_EQ(checkpoint_name(60), "step-00000060");
  EXPECT_EQ(checkpoint_step("step-00000060"), 60);
  EXPECT_EQ(checkpoint_step(checkpoint_name(1234567890)), 1234567890);
  for (const char* name : {"step-60", "step-", "step-0000006x", "step--0000060", "Step-00000060",
                           "step-00000060 ", "step-000000060", "step-99999999999999999999"})
    EXPECT_FALSE(checkpoint_step(name)) << name;
}

}  // namespace
}  // namespace lapidary
