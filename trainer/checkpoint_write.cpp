// The protocol by which a checkpoint comes to be. Until the rename nothing that readers look at exists; the
// rename makes all of it visible at once.
#include <sys/resource.h>
#include <sys/statvfs.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <system_error>
#include <thread>
#include <utility>

#include "kernels/build_info.h"
#include "kernels/check.h"
#include "kernels/file.h"
#include "kernels/json.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_directory.h"
#include "trainer/checkpoint_files.h"

namespace lapidary {
namespace {

using Manifest = CheckpointManifest;

std::int64_t bytes_of(const std::vector<CheckpointTensor>& tensors) {
  std::int64_t bytes = 0;
  for (const CheckpointTensor& tensor : tensors)
    for (const CheckpointSlice& slice : tensor.slices)
      bytes += slice.count * static_cast<std::int64_t>(size_of(tensor.dtype));
  return bytes;
}

/// Values, and generously what describes them.
double with_overhead(std::int64_t bytes) {
  return static_cast<double>(bytes) * 1.01 + (1 << 20);
}

/// Rank 0: refuses what is already there or cannot fit, and makes the hidden folder.
std::string prepare_folder(const std::string& directory, std::int64_t step, std::int64_t bytes) {
  std::error_code error;
  const bool is_new = std::filesystem::create_directories(directory, error);
  if (error) fail_with_errno("cannot create folder", directory, error.value());
  if (is_new) sync_directory(std::filesystem::path(directory).parent_path());
  const std::string published = fmt::format("{}/{}", directory, checkpoint_name(step));
  require(!std::filesystem::exists(std::filesystem::symlink_status(published)),
          "{} exists already; a published checkpoint is never overwritten", published);
  struct statvfs space {};
  if (::statvfs(directory.c_str(), &space) != 0)
    fail_with_errno("cannot examine the disk of", directory, errno);
  const double needed = with_overhead(bytes);
  const double available = static_cast<double>(space.f_bavail) * static_cast<double>(space.f_frsize);
  if (available < needed)
    throw Error(fmt::format("{}: the checkpoint takes {:.3f} GiB, {:.3f} GiB are free", directory,
                            needed / (1 << 30), available / (1 << 30)),
                ExitCode::peer_lost);
  return create_hidden_folder(directory, "tmp", step);
}

/// Every rank: HDF5 does not survive a write that fails, so a limit on file sizes has to be noticed before.
void check_file_size_limit(std::int64_t bytes) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) != 0)
    fail_with_errno("cannot read", "the limit on file sizes", errno);
  const double needed = with_overhead(bytes);
  require(limit.rlim_cur == RLIM_INFINITY || needed <= static_cast<double>(limit.rlim_cur),
          "the limit on file sizes (ulimit -f) is {:.3f} GiB, this rank's part takes {:.3f} GiB",
          static_cast<double>(limit.rlim_cur) / (1 << 30), needed / (1 << 30));
}

/// Network file systems may show a folder that another host made a little later.
void await_folder(const std::string& path) {
  for (int tries = 0; tries < 100 && !std::filesystem::exists(path); ++tries)
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  require(std::filesystem::exists(path),
          "{}: not visible here: is the checkpoint folder shared by all hosts?", path);
}

std::string report_of(const WrittenShard& shard) {
  return nlohmann::json{{"file", to_json(shard.file)}, {"tensors", to_json(shard.tensors)}}.dump();
}

/// Rank 0: joins the ranks' reports; Error unless they describe every tensor alike and every element once.
void join_reports(const std::vector<std::string>& reports, Manifest& manifest) {
  std::map<std::string, std::size_t> index;
  for (std::size_t rank = 0; rank < reports.size(); ++rank) {
    const std::string where = fmt::format("report of rank {}", rank);
    const nlohmann::json report = parse_json(reports[rank], where);
    manifest.files.push_back(file_from_json(report.at("file"), where));
    for (Manifest::Tensor& tensor : tensors_from_json(report.at("tensors"), where)) {
      const auto [entry, is_new] =
          index.emplace(checkpoint_dataset(tensor.name, tensor.part), manifest.tensors.size());
      if (is_new) {
        manifest.tensors.push_back(std::move(tensor));
        continue;
      }
      Manifest::Tensor& known = manifest.tensors[entry->second];
      require(known.name == tensor.name && known.part == tensor.part && known.dtype == tensor.dtype &&
                  known.shape == tensor.shape,
              "{}: {} ({}) has another type or shape than on ranks before it", where, tensor.name,
              tensor.part);
      known.slices.insert(known.slices.end(), tensor.slices.begin(), tensor.slices.end());
    }
  }
  require(!index.contains(kStateDataset), "a tensor cannot be called {}", kStateDataset);
  for (Manifest::Tensor& tensor : manifest.tensors) check_coverage(tensor, "checkpoint");
}

/// Rank 0: everything after the shards.
void finish_and_publish(const std::string& hidden, const std::string& published, Manifest& manifest,
                        const CheckpointHook& hook) {
  manifest.files.push_back(write_index(hidden, manifest, hook));
  write_new_text_file(fmt::format("{}/{}", hidden, Manifest::kFileName), to_text(manifest));
  hook("manifest synced");
  sync_directory(hidden);
  hook("folder synced");
  publish_new(hidden, published);
  hook("published");
}

std::string write_together(const std::string& directory, std::int64_t step,
                           const std::vector<CheckpointTensor>& tensors, const std::string& state_json,
                           HostGroup& group, const CheckpointWriteOptions& options, std::string& hidden) {
  const CheckpointHook hook = options.hook ? options.hook : [](std::string_view) {};
  const bool first = group.rank() == 0;
  const auto doing = [&](const char* what) { return fmt::format("checkpoint {}: {}", step, what); };
  const std::int64_t bytes = group.all_reduce(bytes_of(tensors), HostGroup::Reduce::sum, doing("size"));
  group.all_or_error(doing("limits"), [&] { check_file_size_limit(bytes_of(tensors)); });
  Manifest manifest;
  group.all_or_error(doing("folder"), [&] {
    if (!first) return;
    require(step >= 0, "step {} is negative", step);
    manifest.step = step;
    manifest.ranks = group.size();
    manifest.program = fmt::format("lapidary {} ({})", kVersion, kCommit);
    manifest.metric = options.metric;
    manifest.state = parse_json(state_json, "checkpoint state");
    require(manifest.state.is_object(), "checkpoint state: expected a JSON object");
    hidden = prepare_folder(directory, step, bytes);
    hook("folder created");
  });
  hidden = group.broadcast(hidden, 0, doing("folder"));
  WrittenShard shard;
  group.all_or_error(doing("shards"), [&] {
    await_folder(hidden);
    shard = write_shard(hidden, group.rank(), tensors, hook);
  });
  const auto reports = group.gather(report_of(shard), 0, doing("reports"));
  std::string published = fmt::format("{}/{}", directory, checkpoint_name(step));
  group.all_or_error(doing("publication"), [&] {
    if (!first) return;
    join_reports(reports, manifest);
    finish_and_publish(hidden, published, manifest, hook);
  });
  return published;
}

}  // namespace

std::string write_checkpoint(const std::string& directory, std::int64_t step,
                             const std::vector<CheckpointTensor>& tensors, const std::string& state_json,
                             HostGroup& group, const CheckpointWriteOptions& options) {
  std::string hidden;
  std::string message;
  auto code = ExitCode::bad_input;
  try {
    return write_together(directory, step, tensors, state_json, group, options, hidden);
  } catch (const Error& e) {
    message = e.what();
    code = e.code();
  } catch (const std::exception& e) {
    message = e.what();
  }
  // All ranks have stopped writing, or rank 0 alone is left: either way nobody needs the folder any more.
  std::error_code ignored;
  if (group.rank() == 0 && !hidden.empty()) std::filesystem::remove_all(hidden, ignored);
  throw Error(fmt::format("checkpoint of step {} was not written: {}", step, message), code);
}

}  // namespace lapidary
