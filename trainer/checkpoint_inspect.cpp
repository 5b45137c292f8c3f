// Looking at a checkpoint without a run: what it holds, and whether it is whole.
#include <fmt/ostream.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <map>
#include <ostream>

#include "kernels/check.h"
#include "kernels/checksum.h"
#include "kernels/hdf5_file.h"
#include "kernels/number_text.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_directory.h"
#include "trainer/checkpoint_files.h"
#include "trainer/child_process.h"

namespace lapidary {
namespace {

using Manifest = CheckpointManifest;

std::string bytes_text(std::int64_t bytes) {
  return format_bytes(static_cast<std::size_t>(bytes));
}

/// What the run's last validation said, where it was of this step.
std::string held_out(const Manifest& manifest, const char* before) {
  return manifest.metric ? fmt::format("{}held-out loss {:.4f}", before, *manifest.metric) : "";
}

/// The member, which is no longer in the object; null where it is not there.
nlohmann::json take(nlohmann::json& object, const char* key) {
  nlohmann::json value = object.value(key, nlohmann::json());
  object.erase(key);
  return value;
}

struct PartTotal {
  std::int64_t tensors = 0, elements = 0, bytes = 0;
};

/// Tensors of one file whose dataset is not what the manifest says.
void compare_shard(const Manifest& manifest, int number, const Hdf5File& file) {
  std::size_t expected = 0;
  for (const Manifest::Tensor& tensor : manifest.tensors) {
    std::int64_t length = 0, offset = -1;
    for (const Manifest::Slice& slice : tensor.slices) {
      if (slice.file != number) continue;
      require(
          offset < 0 || slice.offset == offset + length * static_cast<std::int64_t>(size_of(tensor.dtype)),
          "{}: slices do not follow each other", tensor.name);
      if (offset < 0) offset = slice.offset;
      length += slice.count;
    }
    if (offset < 0) continue;
    ++expected;
    const Hdf5Shape shape = file.shape(checkpoint_dataset(tensor.name, tensor.part));
    require(shape.dtype == tensor.dtype && shape.dims == std::vector<std::int64_t>{length} &&
                shape.offset == offset,
            "{} ({}): {} [{}] at byte {}, expected {} [{}] at byte {}", tensor.name, tensor.part,
            name_of(shape.dtype), fmt::join(shape.dims, ", "), shape.offset, name_of(tensor.dtype), length,
            offset);
  }
  const std::size_t found = file.datasets().size();
  require(found == expected, "{} datasets, expected {}", found, expected);
}

void compare_index(const Manifest& manifest, const Hdf5File& file) {
  require(file.integer_attribute("step") == manifest.step, "step {}, expected {}",
          file.integer_attribute("step"), manifest.step);
  const auto state = file.read<std::uint8_t>(kStateDataset);
  require(std::string(state.begin(), state.end()) == manifest.state.dump(), "{} is not the manifest's",
          kStateDataset);
  for (const Manifest::Tensor& tensor : manifest.tensors) {
    const Hdf5Shape shape = file.shape(checkpoint_dataset(tensor.name, tensor.part));
    require(shape.dtype == tensor.dtype && shape.dims == tensor.shape, "{} ({}): {} [{}], expected {} [{}]",
            tensor.name, tensor.part, name_of(shape.dtype), fmt::join(shape.dims, ", "),
            name_of(tensor.dtype), fmt::join(tensor.shape, ", "));
  }
}

constexpr int kSeconds = 60;  // that HDF5 may take for one file

/// Checksum first: HDF5 opens only what is unharmed. A checksum finds damage, not forgery, and the library
/// crashes on files that are wrong in the right way: so it works in a process of its own.
void verify_file(const std::string& path, const Manifest& manifest, std::size_t number) {
  const Manifest::File& expected = manifest.files[number];
  const std::string name = fmt::format("{}/{}", path, expected.name);
  const std::string found = checksum_of_file(name);
  require(found == expected.checksum, "damaged: checksum {}, expected {}", found, expected.checksum);
  const std::string problem = run_in_child(
      [&] {
        const Hdf5File file = Hdf5File::open(name);
        if (expected.name == kIndexFileName)
          compare_index(manifest, file);
        else
          compare_shard(manifest, static_cast<int>(number), file);
      },
      kSeconds);
  require(problem.empty(), "{}", problem);
}

void list_foreign_files(const std::string& path, const Manifest& manifest, std::ostream& out) {
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    const std::string name = entry.path().filename().string();
    bool known = name == Manifest::kFileName;
    for (const Manifest::File& file : manifest.files) known = known || name == file.name;
    if (!known) fmt::print(out, "{}: not part of the checkpoint\n", name);
  }
}

}  // namespace

void list_checkpoints(const std::string& directory, std::ostream& out) {
  fmt::print(out, "{}\n", directory);
  for (const std::int64_t step : published_steps(directory)) {
    const std::string name = checkpoint_name(step);
    try {
      const Manifest manifest = read_manifest(fmt::format("{}/{}", directory, name));
      fmt::print(out, "  {}  {:>12}{}\n", name, bytes_text(manifest.bytes()), held_out(manifest, "  "));
    } catch (const Error& e) {
      fmt::print(out, "  {}  damaged: {}\n", name, e.what());
    }
  }
}

void inspect_checkpoint(const std::string& path, bool details, std::ostream& out) {
  const Manifest manifest = read_manifest(path);
  fmt::print(out, "{}\nstep     {}{}\nwritten  by {}, {}\n", path, manifest.step, held_out(manifest, ", "),
             manifest.program, counted(manifest.ranks, "rank"));
  fmt::print(out, "files    {}, {}\n\n", manifest.files.size(), bytes_text(manifest.bytes()));
  std::map<std::string, PartTotal> parts;
  for (const Manifest::Tensor& tensor : manifest.tensors) {
    PartTotal& total = parts[fmt::format("{:<12} {}", tensor.part, name_of(tensor.dtype))];
    total.tensors += 1;
    total.elements += tensor.elements();
    total.bytes += tensor.bytes();
  }
  fmt::print(out, "{:<18} {:>8} {:>16} {:>12}\n", "part", "tensors", "elements", "size");
  for (const auto& [part, total] : parts)
    fmt::print(out, "{:<18} {:>8} {:>16} {:>12}\n", part, total.tensors, total.elements,
               bytes_text(total.bytes));
  nlohmann::json state = manifest.state;
  const nlohmann::json config = take(state, "config"), model = take(state, "model");
  fmt::print(out, "\nstate\n{}\n", state.dump(2));
  if (!details) return;
  if (config.is_string()) fmt::print(out, "\nconfiguration\n{}", config.get<std::string>());
  if (!model.is_null()) fmt::print(out, "\nconfig.json of the model\n{}\n", model.dump(2));
  fmt::print(out, "\n{:<5} {:<12} {:<20} {:>7} name\n", "type", "part", "shape", "slices");
  for (const Manifest::Tensor& tensor : manifest.tensors)
    fmt::print(out, "{:<5} {:<12} {:<20} {:>7} {}\n", name_of(tensor.dtype), tensor.part,
               fmt::format("[{}]", fmt::join(tensor.shape, ", ")), tensor.slices.size(), tensor.name);
}

bool verify_checkpoint(const std::string& path, std::ostream& out) {
  Manifest manifest;
  try {
    manifest = read_manifest(path);
    list_foreign_files(path, manifest, out);
  } catch (const std::exception& e) {
    fmt::print(out, "{}\n", e.what());
    return false;
  }
  bool sound = true;
  for (std::size_t i = 0; i < manifest.files.size(); ++i) {
    const Manifest::File& file = manifest.files[i];
    try {
      verify_file(path, manifest, i);
      fmt::print(out, "{}: sound, {}\n", file.name, bytes_text(file.bytes));
    } catch (const std::exception& e) {
      fmt::print(out, "{}: {}\n", file.name, e.what());
      sound = false;
    }
  }
  fmt::print(out, "{}: step {} {}\n", path, manifest.step, sound ? "is sound" : "is damaged");
  return sound;
}

}  // namespace lapidary
