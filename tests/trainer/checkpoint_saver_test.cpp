// Saving beside training: what start() saw is what is published, however small the memory between; failures
// anywhere are an outcome on every rank, and the next save works.
#include "trainer/checkpoint_saver.h"

#include <chrono>

#include "kernels/file.h"
#include "tests/trainer/checkpoint_fixture.h"

namespace lapidary {
namespace {

constexpr HostGroup::Duration kDeadline{60000};

/// Several pieces of 8 MiB, and small tensors between them.
std::vector<TestTensor> large_state(int ranks) {
  std::vector<TestTensor> state = test_state();
  state.insert(state.begin() + 3, {"large", "weight", DType::f32, {ranks * 3, 1 << 20}});
  return state;
}

class CheckpointSaverTest : public testing::Test {
 protected:
  CheckpointSaverTest() : world_(MPI_COMM_WORLD, kDeadline), state_(large_state(world_.size())) {
    if (world_.rank() == 0) folder_ = std::make_unique<TemporaryFolder>();
    directory_ = world_.broadcast(folder_ ? folder_->path() + "/checkpoints" : "", 0, "folder");
    holding_.emplace(state_, world_.rank(), world_.size(), 7);
  }
  void TearDown() override { world_.barrier("end"); }

  std::unique_ptr<CheckpointSaver> make(std::size_t staging_bytes, CheckpointRetention retention = {}) {
    return std::make_unique<CheckpointSaver>(directory_, retention, holding_->tensors(), cpu_backend(),
                                             staging_bytes, world_.duplicate());
  }
  void expect_published(std::int64_t step) {
    const auto found = find_newest_checkpoint(directory_, false, world_);
    ASSERT_TRUE(found);
    EXPECT_EQ(found->manifest.step, step);
    Holding other(state_, world_.rank(), world_.size(), 99);
    other.clear();
    read_checkpoint(*found, other.tensors(), world_);
    EXPECT_EQ(other.wrong(step), 0);
  }

  HostGroup world_;
  std::vector<TestTensor> state_;
  std::unique_ptr<TemporaryFolder> folder_;
  std::string directory_;
  std::optional<Holding> holding_;
  std::int64_t step_ = 0;
  std::unique_ptr<Stream> compute_ = cpu_backend().make_stream("compute");
};

TEST_F(CheckpointSaverTest, TrainingMayGoOnAtOnce) {
  for (const std::size_t staging : {std::size_t{0}, std::size_t{20} << 20, std::size_t{1} << 40}) {
    const auto saver = make(staging);
    EXPECT_GE(saver->staging_bytes(), std::size_t{256});
    EXPECT_LE(saver->staging_bytes(), std::size_t{64} << 20);  // what the state takes
    for (int i = 0; i < 2; ++i) {
      const std::int64_t step = ++step_;
      holding_->fill(step);
      saver->start(step, R"({"a":1})", 2.5, *compute_);
      holding_->clear();  // the next update
      const auto outcome = saver->wait();
      ASSERT_TRUE(outcome);
      EXPECT_EQ(outcome->error, "");
      EXPECT_EQ(outcome->path, directory_ + "/" + checkpoint_name(step));
      EXPECT_EQ(outcome->step, step);
      EXPECT_GE(outcome->seconds, outcome->stall_seconds);
      EXPECT_TRUE(outcome->problems.empty());
      EXPECT_FALSE(saver->wait() || saver->take());
      expect_published(step);
      EXPECT_EQ(find_newest_checkpoint(directory_, false, world_)->manifest.metric, 2.5);
    }
  }
}

TEST_F(CheckpointSaverTest, RetentionFollowsPublication) {
  const auto saver = make(std::size_t{1} << 30, {.keep_last = 2, .keep_every = 0, .keep_best = 1});
  for (std::int64_t step = 1; step <= 5; ++step) {
    holding_->fill(step);
    saver->start(step, "{}", step == 2 ? 1.0 : 3.0, *compute_);
    while (!saver->take()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  world_.barrier("deleted");
  EXPECT_EQ(published_steps(directory_), (std::vector<std::int64_t>{5, 4, 2}));  // 2: the best
}

TEST_F(CheckpointSaverTest, AFailureAnywhereIsAnOutcomeEverywhere) {
  for (const std::size_t staging : {std::size_t{0}, std::size_t{1} << 30}) {
    const auto saver = make(staging);
    for (const std::string point : {"folder created", "tensor written", "file written", "manifest synced"}) {
      for (int failing = 0; failing < world_.size(); ++failing) {
        if (failing != 0 && !point.ends_with("written")) continue;
        const std::int64_t step = ++step_;
        holding_->fill(step);
        saver->start(step, "{}", std::nullopt, *compute_, [&](std::string_view at) {
          if (world_.rank() == failing && at == point) fail_with_errno("cannot write", point, ENOSPC);
        });
        const auto outcome = saver->wait();
        ASSERT_TRUE(outcome);
        EXPECT_EQ(outcome->path, "");
        EXPECT_TRUE(contains(outcome->error, "cannot write " + point + ": No space left on device"))
            << outcome->error;
        EXPECT_TRUE(saver->usable());
      }
    }
    const std::int64_t step = ++step_;
    holding_->fill(step);
    saver->start(step, "{}", std::nullopt, *compute_);
    EXPECT_EQ(saver->wait()->error, "");
    expect_published(step);
  }
  world_.barrier("cleaned");
  if (world_.rank() == 0) {
    EXPECT_TRUE(sweep_leftovers(directory_).empty());
  }
}

TEST_F(CheckpointSaverTest, OneAtATime) {
  const auto saver = make(std::size_t{1} << 30);
  EXPECT_FALSE(saver->take());
  saver->start(++step_, "{}", std::nullopt, *compute_);
  EXPECT_TRUE(contains(message_of([&] { saver->start(9, "{}", std::nullopt, *compute_); }),
                       "step 9: the save of step 1 has not ended"));
  EXPECT_TRUE(saver->wait());
  saver->start(step_, "{}", std::nullopt, *compute_);  // the same step again
  EXPECT_TRUE(contains(saver->wait()->error, "a published checkpoint is never overwritten"));
  saver->start(++step_, "{}", std::nullopt, *compute_);  // and the destructor waits for it
}

TEST(StagingQueueTest, PiecesKeepTheirOrderInAnySize) {
  std::mt19937 random(5);
  std::vector<char> memory(1 << 20, 'x');
  std::vector<CheckpointTensor> tensors;
  for (int i = 0; i < 40; ++i) {
    const auto n = 1 + static_cast<std::int64_t>(random() % 20000);
    tensors.push_back({"t" + std::to_string(i), "weight", DType::u8, {n}, {{0, n, memory.data()}}});
  }
  const ShardPlan plan = plan_shard(0, tensors);
  for (const std::size_t bytes : {0, 25000, 60000, 1 << 30}) {
    StagingQueue queue(cpu_backend(), plan, bytes);
    for (int round = 0; round < 3; ++round) {
      queue.restart();
      std::thread filling([&] {
        std::uint8_t number = 0;
        plan.for_each_piece([&](const ShardPiece& piece) {
          const auto count = static_cast<std::size_t>(piece.bytes);
          queue.push(count, [&](void* to) {
            std::memset(to, number, count);
            return Event{};
          });
          ++number;
        });
        queue.end();
      });
      std::uint8_t number = 0;
      plan.for_each_piece([&](const ShardPiece& piece) {
        const auto* at = static_cast<const std::uint8_t*>(queue.pop());
        const std::vector<std::uint8_t> expected(static_cast<std::size_t>(piece.bytes), number++);
        ASSERT_EQ(std::memcmp(at, expected.data(), expected.size()), 0);
      });
      filling.join();
    }
    queue.stop();
    EXPECT_FALSE(queue.push(1, [](void*) -> Event { fail("not called"); }));
    EXPECT_TRUE(contains(message_of([&] { queue.pop(); }), "not copied to its end"));
  }
}

}  // namespace
}  // namespace lapidary
