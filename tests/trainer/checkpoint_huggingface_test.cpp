// Hugging Face folders in and out: the same bits, the same files, every number of ranks; and a message that
// names each tensor that does not fit. Also average, reshard and diff.
#include <fstream>
#include <map>
#include <sstream>

#include "kernels/file.h"
#include "kernels/json.h"
#include "model/config.h"
#include "model/parameter_table.h"
#include "model/safetensors.h"
#include "tests/model/safetensors_writer.h"
#include "tests/trainer/checkpoint_fixture.h"
#include "trainer/checkpoint_directory.h"
#include "trainer/checkpoint_tools.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;

constexpr HostGroup::Duration kDeadline{60000};
const std::string kReference = std::string(LAPIDARY_SOURCE_DIR) + "/tests/reference/text";

std::string bytes_of(const std::string& path) {
  return read_text_file(path, 1 << 28);
}

/// Differing names and files of two folders.
std::string difference(const std::string& a, const std::string& b) {
  std::string out;
  std::map<std::string, int> names;
  for (const auto& entry : fs::directory_iterator(a)) names[entry.path().filename().string()] += 1;
  for (const auto& entry : fs::directory_iterator(b)) names[entry.path().filename().string()] += 2;
  for (const auto& [name, where] : names)
    if (where != 3 || bytes_of(fmt::format("{}/{}", a, name)) != bytes_of(fmt::format("{}/{}", b, name)))
      out += name + " ";
  return out;
}

class HuggingFace : public testing::Test {
 protected:
  HuggingFace() : world_(MPI_COMM_WORLD, kDeadline) {
    if (world_.rank() == 0) folder_ = std::make_unique<TemporaryFolder>();
    path_ = world_.broadcast(folder_ ? folder_->path() : "", 0, "folder");
  }
  void TearDown() override { world_.barrier("end"); }

  /// The reference model in another type, under other names, or cut into files; and a tokenizer beside it.
  std::string make_source(const std::string& name, StoredType type, bool in_memory_names, std::size_t files) {
    std::string to = path_ + "/" + name;
    if (world_.rank() == 0) {
      fs::create_directories(to + "/.cache");
      const Safetensors from(kReference);
      std::vector<std::vector<StoredTensor>> parts(files);
      for (std::size_t i = 0; i < from.tensors().size(); ++i) {
        StoredTensor tensor = from.tensors()[i];
        tensor.type = type;
        if (in_memory_names) tensor.name = in_memory_name(tensor.name);
        parts[i * files / from.tensors().size()].push_back(tensor);
      }
      nlohmann::json map;
      for (std::size_t f = 0; f < files; ++f) {
        const std::string file = files == 1 ? "model.safetensors" : fmt::format("part-{}.safetensors", f);
        sort_as_safetensors(parts[f]);
        SafetensorsWriter writer(fmt::format("{}/{}", to, file), parts[f]);
        for (std::size_t t = 0; t < writer.tensors().size(); ++t) {
          write_converted(writer, t, from.read_all<float>(on_disk_name(writer.tensors()[t].name)));
          map[writer.tensors()[t].name] = file;
        }
        writer.commit();
      }
      if (files > 1)
        std::ofstream(to + "/model.safetensors.index.json")
            << nlohmann::json{{"metadata", {{"note", 1}}}, {"weight_map", map}}.dump();
      write_config(to, type);
      std::ofstream(to + "/tokenizer.json") << "{\"model\": 1}\n";
      std::ofstream(to + "/pytorch_model.bin") << "old";
    }
    world_.barrier("source");
    return to;
  }
  static void write_config(const std::string& to, StoredType type) {
    std::string config = bytes_of(kReference + "/config.json");
    const char* name = type == StoredType::bf16  ? "bfloat16"
                       : type == StoredType::f16 ? "float16"
                                                 : "float32";
    const std::size_t at = config.find("\"dtype\": \"float32\"");
    if (at != std::string::npos) config.replace(at, 18, fmt::format("\"dtype\": \"{}\"", name));
    std::ofstream(to + "/config.json") << config;
  }
  static void write_converted(SafetensorsWriter& writer, std::size_t t, const std::vector<float>& values) {
    std::vector<std::uint16_t> narrow(values.size());
    const StoredTensor& tensor = writer.tensors()[t];
    for (std::size_t i = 0; i < values.size(); ++i)
      narrow[i] = tensor.type == StoredType::bf16 ? bf16(values[i]).bits : float_to_half(values[i]);
    const void* from = narrow.data();
    if (tensor.type == StoredType::f32) from = values.data();
    writer.write(t, 0, tensor.elements, from);
  }

  std::string import(const std::string& folder, const std::string& name) {
    return import_checkpoint(folder, path_ + "/" + name, world_);
  }
  std::string export_to(const std::string& checkpoint, const std::string& name,
                        const ExportOptions& options = {}) {
    std::ostringstream notes;
    export_checkpoint(checkpoint, path_ + "/" + name, options, world_, notes);
    return path_ + "/" + name;
  }

  HostGroup world_;
  std::unique_ptr<TemporaryFolder> folder_;
  std::string path_;
};

TEST_F(HuggingFace, InAndOutIsTheSameFolder) {
  int number = 0;
  for (const StoredType type : {StoredType::f32, StoredType::bf16, StoredType::f16}) {
    for (const std::size_t files : {1, 4}) {
      const std::string name = std::to_string(++number);
      const std::string source = make_source(name, type, false, files);
      const std::string checkpoint = import(source, "checkpoint-" + name);
      EXPECT_EQ(checkpoint, path_ + "/checkpoint-" + name + "/step-00000000");
      const std::string out = export_to(checkpoint, "out-" + name);
      if (world_.rank() != 0) continue;
      EXPECT_EQ(difference(source, out), ".cache pytorch_model.bin ") << name_of(type) << " in " << files;
      std::ostringstream text;
      EXPECT_EQ(diff_checkpoints(checkpoint, source, text), type != StoredType::f16) << text.str();
    }
  }
}

TEST_F(HuggingFace, InMemoryNamesComeOutAsOnDisk) {
  const std::string checkpoint = import(make_source("memory", StoredType::f32, true, 3), "a");
  const std::string out = export_to(checkpoint, "out", {.source = kReference});
  if (world_.rank() != 0) return;
  EXPECT_EQ(bytes_of(out + "/model.safetensors"), bytes_of(kReference + "/model.safetensors"));
  const std::string mirrored =
      out + "-mirrored";  // the names of the source's files, the names on disk in them
  HostGroup alone;
  std::ostringstream notes;
  export_checkpoint(checkpoint, mirrored, {}, alone, notes);
  EXPECT_EQ(Safetensors(mirrored).files().size(), 3u);
  EXPECT_TRUE(diff_checkpoints(mirrored, kReference, notes)) << notes.str();
}

TEST_F(HuggingFace, CutAndTypeAsAsked) {
  const std::string checkpoint = import(kReference, "a");
  const std::string out = export_to(checkpoint, "cut", {.source = "", .max_file_bytes = 50000});
  const std::string narrow =
      export_to(checkpoint, "narrow", {.source = "", .max_file_bytes = 0, .type = ExportType::bf16});
  if (world_.rank() != 0) return;
  const Safetensors cut(out), whole(kReference);
  EXPECT_GT(cut.files().size(), 3u);
  EXPECT_TRUE(fs::exists(out + fmt::format("/model-00001-of-{:05}.safetensors", cut.files().size())));
  std::int64_t elements = 0;
  for (const StoredTensor& tensor : whole.tensors()) elements += tensor.elements;
  const auto index = read_json_file(out + "/model.safetensors.index.json", 1 << 20);
  EXPECT_EQ(index["metadata"]["total_size"], 4 * elements);
  std::ostringstream text;
  EXPECT_TRUE(diff_checkpoints(out, kReference, text)) << text.str();
  const Safetensors half(narrow);
  for (const StoredTensor& tensor : half.tensors()) {
    ASSERT_EQ(tensor.type, StoredType::bf16);
    const auto a = half.read_all<bf16>(tensor.name), b = whole.read_all<bf16>(tensor.name);
    ASSERT_EQ(std::memcmp(a.data(), b.data(), a.size() * 2), 0) << tensor.name;
  }
  EXPECT_EQ(read_json_file(narrow + "/config.json", 1 << 20)["dtype"], "bfloat16");
}

TEST_F(HuggingFace, NothingIsOverwrittenAndNothingHalfWrittenStays) {
  const std::string checkpoint = import(kReference, "a");
  export_to(checkpoint, "out");
  EXPECT_TRUE(contains(message_of([&] { export_to(checkpoint, "out"); }), "out exists already"));
  EXPECT_TRUE(contains(message_of([&] { import(kReference, "a"); }), "exists already"));
  EXPECT_TRUE(
      contains(message_of([&] { export_to(checkpoint, "x", {.source = path_ + "/absent"}); }), "absent"));
  world_.barrier("looked");
  if (world_.rank() == 0) {
    for (const auto& entry : fs::directory_iterator(path_))
      EXPECT_FALSE(entry.path().filename().string().starts_with('.')) << entry.path();
  }
}

// A checkpoint that knows of no folder: its own config.json, no tokenizer.
TEST_F(HuggingFace, WithoutItsSource) {
  const std::string source = make_source("gone", StoredType::bf16, false, 1);
  const std::string checkpoint = import(source, "a");
  if (world_.rank() == 0) fs::rename(source, source + "-moved");
  world_.barrier("moved");
  const std::string out = export_to(checkpoint, "out");
  if (world_.rank() != 0) return;
  EXPECT_EQ(difference(source + "-moved", out), ".cache pytorch_model.bin tokenizer.json ");
  EXPECT_EQ(read_json_file(out + "/config.json", 1 << 20),
            read_json_file(source + "-moved/config.json", 1 << 20));
}

TEST_F(HuggingFace, WhatDoesNotFitIsNamed) {
  if (world_.size() > 1) return;  // the message is rank 0's
  const std::string source = make_source("bad", StoredType::f32, false, 1);
  const Safetensors from(kReference);
  std::vector<StoredTensor> tensors = from.tensors();
  const auto find = [&](const std::string& name) {
    return std::find_if(tensors.begin(), tensors.end(),
                        [&](const StoredTensor& t) { return t.name == name; });
  };
  const std::string layer = "model.language_model.layers.0.";
  find(layer + "mlp.gate_proj.weight")->shape = {1, find(layer + "mlp.gate_proj.weight")->elements};
  find(layer + "mlp.up_proj.weight")->type = StoredType::i32;
  find("model.language_model.norm.weight")->name = "model.language_model.nrom.weight";
  SafetensorsWriter writer(source + "/model.safetensors", tensors);
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    const std::vector<char> zeros(static_cast<std::size_t>(writer.tensors()[t].bytes()));
    writer.write(t, 0, writer.tensors()[t].elements, zeros.data());
  }
  writer.commit();
  const std::string message = message_of([&] { import(source, "a"); });
  for (const std::string& part :
       {std::string("model.language_model.norm.weight: missing"),
        std::string("model.language_model.nrom.weight: unknown"), layer + "mlp.gate_proj.weight: shape [1, ",
        layer + "mlp.up_proj.weight: type I32, expected BF16, F16, F32 or F64"})
    EXPECT_TRUE(contains(message, part)) << part << " in " << message;
  EXPECT_FALSE(fs::exists(path_ + "/a"));
}

TEST_F(HuggingFace, ReshardAverageAndDiff) {
  const std::string a = import(kReference, "a");
  if (world_.rank() != 0) return;
  HostGroup alone;
  const Checkpoint first = open_checkpoint(a, alone);
  std::ostringstream text;
  for (const int shards : {1, 7}) {
    const std::string cut = reshard_checkpoint(first, path_ + fmt::format("/cut{}", shards), shards, false);
    EXPECT_EQ(read_manifest(cut).ranks, shards);
    EXPECT_TRUE(verify_checkpoint(cut, text)) << text.str();
    EXPECT_TRUE(diff_checkpoints(a, cut, text)) << text.str();
  }
  // (a + a + b) / 3 with b all ones
  std::vector<TestTensor> shapes;
  for (const auto& t : first.manifest.tensors) shapes.push_back({t.name, t.part, t.dtype, t.shape});
  Holding ones(shapes, 0, 1, 1), mean(shapes, 0, 1, 1), original(shapes, 0, 1, 1);
  const auto each = [](Holding& holding, const auto& f) {
    for (CheckpointTensor& t : holding.tensors())
      for (CheckpointSlice& s : t.slices)
        for (std::int64_t i = 0; i < s.count; ++i) f(static_cast<float*>(s.data)[i]);
  };
  each(ones, [](float& v) { v = 1; });
  const Checkpoint b = open_checkpoint(write_checkpoint(path_ + "/b", 5, ones.tensors(), "{}", alone), alone);
  const std::string averaged = average_checkpoints({first, first, b}, path_ + "/mean");
  EXPECT_EQ(averaged, path_ + "/mean/step-00000005");
  read_checkpoint(open_checkpoint(averaged, alone), mean.tensors(), alone);
  read_checkpoint(first, original.tensors(), alone);
  std::vector<float> expected;
  each(original,
       [&](float& v) { expected.push_back(static_cast<float>((2.0 * static_cast<double>(v) + 1.0) / 3.0)); });
  std::size_t at = 0, wrong = 0;
  each(mean, [&](float& v) { wrong += v == expected[at++] ? 0 : 1; });
  EXPECT_EQ(wrong, 0u);
  text.str("");
  EXPECT_FALSE(diff_checkpoints(a, averaged, text));
  EXPECT_TRUE(contains(text.str(), "model.language_model.norm.weight (weight): 32 of 32 elements differ"))
      << text.str();
  HostGroup group;
  const auto state = test_state();
  Holding other(state, 0, 1, 2);
  other.fill(1);
  const Checkpoint c =
      open_checkpoint(write_checkpoint(path_ + "/c", 1, other.tensors(), "{}", group), group);
  EXPECT_TRUE(contains(message_of([&] {
                         average_checkpoints({first, c}, path_ + "/no");
                       }),
                       "is missing, or has another shape"));
  EXPECT_FALSE(diff_checkpoints(a, c.path, text));
  EXPECT_TRUE(contains(text.str(), "only in"));
}

TEST(HalfPrecision, ThereAndBack) {
  for (std::uint32_t bits = 0; bits <= 0xffff; ++bits)
    ASSERT_EQ(float_to_half(half_to_float(static_cast<std::uint16_t>(bits))), bits);
  EXPECT_EQ(float_to_half(65519.0f), 0x7bff);
  EXPECT_EQ(float_to_half(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_half(1.00048828125f), 0x3c00);  // half way to the next: to even
  EXPECT_EQ(float_to_half(1.00146484375f), 0x3c02);
  EXPECT_EQ(float_to_half(0x1p-25f), 0x0000);
  EXPECT_EQ(float_to_half(-0x1.8p-25f), 0x8001);
}

}  // namespace
}  // namespace lapidary
