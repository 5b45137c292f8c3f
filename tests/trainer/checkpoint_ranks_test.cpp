// Checkpoints over ranks: any number writes, any number reads, however the tensors are cut; and when one rank
// fails, all say so and nothing is left behind.
#include <sys/resource.h>

#include <csignal>

#include "kernels/file.h"
#include "tests/trainer/checkpoint_fixture.h"
#include "trainer/checkpoint_directory.h"

namespace lapidary {
namespace {

constexpr HostGroup::Duration kDeadline{60000};

/// The first `ranks` of the world, or nothing on the others.
std::optional<HostGroup> first_ranks(int ranks) {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm part = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, rank < ranks ? 0 : MPI_UNDEFINED, rank, &part);
  if (part == MPI_COMM_NULL) return std::nullopt;
  HostGroup group(part, kDeadline);
  MPI_Comm_free(&part);
  return group;
}

class CheckpointRanks : public testing::Test {
 protected:
  CheckpointRanks() : world_(MPI_COMM_WORLD, kDeadline) {
    if (world_.rank() == 0) folder_ = std::make_unique<TemporaryFolder>();
    directory_ = world_.broadcast(folder_ ? folder_->path() + "/run/checkpoints" : "", 0, "folder");
  }
  void TearDown() override { world_.barrier("end"); }

  /// Hidden and foreign names in the directory, once rank 0 has cleaned up. Collective.
  std::vector<std::string> leftovers() {
    world_.barrier("cleaned");
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
      const std::string name = entry.path().filename().string();
      if (!checkpoint_step(name)) names.push_back(name);
    }
    return names;
  }

  HostGroup world_;
  std::unique_ptr<TemporaryFolder> folder_;
  std::string directory_;
  std::vector<TestTensor> state_ = test_state();
};

TEST_F(CheckpointRanks, AnyNumberWritesAnyNumberReads) {
  std::int64_t step = 0;
  unsigned seed = 1;
  for (int writers = 1; writers <= world_.size(); ++writers) {
    ++step;
    if (auto group = first_ranks(writers)) {
      Holding holding(state_, group->rank(), writers, ++seed);
      holding.fill(step);
      const std::string path =
          write_checkpoint(directory_, step, holding.tensors(), R"({"position":[1,2]})", *group);
      EXPECT_EQ(path, directory_ + "/" + checkpoint_name(step));
    }
    world_.barrier("written");
    for (int readers = 1; readers <= world_.size(); ++readers) {
      if (auto group = first_ranks(readers)) {
        const auto found = find_newest_checkpoint(directory_, false, *group);
        ASSERT_TRUE(found);
        EXPECT_EQ(found->manifest.step, step);
        EXPECT_EQ(found->manifest.ranks, writers);
        EXPECT_EQ(found->manifest.state.dump(), R"({"position":[1,2]})");
        Holding holding(state_, group->rank(), readers, 1000 + ++seed);
        holding.clear();
        read_checkpoint(*found, holding.tensors(), *group);
        EXPECT_EQ(holding.wrong(step), 0) << writers << " wrote, " << readers << " read";
        holding.clear();
        EXPECT_EQ(restore_newest_checkpoint(directory_, false, holding.tensors(), *group)->manifest.step,
                  step);
        EXPECT_EQ(holding.wrong(step), 0) << writers << " wrote, " << readers << " restored";
      }
      seed = static_cast<unsigned>(world_.all_reduce(std::int64_t{seed}, HostGroup::Reduce::max, "seed"));
    }
  }
}

TEST_F(CheckpointRanks, RandomShapesAndCuts) {
  std::mt19937 random(99);
  for (std::int64_t step = 1; step <= 30; ++step) {
    std::vector<TestTensor> state;
    for (std::size_t t = 0; t < 1 + random() % 6; ++t) {
      std::vector<std::int64_t> shape;
      for (std::size_t d = 0; d < 1 + random() % 4; ++d)
        shape.push_back(1 + static_cast<std::int64_t>(random() % 9));
      state.push_back(
          {"t" + std::to_string(t), "weight", random() % 2 == 0 ? DType::f32 : DType::bf16, shape});
    }
    Holding holding(state, world_.rank(), world_.size(), random());
    holding.fill(step);
    const std::string path = write_checkpoint(directory_, step, holding.tensors(), "{}", world_);
    Holding other(state, world_.rank(), world_.size(), random());
    other.clear();
    read_checkpoint(open_checkpoint(path, world_), other.tensors(), world_);
    ASSERT_EQ(other.wrong(step), 0) << step;
  }
}

TEST_F(CheckpointRanks, EveryElementExactlyOnce) {
  std::vector<float> values(10);
  const auto write = [&](std::vector<CheckpointSlice> slices) {
    if (world_.rank() != 0) slices.clear();
    return message_of([&] {
      write_checkpoint(directory_, 1, {{"w", "weight", DType::f32, {2, 5}, std::move(slices)}}, "{}", world_);
    });
  };
  float* const v = values.data();
  EXPECT_TRUE(contains(write({{0, 4, v}, {5, 5, v}}), "w (weight): nobody has elements [4, 5)"));
  EXPECT_TRUE(contains(write({{0, 6, v}, {5, 5, v}}), "w (weight): element 5 is there twice"));
  EXPECT_TRUE(contains(write({{0, 9, v}}), "w (weight): nobody has elements [9, 10)"));
  EXPECT_TRUE(contains(write({{1, 9, v}}), "w (weight): nobody has elements [0, 1)"));
  EXPECT_TRUE(contains(write({{0, 11, v}}), "w (weight): slice [0, 0 + 11) of 10 elements"));
  EXPECT_TRUE(contains(write({{-1, 11, v}}), "w (weight): slice [-1, -1 + 11) of 10 elements"));
  EXPECT_TRUE(contains(write({{0, 10, nullptr}}), "slice [0, 0 + 10) has no memory"));
  EXPECT_TRUE(leftovers().empty() && published_steps(directory_).empty());
  EXPECT_EQ(write({{5, 5, v}, {0, 5, v}}), "no error");
  EXPECT_TRUE(
      contains(write({{5, 5, v}, {0, 5, v}}), "exists already; a published checkpoint is never overwritten"));
}

TEST_F(CheckpointRanks, RanksMustAgree) {
  if (world_.size() == 1) return;  // nobody to disagree with
  std::vector<float> values(10);
  const std::int64_t rows = world_.rank() == 1 ? 5 : 2;
  const std::string message = message_of([&] {
    write_checkpoint(directory_, 1,
                     {{"w", "weight", DType::f32, {rows, 10 / rows}, {{0, 10, values.data()}}}}, "{}",
                     world_);
  });
  EXPECT_TRUE(contains(message, "report of rank 1: w (weight) has another type or shape")) << message;
}

TEST_F(CheckpointRanks, BadNamesAreRefused) {
  std::vector<float> values(1);
  const auto write = [&](const std::string& name, const std::string& part, std::vector<std::int64_t> shape) {
    return message_of([&] {
      write_checkpoint(directory_, 1, {{name, part, DType::f32, std::move(shape), {{0, 1, values.data()}}}},
                       "{}", world_);
    });
  };
  EXPECT_TRUE(contains(write("a/b", "weight", {1}), "tensor name \"a/b\""));
  EXPECT_TRUE(contains(write("", "weight", {1}), "tensor name \"\""));
  EXPECT_TRUE(contains(write("w", "exp avg", {1}), "part \"exp avg\""));
  EXPECT_TRUE(contains(write("w", "weight", {}), "shape []"));
  EXPECT_TRUE(contains(write("w", "weight", {1, 0}), "shape [1, 0]"));
  EXPECT_NE(write("state.json", "weight", {1}), "no error");
  EXPECT_TRUE(leftovers().empty());
}

// Every point of the protocol, on every rank: the error reaches all, nothing is left, the older checkpoint is
// intact and the next save succeeds.
TEST_F(CheckpointRanks, AFailureAnywhereIsCleanEverywhere) {
  Holding holding(state_, world_.rank(), world_.size(), 5);
  holding.fill(1);
  write_checkpoint(directory_, 1, holding.tensors(), "{}", world_);
  std::int64_t step = 2;
  for (const std::string point : {"folder created", "tensor written", "file written", "shard synced",
                                  "index synced", "manifest synced", "folder synced"}) {
    for (int failing = 0; failing < world_.size(); ++failing) {
      const bool every_rank = point == "shard synced" || point.ends_with("written");
      if (failing != 0 && !every_rank) continue;
      CheckpointWriteOptions options;
      options.hook = [&](std::string_view at) {
        if (world_.rank() == failing && at == point) fail_with_errno("cannot write", point, ENOSPC);
      };
      holding.fill(step);
      const std::string message =
          message_of([&] { write_checkpoint(directory_, step, holding.tensors(), "{}", world_, options); });
      EXPECT_TRUE(contains(message, "checkpoint of step 2 was not written: ")) << message;
      EXPECT_TRUE(contains(message, "cannot write " + point + ": No space left on device")) << message;
      if (world_.size() > 1) {
        EXPECT_TRUE(contains(message, "rank " + std::to_string(failing) + ":")) << message;
      }
      EXPECT_TRUE(leftovers().empty()) << point;
      EXPECT_EQ(published_steps(directory_), std::vector<std::int64_t>{1});
    }
  }
  const auto found = find_newest_checkpoint(directory_, false, world_);
  holding.clear();
  read_checkpoint(*found, holding.tensors(), world_);
  EXPECT_EQ(holding.wrong(1), 0);
  holding.fill(step);
  write_checkpoint(directory_, step, holding.tensors(), "{}", world_);
  EXPECT_EQ(find_newest_checkpoint(directory_, false, world_)->manifest.step, step);
}

/// While it lives, files cannot grow beyond `bytes`: writes fail as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    std::signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit small{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
  }
  ~FileSizeLimit() { setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_{};
};

TEST_F(CheckpointRanks, AFullDiskIsNoticed) {
  const std::vector<TestTensor> large = {{"v", "weight", DType::f32, {10, 1000}},
                                         {"w", "weight", DType::f32, {300, 1000}}};
  Holding holding(large, world_.rank(), world_.size(), 4);
  holding.fill(1);
  for (const rlim_t limit : {1000, 20000, 200000}) {
    std::optional<FileSizeLimit> full;
    CheckpointWriteOptions options;
    options.hook = [&](std::string_view point) {
      if (point == "tensor written" && !full) full.emplace(limit);
    };
    const std::string message =
        message_of([&] { write_checkpoint(directory_, 1, holding.tensors(), "{}", world_, options); });
    full.reset();
    EXPECT_TRUE(contains(message, "was not written: ") &&
                contains(message, "cannot write " + directory_ + "/.tmp-1-1/"))
        << message;
    EXPECT_TRUE(leftovers().empty());
  }
  {
    const FileSizeLimit small(100000);
    const std::string message =
        message_of([&] { write_checkpoint(directory_, 1, holding.tensors(), "{}", world_); });
    EXPECT_TRUE(contains(message, "the limit on file sizes (ulimit -f) is 0.000 GiB")) << message;
  }
  EXPECT_EQ(message_of([&] { write_checkpoint(directory_, 1, holding.tensors(), "{}", world_); }),
            "no error");
}

// Nobody can write 2^50 bytes: refused before anything is written.
TEST_F(CheckpointRanks, SpaceIsCheckedFirst) {
  float value = 0;
  const std::string message = message_of([&] {
    write_checkpoint(
        directory_, 1,
        {{"w", "weight", DType::f32, {std::int64_t{1} << 48}, {{0, std::int64_t{1} << 48, &value}}}}, "{}",
        world_);
  });
  EXPECT_TRUE(contains(message, "GiB are free")) << message;
  EXPECT_TRUE(leftovers().empty());
}

TEST_F(CheckpointRanks, WhatDoesNotFitIsListed) {
  Holding holding(state_, world_.rank(), world_.size(), 5);
  holding.fill(1);
  const std::string path = write_checkpoint(directory_, 1, holding.tensors(), "{}", world_);
  const Checkpoint checkpoint = open_checkpoint(path, world_);
  const auto read = [&](const std::vector<CheckpointTensor>& tensors, bool convert = false) {
    return message_of([&] { read_checkpoint(checkpoint, tensors, world_, {convert}); });
  };
  auto tensors = holding.tensors();
  EXPECT_EQ(read(tensors), "no error");
  tensors.push_back({"lm_head.weight", "weight", DType::f32, {2, 3}, {}});
  tensors[5].shape = {9, 20};
  tensors[11].dtype = DType::f64;
  const std::string message = read(tensors);
  EXPECT_TRUE(contains(message, path + ": does not fit this run:")) << message;
  EXPECT_TRUE(contains(message, "lm_head.weight (weight): missing")) << message;
  EXPECT_TRUE(contains(message, "gate_proj.weight (weight): shape [20, 9], expected [9, 20]")) << message;
  EXPECT_TRUE(contains(message, "input_layernorm.weight (master): f32, expected f64")) << message;
  tensors = holding.tensors();
  tensors.erase(tensors.begin() + 5);  // one weight
  EXPECT_TRUE(contains(read(tensors), "gate_proj.weight (weight): the run has no such tensor"));
  tensors = holding.tensors();
  std::erase_if(tensors, [](const CheckpointTensor& t) { return t.part != "weight"; });
  EXPECT_EQ(read(tensors), "no error");  // weights alone
  tensors = holding.tensors();
  tensors[0].slices = {{37 * 12 - 1, 2, &tensors}};
  EXPECT_TRUE(contains(read(tensors), "asked for elements [443, 443 + 2) of 444"));
}

TEST_F(CheckpointRanks, ConvertsBetweenFloatTypesWhenAsked) {
  std::vector<float> wide = {1.0f, 1.00390625f, -3.14159f, 1e30f};
  std::vector<bf16> narrow(wide.size());
  std::transform(wide.begin(), wide.end(), narrow.begin(), [](float v) { return bf16(v); });
  const bool mine = world_.rank() == 0;
  const auto slices = [&](void* at, std::int64_t begin, std::int64_t count) {
    return mine ? std::vector<CheckpointSlice>{{begin, count, at}} : std::vector<CheckpointSlice>{};
  };
  const std::string path = write_checkpoint(directory_, 1,
                                            {{"a", "weight", DType::f32, {4}, slices(wide.data(), 0, 4)},
                                             {"b", "weight", DType::bf16, {4}, slices(narrow.data(), 0, 4)}},
                                            "{}", world_);
  std::vector<bf16> a(3);
  std::vector<float> b(3);
  const std::vector<CheckpointTensor> wanted = {{"a", "weight", DType::bf16, {4}, slices(a.data(), 1, 3)},
                                                {"b", "weight", DType::f32, {4}, slices(b.data(), 1, 3)}};
  const Checkpoint checkpoint = open_checkpoint(path, world_);
  EXPECT_TRUE(contains(message_of([&] { read_checkpoint(checkpoint, wanted, world_); }),
                       "a (weight): f32, expected bf16"));
  read_checkpoint(checkpoint, wanted, world_, {.convert = true});
  for (std::size_t i = 0; mine && i < 3; ++i) {
    EXPECT_EQ(a[i].bits, narrow[i + 1].bits);
    EXPECT_EQ(b[i], static_cast<float>(narrow[i + 1]));
  }
}

std::string output_of(const std::string& command) {
  std::string text;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  char buffer[4096];
  for (std::size_t n = 0; pipe != nullptr && (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;)
    text.append(buffer, n);
  const int status = pipe != nullptr ? pclose(pipe) : -1;
  return status == 0 ? text : fmt::format("{} ended with {}: {}", command, status, text);
}

TEST_F(CheckpointRanks, OtherProgramsSeeWholeTensors) {
  Holding holding(state_, world_.rank(), world_.size(), 11);
  holding.fill(17);
  const std::string path =
      write_checkpoint(directory_, 17, holding.tensors(), R"({"position":[1,2]})", world_);
  if (world_.rank() != 0) return;
  const std::string python = output_of(
      fmt::format("/usr/bin/python3 {}/tests/trainer/read_checkpoint.py {} 17", LAPIDARY_SOURCE_DIR, path));
  EXPECT_EQ(python, "equal: 25 tensors\n");
  const std::string list = output_of("h5ls " + path + "/index.h5");
  EXPECT_TRUE(contains(list, "model.language_model.embed_tokens.weight Dataset {37, 12}")) << list;
  EXPECT_TRUE(contains(list, "model.language_model.embed_tokens.weight.exp_avg_sq Dataset {37, 12}")) << list;
  // The first row of tensor 5, a matrix of bf16: (i * 7 + 5 * 13 + 17 * 29) mod 251.
  const std::string dump =
      output_of("h5dump -w 0 -d model.language_model.layers.0.mlp.gate_proj.weight -s 0,0 -c 1,9 " + path +
                "/index.h5");
  EXPECT_TRUE(contains(dump, "(0,0): 56, 63, 70, 77, 84, 91, 98, 105, 112")) << dump;
}

TEST_F(CheckpointRanks, DamageIsFoundByWhicheverRankLooks) {
  Holding holding(state_, world_.rank(), world_.size(), 5);
  for (std::int64_t step = 1; step <= 2; ++step) {
    holding.fill(step);
    write_checkpoint(directory_, step, holding.tensors(), "{}", world_);
  }
  for (int victim = 0; victim < world_.size(); ++victim) {
    const std::string path = fmt::format("{}/step-00000002/shard-{:05}.h5", directory_, victim);
    char byte = 0;
    const auto flip = [&] {
      world_.barrier("flip");
      if (world_.rank() == 0) {
        File file = File::open_to_write(path);
        file.read_at(&byte, 1, 1000);
        byte = static_cast<char>(byte ^ 16);
        file.write_at(&byte, 1, 1000);
      }
      world_.barrier("flipped");
    };
    flip();
    const std::string message = message_of([&] { find_newest_checkpoint(directory_, false, world_); });
    EXPECT_TRUE(contains(message, path + ": damaged: checksum")) << message;
    const auto found = find_newest_checkpoint(directory_, true, world_);
    ASSERT_TRUE(found);
    EXPECT_EQ(found->manifest.step, 1);
    ASSERT_EQ(found->passed_over.size(), 1u);
    EXPECT_TRUE(contains(found->passed_over[0].message, path)) << found->passed_over[0].message;
    EXPECT_EQ(restore_newest_checkpoint(directory_, true, holding.tensors(), world_)->manifest.step, 1);
    EXPECT_EQ(holding.wrong(1), 0);
    EXPECT_EQ(message_of([&] { restore_newest_checkpoint(directory_, false, holding.tensors(), world_); }),
              message);
    flip();
    EXPECT_EQ(find_newest_checkpoint(directory_, true, world_)->manifest.step, 2);
  }
}

}  // namespace
}  // namespace lapidary
