// Damage of every kind to every file of a checkpoint: it is refused with the file's name, the one before is
// used when asked for, and nothing crashes. Also what inspect and verify print.
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "kernels/file.h"
#include "kernels/hdf5_file.h"
#include "tests/trainer/checkpoint_fixture.h"
#include "trainer/checkpoint_directory.h"
#include "trainer/checkpoint_files.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;

class CheckpointDamage : public testing::Test {
 protected:
  CheckpointDamage() {
    for (std::int64_t step = 1; step <= 2; ++step) {
      holding_.fill(step);
      write_checkpoint(folder_.path(), step, holding_.tensors(), R"({"position":[1,2]})", alone_,
                       {.metric = 1.5, .hook = {}});
    }
    newest_ = folder_.path() + "/" + checkpoint_name(2);
    fs::copy(newest_, kept_.path() + "/whole");
  }
  void repair() {
    fs::remove_all(newest_);
    fs::copy(kept_.path() + "/whole", newest_);
  }
  /// The newest is refused with `file` in the message, and the one before is found instead.
  void expect_found(const std::string& file, const std::string& what) {
    const std::string message = message_of([&] { find_newest_checkpoint(folder_.path(), false, alone_); });
    ASSERT_TRUE(contains(message, newest_ + "/" + file)) << what << ": " << message;
    const auto found = find_newest_checkpoint(folder_.path(), true, alone_);
    ASSERT_TRUE(found && found->manifest.step == 1 && found->passed_over.size() == 1) << what;
    const auto restored = restore_newest_checkpoint(folder_.path(), true, holding_.tensors(), alone_);
    ASSERT_TRUE(restored && restored->manifest.step == 1 && holding_.wrong(1) == 0) << what;
    ASSERT_EQ(restored->passed_over.at(0).message, found->passed_over.at(0).message) << what;
    std::ostringstream out;
    ASSERT_FALSE(verify_checkpoint(newest_, out)) << what;
    ASSERT_TRUE(contains(out.str(), file)) << what << ": " << out.str();
  }

  const TemporaryFolder folder_, kept_;
  HostGroup alone_;
  std::vector<TestTensor> state_ = test_state();
  Holding holding_{state_, 0, 1, 1};
  std::string newest_;
};

const std::vector<std::string> kFiles = {"manifest.json", "index.h5", "shard-00000.h5"};

TEST_F(CheckpointDamage, FlippedBits) {
  std::mt19937 random(1);
  for (int i = 0; i < 1000; ++i) {
    const std::string& name = kFiles[random() % kFiles.size()];
    File file = File::open_to_write(newest_ + "/" + name);
    const auto at = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(file.size()));
    char before = 0;
    file.read_at(&before, 1, at);
    const char after = static_cast<char>(before ^ (1 << random() % 8));
    file.write_at(&after, 1, at);
    expect_found(name, fmt::format("byte {} of {}", at, name));
    file.write_at(&before, 1, at);
  }
  EXPECT_EQ(restore_newest_checkpoint(folder_.path(), false, holding_.tensors(), alone_)->manifest.step, 2);
  EXPECT_EQ(holding_.wrong(2), 0);
}

TEST_F(CheckpointDamage, TruncatedGrownAndMissingFiles) {
  std::mt19937 random(2);
  for (const std::string& name : kFiles) {
    const std::string path = newest_ + "/" + name;
    const std::uintmax_t size = fs::file_size(path);
    for (int i = 0; i < 20; ++i) {
      fs::resize_file(path, i == 0 ? 0 : random() % size);
      expect_found(name, "truncated " + name);
      repair();
    }
    fs::resize_file(path, size + 1);
    expect_found(name, "grown " + name);
    fs::remove(path);
    expect_found(name, "missing " + name);
    fs::create_directory(path);
    expect_found(name, "a folder called " + name);
    repair();
  }
}

TEST_F(CheckpointDamage, FilesOfAnotherCheckpoint) {
  for (const std::string& name : kFiles) {
    fs::copy_file(folder_.path() + "/step-00000001/" + name, newest_ + "/" + name,
                  fs::copy_options::overwrite_existing);
    expect_found(name, "swapped " + name);
    repair();
  }
  fs::remove_all(newest_);  // a whole one under another step's name
  fs::copy(folder_.path() + "/step-00000001", newest_);
  expect_found("manifest.json", "another step");
  repair();
  fs::rename(newest_ + "/index.h5", newest_ + "/x");
  fs::rename(newest_ + "/shard-00000.h5", newest_ + "/index.h5");
  fs::rename(newest_ + "/x", newest_ + "/shard-00000.h5");
  expect_found("shard-00000.h5", "exchanged");
}

TEST_F(CheckpointDamage, NoneLeft) {
  for (std::int64_t step = 1; step <= 2; ++step)
    fs::resize_file(folder_.path() + "/" + checkpoint_name(step) + "/shard-00000.h5", 10);
  const std::string message = message_of([&] { find_newest_checkpoint(folder_.path(), true, alone_); });
  EXPECT_TRUE(contains(message, "every checkpoint is damaged:") && contains(message, "step-00000001") &&
              contains(message, "step-00000002"))
      << message;
  EXPECT_FALSE(find_newest_checkpoint(folder_.path() + "/absent", false, alone_));
  EXPECT_TRUE(contains(message_of([&] { open_checkpoint(folder_.path() + "/absent", alone_); }),
                       "absent/manifest.json"));
}

// Removed between the check and the read: an error, not half a state.
TEST_F(CheckpointDamage, GoneWhileReading) {
  const Checkpoint checkpoint = open_checkpoint(newest_, alone_);
  fs::resize_file(newest_ + "/shard-00000.h5", 2000);
  EXPECT_TRUE(contains(message_of([&] { read_checkpoint(checkpoint, holding_.tensors(), alone_); }),
                       "shard-00000.h5: the file ends at byte 2000"));
}

TEST_F(CheckpointDamage, InspectAndVerify) {
  std::ostringstream inspected, verified;
  inspect_checkpoint(newest_, true, inspected);
  const std::string text = inspected.str();
  for (const char* part :
       {"step     2, held-out loss 1.5000\n", "1 rank\n", "exp_avg_sq   f32          5              704",
        "\"position\"", "weight       [7, 2, 5]", "model.vision_embedder.pos_embedding"})
    EXPECT_TRUE(contains(text, part)) << part << " in:\n" << text;
  std::ostringstream short_text, list;
  inspect_checkpoint(newest_, false, short_text);
  EXPECT_TRUE(text.starts_with(short_text.str()) && !contains(short_text.str(), "pos_embedding"));
  fs::resize_file(folder_.path() + "/step-00000001/index.h5", 10);
  list_checkpoints(folder_.path(), list);
  EXPECT_TRUE(contains(list.str(), "step-00000002 ") && contains(list.str(), "iB  held-out loss 1.5000\n") &&
              contains(list.str(), "step-00000001  damaged: ") && contains(list.str(), "10 bytes, expected"))
      << list.str();
  EXPECT_TRUE(verify_checkpoint(newest_, verified));
  EXPECT_TRUE(contains(verified.str(), "index.h5: sound") && contains(verified.str(), "step 2 is sound"));
  std::ofstream(newest_ + "/notes.txt") << "mine";
  EXPECT_TRUE(verify_checkpoint(newest_, verified));
  EXPECT_TRUE(contains(verified.str(), "notes.txt: not part of the checkpoint"));
  EXPECT_TRUE(
      contains(message_of([&] { inspect_checkpoint(folder_.path(), false, inspected); }), "manifest.json"));
}

// The right checksums around a shard that says something else than the manifest.
TEST_F(CheckpointDamage, VerifyComparesHdf5WithTheManifest) {
  CheckpointManifest manifest = read_manifest(newest_);
  std::swap(manifest.tensors[1].slices, manifest.tensors[2].slices);  // same shape: a master read as a moment
  fs::remove(newest_ + "/manifest.json");
  write_new_text_file(newest_ + "/manifest.json", to_text(manifest));
  std::ostringstream out;
  EXPECT_FALSE(verify_checkpoint(newest_, out));
  EXPECT_TRUE(contains(
      out.str(), "shard-00000.h5: model.language_model.embed_tokens.weight (master): f32 [444] at byte"))
      << out.str();
}

TEST_F(CheckpointDamage, AFolderThatCannotBeWritten) {
  holding_.fill(3);
  const auto write = [&](const std::string& directory) {
    return message_of([&] { write_checkpoint(directory, 3, holding_.tensors(), "{}", alone_); });
  };
  EXPECT_TRUE(contains(write(newest_ + "/index.h5/run"), "Not a directory"));
  EXPECT_TRUE(contains(write("/proc/lapidary"), "cannot create folder /proc/lapidary"));
  fs::permissions(folder_.path(), fs::perms::owner_read | fs::perms::owner_exec);
  // Permissions do not stop root: be somebody else for a moment.
  const uid_t self = ::geteuid();
  if (self == 0 && (::chown(folder_.path().c_str(), 65534, 65534) != 0 || ::seteuid(65534) != 0)) FAIL();
  const std::string message = write(folder_.path());
  ASSERT_EQ(::seteuid(self), 0);
  fs::permissions(folder_.path(), fs::perms::owner_all);
  EXPECT_TRUE(contains(message, "cannot create folder " + folder_.path() + "/.tmp-3-1: Permission denied"))
      << message;
  EXPECT_EQ(published_steps(folder_.path()), (std::vector<std::int64_t>{2, 1}));
  EXPECT_EQ(write(folder_.path()), "no error");
}

TEST_F(CheckpointDamage, StateMustBeAnObject) {
  for (const char* state : {"", "[1]", "{\"a\":1,\"a\":2}", "{\"a\":NaN}", "{"})
    EXPECT_TRUE(
        contains(message_of([&] { write_checkpoint(folder_.path(), 9, holding_.tensors(), state, alone_); }),
                 "checkpoint state"))
        << state;
  EXPECT_TRUE(sweep_leftovers(folder_.path()).empty());
}

}  // namespace
}  // namespace lapidary
