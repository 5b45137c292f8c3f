// Finding a checkpoint that is whole, and reading any part of it on any number of ranks. HDF5 takes no part:
// the manifest says where the bytes are, and only files that match their checksum are read.
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <utility>

#include "kernels/check.h"
#include "kernels/checksum.h"
#include "kernels/file.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_directory.h"

namespace lapidary {
namespace {

using Manifest = CheckpointManifest;

void compare_checksum(const std::string& path, const Manifest::File& file) {
  const std::string name = fmt::format("{}/{}", path, file.name);
  const std::string found = checksum_of_file(name);
  require(found == file.checksum, "{}: damaged: checksum {}, expected {}", name, found, file.checksum);
}

/// Part of a slice that was asked for, and where it is on disk.
struct Transfer {
  std::int64_t offset = 0, count = 0;
  DType stored = DType::f32, wanted = DType::f32;
  char* to = nullptr;
};

void convert(const std::vector<char>& from, const Transfer& transfer) {
  const auto count = static_cast<std::size_t>(transfer.count);
  if (transfer.stored == DType::bf16) {
    for (std::size_t i = 0; i < count; ++i) {
      bf16 value;
      std::memcpy(&value, from.data() + i * sizeof(bf16), sizeof(bf16));
      const auto wide = static_cast<float>(value);
      std::memcpy(transfer.to + i * sizeof(float), &wide, sizeof(float));
    }
  } else {
    for (std::size_t i = 0; i < count; ++i) {
      float value;
      std::memcpy(&value, from.data() + i * sizeof(float), sizeof(float));
      const bf16 narrow(value);
      std::memcpy(transfer.to + i * sizeof(bf16), &narrow, sizeof(bf16));
    }
  }
}

void run_transfer(const File& file, const Transfer& transfer) {
  const auto stored_size = static_cast<std::int64_t>(size_of(transfer.stored));
  if (transfer.stored == transfer.wanted)
    return file.read_at(transfer.to, static_cast<std::size_t>(transfer.count * stored_size), transfer.offset);
  constexpr std::int64_t kPiece = 1 << 20;  // elements
  std::vector<char> buffer(static_cast<std::size_t>(std::min(kPiece, transfer.count) * stored_size));
  Transfer piece = transfer;
  for (std::int64_t done = 0; done < transfer.count; done += kPiece) {
    piece.count = std::min(kPiece, transfer.count - done);
    piece.to = transfer.to + done * static_cast<std::int64_t>(size_of(transfer.wanted));
    file.read_at(buffer.data(), static_cast<std::size_t>(piece.count * stored_size),
                 transfer.offset + done * stored_size);
    convert(buffer, piece);
  }
}

/// What a slice of `wanted` needs from the stored slices.
void add_transfers(const Manifest::Tensor& stored, const CheckpointTensor& wanted,
                   const CheckpointSlice& slice, std::map<int, std::vector<Transfer>>& transfers) {
  const auto stored_size = static_cast<std::int64_t>(size_of(stored.dtype));
  const auto wanted_size = static_cast<std::int64_t>(size_of(wanted.dtype));
  auto from =
      std::upper_bound(stored.slices.begin(), stored.slices.end(), slice.begin,
                       [](std::int64_t at, const Manifest::Slice& s) { return at < s.begin + s.count; });
  for (std::int64_t at = slice.begin, end = slice.begin + slice.count; at < end; ++from) {
    const std::int64_t count = std::min(end, from->begin + from->count) - at;
    transfers[from->file].push_back({from->offset + (at - from->begin) * stored_size, count, stored.dtype,
                                     wanted.dtype,
                                     static_cast<char*>(slice.host) + (at - slice.begin) * wanted_size});
    at += count;
  }
}

/// Why `stored` cannot fill `wanted`; empty: it can.
std::string mismatch(const Manifest::Tensor& stored, const CheckpointTensor& wanted, bool may_convert) {
  if (stored.shape != wanted.shape)
    return fmt::format("shape [{}], expected [{}]", fmt::join(stored.shape, ", "),
                       fmt::join(wanted.shape, ", "));
  const auto is_convertible = [](DType t) { return t == DType::f32 || t == DType::bf16; };
  const bool same = stored.dtype == wanted.dtype;
  if (!same && !(may_convert && is_convertible(stored.dtype) && is_convertible(wanted.dtype)))
    return fmt::format("{}, expected {}", name_of(stored.dtype), name_of(wanted.dtype));
  for (const CheckpointSlice& slice : wanted.slices)
    if (slice.begin < 0 || slice.count < 0 || slice.begin > stored.elements() - slice.count ||
        (slice.host == nullptr && slice.count > 0))
      return fmt::format("asked for elements [{}, {} + {}) of {}", slice.begin, slice.begin, slice.count,
                         stored.elements());
  return "";
}

void fail_with_list(const std::string& path, std::vector<std::string> problems) {
  constexpr std::size_t kShown = 20;
  if (problems.empty()) return;
  const std::size_t count = problems.size();
  if (count > kShown) {
    problems.resize(kShown);
    problems.push_back(fmt::format("and {} more", count - kShown));
  }
  fail("{}: does not fit this run:\n  {}", path, fmt::join(problems, "\n  "));
}

/// Tensors that nobody asked for although others of their part were.
void refuse_superfluous(const Checkpoint& checkpoint, std::vector<std::int64_t> asked, HostGroup& group) {
  group.all_reduce(asked, HostGroup::Reduce::max, "checkpoint: what is asked for");
  const auto& tensors = checkpoint.manifest.tensors;
  std::map<std::string, bool> part_asked;
  for (std::size_t i = 0; i < tensors.size(); ++i) part_asked[tensors[i].part] |= asked[i] != 0;
  std::vector<std::string> problems;
  for (std::size_t i = 0; i < tensors.size(); ++i)
    if (asked[i] == 0 && part_asked[tensors[i].part])
      problems.push_back(
          fmt::format("{} ({}): the run has no such tensor", tensors[i].name, tensors[i].part));
  fail_with_list(checkpoint.path, std::move(problems));
}

}  // namespace

Checkpoint open_checkpoint(const std::string& path, HostGroup& group) {
  Checkpoint checkpoint{path, {}, {}};
  std::string text;
  group.all_or_error("checkpoint: manifest", [&] {
    if (group.rank() == 0) text = to_text(read_manifest(path));
  });
  text = group.broadcast(std::move(text), 0, "checkpoint: manifest");
  checkpoint.manifest = parse_manifest(text, path);
  group.all_or_error("checkpoint: checksums", [&] {
    const auto& files = checkpoint.manifest.files;
    for (auto i = static_cast<std::size_t>(group.rank()); i < files.size();
         i += static_cast<std::size_t>(group.size()))
      compare_checksum(path, files[i]);
  });
  return checkpoint;
}

std::optional<Checkpoint> find_newest_checkpoint(const std::string& directory, bool fall_back,
                                                 HostGroup& group) {
  std::string listed;
  group.all_or_error("checkpoint: list", [&] {
    if (group.rank() == 0) listed = nlohmann::json(published_steps(directory)).dump();
  });
  const auto steps = nlohmann::json::parse(group.broadcast(std::move(listed), 0, "checkpoint: list"))
                         .get<std::vector<std::int64_t>>();
  std::vector<std::string> passed_over;
  for (const std::int64_t step : steps) {
    try {
      Checkpoint checkpoint = open_checkpoint(fmt::format("{}/{}", directory, checkpoint_name(step)), group);
      checkpoint.passed_over = std::move(passed_over);
      return checkpoint;
    } catch (const Error& e) {
      if (!group.usable() || !fall_back) throw;
      passed_over.emplace_back(e.what());
    }
  }
  require(passed_over.empty(), "{}: every checkpoint is damaged:\n  {}", directory,
          fmt::join(passed_over, "\n  "));
  return std::nullopt;
}

void read_checkpoint(const Checkpoint& checkpoint, const std::vector<CheckpointTensor>& tensors,
                     HostGroup& group, const CheckpointReadOptions& options) {
  const Manifest& manifest = checkpoint.manifest;
  std::map<std::pair<std::string, std::string>, std::size_t> index;
  for (std::size_t i = 0; i < manifest.tensors.size(); ++i)
    index[{manifest.tensors[i].name, manifest.tensors[i].part}] = i;
  std::vector<std::int64_t> asked(manifest.tensors.size(), 0);
  std::map<int, std::vector<Transfer>> transfers;  // by file, so that each is opened once
  group.all_or_error("checkpoint: tensors", [&] {
    std::vector<std::string> problems;
    for (const CheckpointTensor& wanted : tensors) {
      const auto found = index.find({wanted.name, wanted.part});
      if (found == index.end()) {
        problems.push_back(fmt::format("{} ({}): missing", wanted.name, wanted.part));
        continue;
      }
      const Manifest::Tensor& stored = manifest.tensors[found->second];
      asked[found->second] = 1;
      const std::string problem = mismatch(stored, wanted, options.convert);
      if (!problem.empty()) {
        problems.push_back(fmt::format("{} ({}): {}", wanted.name, wanted.part, problem));
        continue;
      }
      for (const CheckpointSlice& slice : wanted.slices) add_transfers(stored, wanted, slice, transfers);
    }
    fail_with_list(checkpoint.path, std::move(problems));
  });
  refuse_superfluous(checkpoint, std::move(asked), group);
  group.all_or_error("checkpoint: reading", [&] {
    for (auto& [number, list] : transfers) {
      const auto& name = manifest.files[static_cast<std::size_t>(number)].name;
      const File file = File::open_to_read(fmt::format("{}/{}", checkpoint.path, name));
      std::sort(list.begin(), list.end(),
                [](const Transfer& a, const Transfer& b) { return a.offset < b.offset; });
      for (const Transfer& transfer : list) run_transfer(file, transfer);
    }
  });
}

}  // namespace lapidary
