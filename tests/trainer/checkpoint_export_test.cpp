// Exports large enough to be written in many blocks by all ranks: the values, that they are read once, and
// that nothing appears whose checkpoint is damaged or whose disk fails.
#include <map>
#include <sstream>

#include "kernels/file.h"
#include "model/safetensors.h"
#include "tests/model/safetensors_writer.h"
#include "tests/trainer/checkpoint_fixture.h"
#include "tests/trainer/disk_calls.h"
#include "trainer/checkpoint_directory.h"
#include "trainer/checkpoint_tools.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;

constexpr HostGroup::Duration kDeadline{60000};
constexpr std::int64_t kBlock = 1 << 20;  // bytes that the export writes at a time

/// bf16 weights with masters, a float32 weight and small tensors between them; 15 MB.
std::vector<TestTensor> large_state() {
  const std::string layer = "model.language_model.layers.0.";
  return {{"model.language_model.embed_tokens.weight", "weight", DType::bf16, {1201, 1023}},
          {"model.language_model.embed_tokens.weight", "master", DType::f32, {1201, 1023}},
          {layer + "mlp.up_proj.weight", "weight", DType::bf16, {513, 1025}},
          {layer + "mlp.up_proj.weight", "remainder", DType::i16, {513, 1025}},
          {layer + "layer_scalar", "weight", DType::bf16, {1}},
          {layer + "input_layernorm.weight", "weight", DType::f32, {77}},
          {layer + "mlp.down_proj.weight", "weight", DType::f32, {511, 1023}}};
}

class CheckpointExport : public testing::Test {
 protected:
  CheckpointExport() : world_(MPI_COMM_WORLD, kDeadline) {
    if (world_.rank() == 0) folder_ = std::make_unique<TemporaryFolder>();
    path_ = world_.broadcast(folder_ ? folder_->path() : "", 0, "folder");
  }
  void TearDown() override { world_.barrier("end"); }

  /// A checkpoint of the state, every tensor cut into five pieces that are dealt to the ranks in turn.
  std::string write(const std::vector<TestTensor>& state, const std::string& name) {
    std::vector<std::vector<char>> memory;
    std::vector<CheckpointTensor> tensors;
    for (std::size_t t = 0; t < state.size(); ++t) {
      const TestTensor& from = state[t];
      CheckpointTensor tensor{from.name, from.part, from.dtype, from.shape, {}};
      for (std::int64_t piece = 0; piece < 5; ++piece) {
        const std::int64_t begin = from.elements() * piece / 5, end = from.elements() * (piece + 1) / 5;
        if ((piece + static_cast<std::int64_t>(t)) % world_.size() != world_.rank() || begin == end) continue;
        std::vector<char>& values =
            memory.emplace_back(static_cast<std::size_t>(end - begin) * size_of(from.dtype));
        for (std::int64_t i = begin; i < end; ++i)
          put_value(from.dtype, values.data() + (i - begin) * static_cast<std::int64_t>(size_of(from.dtype)),
                    value(state, t, i));
        tensor.slices.push_back({begin, end - begin, values.data()});
      }
      tensors.push_back(std::move(tensor));
    }
    return write_checkpoint(path_ + "/" + name, 1, tensors, R"({"model":{"dtype":"float32"}})", world_);
  }
  std::string reshard(const std::string& checkpoint, const std::string& name, int shards) {
    HostGroup alone;
    if (world_.rank() == 0)
      reshard_checkpoint(open_checkpoint(checkpoint, alone), path_ + "/" + name, shards, false);
    world_.barrier("cut");
    return path_ + "/" + name + "/step-00000001";
  }
  /// A weight and its master are one value; a remainder is 0.
  static int value(const std::vector<TestTensor>& state, std::size_t t, std::int64_t i) {
    if (state[t].part == "remainder") return 0;
    return test_value(state[t].part == "master" ? t - 1 : t, i, 1);
  }
  std::string export_to(const std::string& checkpoint, const std::string& name,
                        const ExportOptions& options = {}) {
    std::ostringstream notes;
    export_checkpoint(checkpoint, path_ + "/" + name, options, world_, notes);
    return path_ + "/" + name;
  }
  /// The export fails on every rank with this code, and leaves nothing behind.
  std::string failure(const std::string& checkpoint, ExitCode expected) {
    std::string message = "no error";
    try {
      export_to(checkpoint, "out");
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), expected) << e.what();
      message = e.what();
    }
    world_.barrier("failed");
    EXPECT_FALSE(fs::exists(path_ + "/out") || fs::exists(path_ + "/.out.partial")) << message;
    world_.barrier("looked at");
    return message;
  }
  static void expect_values(const std::string& out, const std::vector<TestTensor>& state) {
    const Safetensors files(out);
    std::size_t weights = 0;
    for (std::size_t t = 0; t < state.size(); ++t) {
      if (state[t].part != "weight") continue;
      const std::vector<float> values = files.read_all<float>(state[t].name);
      ASSERT_EQ(values.size(), static_cast<std::size_t>(state[t].elements()));
      for (std::size_t i = 0; i < values.size(); ++i)
        ASSERT_EQ(static_cast<int>(values[i]), value(state, t, static_cast<std::int64_t>(i)))
            << out << ": " << state[t].name << ": element " << i;
      ++weights;
    }
    EXPECT_EQ(files.tensors().size(), weights);
  }

  HostGroup world_;
  std::unique_ptr<TemporaryFolder> folder_;
  std::string path_;
};

TEST_F(CheckpointExport, EveryTypeFromAnyShardsIntoAnyFiles) {
  const std::vector<TestTensor> state = large_state();
  const std::string own = write(state, "own");
  int number = 0;
  for (const std::string& checkpoint : {own, reshard(own, "seven", 7)}) {
    for (const ExportType type : {ExportType::stored, ExportType::bf16, ExportType::f16, ExportType::f32}) {
      for (const std::int64_t most : {std::int64_t{0}, 3 * kBlock}) {
        const std::string out = export_to(checkpoint, fmt::format("out{}", ++number),
                                          {.source = "", .max_file_bytes = most, .type = type});
        if (world_.rank() == 0) expect_values(out, state);
      }
    }
  }
}

// In a source's file tensors may lie at odd bytes, so that blocks begin within an element.
TEST_F(CheckpointExport, TensorsThatAreNotAligned) {
  const std::vector<TestTensor> state = large_state();
  const std::string checkpoint = write(state, "a"), source = path_ + "/source";
  if (world_.rank() == 0) {
    fs::create_directory(source);
    std::vector<StoredTensor> tensors;
    for (const TestTensor& t : state)
      if (t.part == "weight")
        tensors.push_back(
            {t.name, t.dtype == DType::bf16 ? StoredType::bf16 : StoredType::f32, t.shape, t.elements()});
    SafetensorsWriter writer(source + "/model.safetensors", tensors);
    EXPECT_EQ(writer.tensors().back().offset % 4, 2);
    for (std::size_t t = 0; t < tensors.size(); ++t) {
      const std::vector<char> zeros(static_cast<std::size_t>(tensors[t].bytes()));
      writer.write(t, 0, tensors[t].elements, zeros.data());
    }
    writer.commit();
    write_new_text_file(source + "/config.json", "{}");
  }
  world_.barrier("source");
  const std::string out = export_to(checkpoint, "out", {.source = source});
  if (world_.rank() != 0) return;
  EXPECT_EQ(Safetensors(out).tensors().back().offset, Safetensors(source).tensors().back().offset);
  expect_values(out, state);
}

// In the export b follows a; in the checkpoint z lies between them.
TEST_F(CheckpointExport, ReadsTheCheckpointOnce) {
  const std::string model = "model.language_model.";
  const std::string checkpoint = write({{model + "a.weight", "weight", DType::bf16, {1000, 2048}},
                                        {model + "z.weight", "weight", DType::bf16, {4096, 4096}},
                                        {model + "z.weight", "master", DType::f32, {64, 2048}},
                                        {model + "norm.weight", "weight", DType::bf16, {3}},
                                        {model + "b.weight", "weight", DType::bf16, {1000, 2048}}},
                                       "a");
  for (const std::string& path : {checkpoint, reshard(checkpoint, "three", 3)}) {
    std::int64_t read = 0, bytes = 0;
    {
      const DiskWatch watch(path);
      export_to(path, fs::path(path).parent_path().filename().string() + "-out");
      read = world_.all_reduce(watch.bytes_read("shard"), HostGroup::Reduce::sum, "read");
    }
    for (const CheckpointManifest::File& file : read_manifest(path).files)
      if (file.name.starts_with("shard")) bytes += file.bytes;
    EXPECT_GE(read, bytes);  // all of it is hashed, masters too
    // Where a tensor, or a rank's part of one, ends within a block, that block is read beside.
    EXPECT_LE(read, bytes + 16 * kBlock) << path;
  }
}

TEST_F(CheckpointExport, AFlippedBitAnywhereIsNamedAndNothingAppears) {
  const std::string checkpoint = write(large_state(), "a");
  const CheckpointManifest manifest = read_manifest(checkpoint);
  world_.barrier("read");
  std::mt19937 random(3);
  for (int i = 0; i < 24; ++i) {
    const CheckpointManifest::File& damaged = manifest.files[random() % manifest.files.size()];
    const auto at = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(damaged.bytes));
    const auto flip = [&] {
      if (world_.rank() == 0) {
        File file = File::open_to_write(checkpoint + "/" + damaged.name);
        char byte = 0;
        file.read_at(&byte, 1, at);
        byte = static_cast<char>(byte ^ (1 << i % 8));
        file.write_at(&byte, 1, at);
      }
      world_.barrier("flipped");
    };
    flip();
    const std::string message = failure(checkpoint, ExitCode::bad_input);
    EXPECT_TRUE(contains(message, checkpoint + "/" + damaged.name + ": damaged: checksum"))
        << "byte " << at << ": " << message;
    flip();
  }
  export_to(checkpoint, "out");
}

TEST_F(CheckpointExport, TruncatedFilesAndForgedLayouts) {
  const std::string checkpoint = write(large_state(), "a");
  const CheckpointManifest manifest = read_manifest(checkpoint);
  world_.barrier("read");
  const auto size = static_cast<std::uintmax_t>(manifest.files.front().bytes);
  const auto resize = [&](std::uintmax_t bytes) {
    if (world_.rank() == 0) fs::resize_file(checkpoint + "/" + manifest.files.front().name, bytes);
    world_.barrier("resized");
  };
  for (const std::uintmax_t bytes : {std::uintmax_t{0}, size / 2, size - 1, size + 1}) {
    resize(bytes);
    EXPECT_TRUE(
        contains(failure(checkpoint, ExitCode::bad_input),
                 fmt::format("{}/{}: {} bytes, expected", checkpoint, manifest.files.front().name, bytes)));
  }
  resize(size);
  using Slice = CheckpointManifest::Slice;
  const std::vector<void (*)(Slice&)> forgeries = {[](Slice& s) { s.offset = std::int64_t{1} << 40; },
                                                   [](Slice& s) { s.offset = INT64_MAX; },
                                                   [](Slice& s) { s.offset = -8; },
                                                   [](Slice& s) { s.count += 1; },
                                                   [](Slice& s) { s.file = 1000; },
                                                   [](Slice& s) { s.file = -1; }};
  for (const auto forge : forgeries) {  // behind a checksum that is right
    CheckpointManifest forged = manifest;
    forge(forged.tensors.front().slices.back());
    if (world_.rank() == 0) {
      fs::remove(checkpoint + "/manifest.json");
      write_new_text_file(checkpoint + "/manifest.json", to_text(forged));
    }
    world_.barrier("forged");
    EXPECT_TRUE(contains(failure(checkpoint, ExitCode::bad_input), checkpoint + "/manifest.json: "));
  }
}

TEST_F(CheckpointExport, ADiskThatFails) {
  const std::string checkpoint = write(large_state(), "a");
  for (const char* part :
       {"make folder .out.partial", "create .out.partial/model", "write .out.partial/model",
        "sync .out.partial/model", "close .out.partial/model", "write .out.partial/config",
        "rename .out.partial", "read a/step-00000001/shard", "read a/step-00000001/index"}) {
    DiskWatch watch(path_);
    watch.fail_where(part, EIO);
    EXPECT_TRUE(contains(failure(checkpoint, ExitCode::peer_lost), "Input/output error")) << part;
  }
  if (world_.rank() == 0) {  // what is left of a program that was killed
    fs::create_directory(path_ + "/.out.partial");
    write_new_text_file(path_ + "/.out.partial/model.safetensors", "half");
  }
  world_.barrier("killed");
  const std::string out = export_to(checkpoint, "out");
  if (world_.rank() == 0) expect_values(out, large_state());
}

TEST_F(CheckpointExport, WhatARankWroteItSyncsBeforeTheRename) {
  const std::string checkpoint = write(large_state(), "a");
  const DiskWatch watch(path_);
  export_to(checkpoint, "out", {.source = "", .max_file_bytes = 3 * kBlock});
  std::map<std::string, std::int64_t> synced;  // when, of the weights' files that this rank wrote to
  std::int64_t renamed = INT64_MAX;
  for (const DiskCall& call : watch.calls()) {
    if (call.what == "write" && contains(call.path, "model")) synced[call.path] = INT64_MAX;
    if (call.what == "sync" && synced.contains(call.path)) synced[call.path] = call.nanoseconds;
    if (call.what.starts_with("rename")) renamed = call.nanoseconds;
  }
  EXPECT_FALSE(synced.empty());
  std::int64_t last = 0;
  for (const auto& [path, time] : synced) last = std::max(last, time);
  // The ranks of a test have one clock.
  last = world_.all_reduce(last, HostGroup::Reduce::max, "synced");
  renamed = world_.all_reduce(renamed, HostGroup::Reduce::min, "renamed");
  EXPECT_LT(last, renamed);
  EXPECT_LT(renamed, INT64_MAX);
}

}  // namespace
}  // namespace lapidary
