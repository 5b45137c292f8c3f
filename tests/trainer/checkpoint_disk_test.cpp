// What a save asks of the disk, in which order: after a power cut at any moment what is published is whole.
#include "tests/trainer/checkpoint_fixture.h"
#include "tests/trainer/disk_calls.h"
#include "trainer/checkpoint_directory.h"

namespace lapidary {
namespace {

constexpr HostGroup::Duration kDeadline{60000};
using Calls = std::vector<std::string>;

/// Without repeated lines: how often a file is written to does not matter.
Calls texts_of(const std::vector<DiskCall>& calls) {
  Calls texts;
  for (const DiskCall& call : calls)
    if (texts.empty() || texts.back() != call.text()) texts.push_back(call.text());
  return texts;
}

class CheckpointDisk : public testing::Test {
 protected:
  CheckpointDisk() : world_(MPI_COMM_WORLD, kDeadline) {
    if (world_.rank() == 0) folder_ = std::make_unique<TemporaryFolder>();
    path_ = world_.broadcast(folder_ ? folder_->path() : "", 0, "folder");
    holding_.emplace(test_state(), world_.rank(), world_.size(), 5);
    holding_->fill(1);
  }
  void TearDown() override { world_.barrier("end"); }

  void save(std::int64_t step) {
    write_checkpoint(path_ + "/new/checkpoints", step, holding_->tensors(), "{}", world_);
  }
  /// Calls of all ranks in the order of time, on rank 0. The ranks of a test have one clock.
  std::vector<DiskCall> of_all_ranks(const std::vector<DiskCall>& mine) {
    std::string text;
    for (const DiskCall& call : mine)
      text += fmt::format("{}\t{}\t{}\n", call.nanoseconds, call.what, call.path);
    std::vector<DiskCall> all;
    for (const std::string& of_rank : world_.gather(text, 0, "calls")) {
      std::istringstream lines(of_rank);
      DiskCall call;
      for (std::string time; std::getline(lines, time, '\t') && std::getline(lines, call.what, '\t') &&
                             std::getline(lines, call.path);) {
        call.nanoseconds = std::stoll(time);
        all.push_back(call);
      }
    }
    std::sort(all.begin(), all.end(),
              [](const DiskCall& a, const DiskCall& b) { return a.nanoseconds < b.nanoseconds; });
    return all;
  }

  HostGroup world_;
  std::unique_ptr<TemporaryFolder> folder_;
  std::string path_;
  std::optional<Holding> holding_;
};

Calls file_calls(const std::string& path) {
  return {"create " + path, "write " + path, "sync " + path, "close " + path};
}

TEST_F(CheckpointDisk, OneRankExactly) {
  if (world_.size() > 1) return;  // the order between ranks is the next test's
  const DiskWatch watch(path_);
  save(1);
  const std::string run = "new/checkpoints", hidden = run + "/.tmp-1-1";
  Calls expected = {"make folder new", "sync .", "make folder " + run, "sync new", "make folder " + hidden};
  for (const char* name : {"/shard-00000.h5", "/index.h5", "/manifest.json"})
    for (const std::string& call : file_calls(hidden + name)) expected.push_back(call);
  expected.push_back("sync " + hidden);
  expected.push_back("rename " + hidden + " to " + run + "/step-00000001");
  expected.push_back("sync " + run);
  EXPECT_EQ(texts_of(watch.calls()), expected);
}

TEST_F(CheckpointDisk, EveryRanksFilesBeforeTheRename) {
  const DiskWatch watch(path_);
  save(1);
  const std::vector<DiskCall> calls = of_all_ranks(watch.calls());
  if (world_.rank() != 0) return;
  const auto time_of = [&](const std::string& text) {  // the last such call
    std::int64_t time = -1;
    for (const DiskCall& call : calls)
      if (call.text() == text) time = call.nanoseconds;
    EXPECT_GE(time, 0) << text << " is missing";
    return time;
  };
  const std::string run = "new/checkpoints", hidden = run + "/.tmp-1-1";
  const std::int64_t renamed = time_of("rename " + hidden + " to " + run + "/step-00000001"),
                     folder_synced = time_of("sync " + hidden);
  std::vector<std::string> names = {"/index.h5", "/manifest.json"};
  for (int rank = 0; rank < world_.size(); ++rank) names.push_back(fmt::format("/shard-{:05}.h5", rank));
  for (const std::string& name : names) {
    EXPECT_LT(time_of("create " + hidden + name), time_of("write " + hidden + name));
    EXPECT_LT(time_of("write " + hidden + name), time_of("sync " + hidden + name));
    EXPECT_LT(time_of("sync " + hidden + name), folder_synced);
  }
  EXPECT_LT(folder_synced, renamed);
  EXPECT_LT(renamed, time_of("sync " + run));
  for (const DiskCall& call : calls)
    EXPECT_FALSE(call.path.starts_with(run + "/step-") && call.what == "write");
}

TEST_F(CheckpointDisk, ADeletionBeginsWithItsRename) {
  for (std::int64_t step = 1; step <= 2; ++step) save(step);
  if (world_.rank() != 0) return;
  const DiskWatch watch(path_);
  EXPECT_TRUE(delete_old_checkpoints(path_ + "/new/checkpoints", {.keep_last = 1}).empty());
  const std::string run = "new/checkpoints", hidden = run + "/.del-1-1";
  Calls calls = texts_of(watch.calls());
  ASSERT_GE(calls.size(), 3u);
  EXPECT_EQ(Calls(calls.begin(), calls.begin() + 3),
            (Calls{"make folder " + hidden, "rename " + run + "/step-00000001 to " + hidden, "sync " + run}));
  EXPECT_EQ(calls.back(), "remove " + hidden);
  calls.erase(calls.begin(), calls.begin() + 3);
  EXPECT_EQ(calls.size(), static_cast<std::size_t>(world_.size()) + 3);  // shards, index, manifest, folder
  for (const std::string& call : calls) EXPECT_TRUE(call.starts_with("remove " + hidden)) << call;
}

// Any one call fails: an Error that names the path, the checkpoint before is as it was, and nothing is left.
TEST_F(CheckpointDisk, AnyCallMayFail) {
  save(1);
  const std::string run = path_ + "/new/checkpoints", hidden = "new/checkpoints/.tmp-2-1";
  const std::vector<std::string> parts = {"make folder " + hidden,
                                          "create " + hidden + "/shard",
                                          "write " + hidden + "/shard",
                                          "sync " + hidden + "/shard",
                                          "close " + hidden + "/shard",
                                          "create " + hidden + "/index",
                                          "sync " + hidden + "/index",
                                          "write " + hidden + "/manifest",
                                          "sync " + hidden + "/manifest",
                                          "close " + hidden + "/manifest",
                                          "rename " + hidden};
  for (const std::string& part : parts) {
    std::string message;
    {
      DiskWatch watch(path_);
      watch.fail_where(part, EIO);
      message = message_of([&] { save(2); });
    }
    EXPECT_TRUE(contains(message, "checkpoint of step 2 was not written: ") &&
                contains(message, path_ + "/new/checkpoints/") && contains(message, "Input/output error"))
        << part << ": " << message;
    world_.barrier("cleaned");
    EXPECT_EQ(published_steps(run), std::vector<std::int64_t>{1}) << part;
    EXPECT_EQ(find_newest_checkpoint(run, false, world_)->manifest.step, 1) << part;
    world_.barrier("looked at");
    if (world_.rank() == 0) {
      EXPECT_TRUE(sweep_leftovers(run).empty()) << part;
    }
    world_.barrier("swept");
  }
  save(2);
  EXPECT_EQ(find_newest_checkpoint(run, false, world_)->manifest.step, 2);
}

// The last sync: what is there is whole, but nobody was told so, and nothing older is deleted for it.
TEST_F(CheckpointDisk, AFailureAfterTheRenameLosesNothing) {
  save(1);
  const std::string run = path_ + "/new/checkpoints";
  std::string message;
  {
    DiskWatch watch(path_);
    CheckpointWriteOptions options;
    options.hook = [&](std::string_view point) {
      if (point == "folder synced") watch.fail_where("sync new/checkpoints", EIO);
    };
    message = message_of([&] { write_checkpoint(run, 2, holding_->tensors(), "{}", world_, options); });
  }
  EXPECT_TRUE(contains(message, run + ": Input/output error")) << message;
  EXPECT_EQ(find_newest_checkpoint(run, false, world_)->manifest.step, 2);
  EXPECT_EQ(published_steps(run), (std::vector<std::int64_t>{2, 1}));
}

// A device that cannot read says nothing about the file: nobody goes on from an older state because of it.
TEST_F(CheckpointDisk, AReadErrorIsNotDamage) {
  for (std::int64_t step = 1; step <= 2; ++step) save(step);
  const std::string run = path_ + "/new/checkpoints";
  for (const char* part :
       {"read new/checkpoints/step-00000002/shard", "read new/checkpoints/step-00000002/index",
        "read new/checkpoints/step-00000002/manifest"}) {
    DiskWatch watch(path_);
    watch.fail_where(part, EIO);
    for (const bool restoring : {false, true}) {
      ExitCode code = ExitCode::ok;
      std::string message;
      try {
        if (restoring)
          restore_newest_checkpoint(run, true, holding_->tensors(), world_);
        else
          find_newest_checkpoint(run, true, world_);
      } catch (const Error& e) {
        code = e.code();
        message = e.what();
      }
      EXPECT_EQ(code, ExitCode::peer_lost) << message;
      EXPECT_TRUE(contains(message, "cannot read " + run + "/step-00000002/")) << message;
    }
  }
}

}  // namespace
}  // namespace lapidary
