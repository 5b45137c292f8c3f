// The protocol by which a checkpoint comes to be. Until the rename nothing that readers look at exists; the
// rename makes all of it visible at once.
#include <sys/statvfs.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <system_error>
#include <thread>
#include <utility>

#include "kernels/build_info.h"
#include "kernels/check.h"
#include "kernels/commit.h"
#include "kernels/file.h"
#include "kernels/json.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_directory.h"
#include "trainer/checkpoint_files.h"

namespace lapidary {
namespace {

using Manifest = CheckpointManifest;

/// Rank 0: refuses what is already there or cannot fit, and makes the hidden folder.
std::string prepare_folder(const std::string& directory, std::int64_t step, std::int64_t bytes) {
  create_directories(directory);
  const std::string published = fmt::format("{}/{}", directory, checkpoint_name(step));
  require(!std::filesystem::exists(std::filesystem::symlink_status(published)),
          "{} exists already; a published checkpoint is never overwritten", published);
  struct statvfs space {};
  if (::statvfs(directory.c_str(), &space) != 0)
    fail_with_errno("cannot examine the disk of", directory, errno);
  const double needed = size_of_files(bytes);
  const double available = static_cast<double>(space.f_bavail) * static_cast<double>(space.f_frsize);
  if (available < needed)
    throw Error(fmt::format("{}: the checkpoint takes {:.3f} GiB, {:.3f} GiB are free", directory,
                            needed / (1 << 30), available / (1 << 30)),
                ExitCode::peer_lost);
  return create_hidden_folder(directory, "tmp", step);
}

/// Network file systems may show a folder that another host made a little later.
void await_folder(const std::string& path) {
  for (int tries = 0; tries < 100 && !std::filesystem::exists(path); ++tries)
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  require(std::filesystem::exists(path),
          "{}: not visible here: is the checkpoint folder shared by all hosts?", path);
}

void check_memory(const ShardPlan& plan) {
  plan.for_each_piece([&](const ShardPiece& piece) {
    require(piece.slice->data != nullptr, "shard {}: slice [{}, {} + {}) has no memory", plan.rank,
            piece.slice->begin, piece.slice->begin, piece.slice->count);
  });
}

nlohmann::json report_of(const Manifest::File& file, const ShardPlan& plan) {
  return {{"file", to_json(file)}, {"tensors", to_json(plan.tensors)}};
}

/// Joins the report of one shard; Error where it describes a tensor otherwise than the ones before.
void join_report(const nlohmann::json& report, const std::string& where,
                 std::map<std::string, std::size_t>& index, Manifest& manifest) {
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
            "{}: {} ({}) has another type or shape than on ranks before it", where, tensor.name, tensor.part);
    known.slices.insert(known.slices.end(), tensor.slices.begin(), tensor.slices.end());
  }
}

/// Rank 0: joins the ranks' reports; Error unless they describe every tensor alike and every element once.
void join_reports(const std::vector<std::string>& reports, Manifest& manifest) {
  std::map<std::string, std::size_t> index;
  for (std::size_t rank = 0; rank < reports.size(); ++rank) {
    const std::string where = fmt::format("report of rank {}", rank);
    for (const nlohmann::json& report : parse_json(reports[rank], where))
      join_report(report, where, index, manifest);
  }
  manifest.ranks = static_cast<int>(manifest.files.size());
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

/// One save, whoever asked for it.
struct Save {
  const std::string& directory;
  std::int64_t step;
  const std::string& state_json;
  HostGroup& group;
  const CheckpointWriteOptions& options;
  std::string hidden;  ///< the folder, once there is one

  std::string doing(const char* what) const { return fmt::format("checkpoint {}: {}", step, what); }
  std::string write(std::span<const ShardPlan> plans, ShardValues& values);
  /// This rank's shards; returns its report.
  std::string write_shards(std::span<const ShardPlan> plans, ShardValues& values, const CheckpointHook& hook);
  /// Makes sure that nothing is left of a save that failed, and says so.
  std::string write_or_clean_up(const std::function<std::string()>& write);
};

std::string Save::write_shards(std::span<const ShardPlan> plans, ShardValues& values,
                               const CheckpointHook& hook) {
  try {
    await_folder(hidden);
    nlohmann::json report = nlohmann::json::array();
    for (const ShardPlan& plan : plans)
      report.push_back(report_of(write_shard(hidden, plan, values, hook), plan));
    return report.dump();
  } catch (...) {
    values.abandon();  // now: whoever brings values need not wait until all ranks have agreed
    throw;
  }
}

std::string Save::write(std::span<const ShardPlan> plans, ShardValues& values) {
  const CheckpointHook hook = options.hook ? options.hook : [](std::string_view) {};
  const bool first = group.rank() == 0;
  std::int64_t bytes = 0;
  for (const ShardPlan& plan : plans) bytes += plan.bytes;
  bytes = group.all_reduce(bytes, HostGroup::Reduce::sum, doing("size"));
  Manifest manifest;
  group.all_or_error(doing("folder"), [&] {
    if (!first) return;
    require(step >= 0, "step {} is negative", step);
    manifest.step = step;
    manifest.program = fmt::format("lapidary {} ({})", kVersion, kCommit);
    manifest.metric = options.metric;
    manifest.state = parse_json(state_json, "checkpoint state");
    require(manifest.state.is_object(), "checkpoint state: expected a JSON object");
    hidden = prepare_folder(directory, step, bytes);
    hook("folder created");
  });
  hidden = group.broadcast(hidden, 0, doing("folder"));
  std::string report;
  group.all_or_error(doing("shards"), [&] { report = write_shards(plans, values, hook); });
  const auto reports = group.gather(report, 0, doing("reports"));
  std::string published = fmt::format("{}/{}", directory, checkpoint_name(step));
  group.all_or_error(doing("publication"), [&] {
    if (!first) return;
    join_reports(reports, manifest);
    finish_and_publish(hidden, published, manifest, hook);
  });
  return published;
}

std::string Save::write_or_clean_up(const std::function<std::string()>& write) {
  std::string message;
  auto code = ExitCode::bad_input;
  try {
    return write();
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

}  // namespace

std::string write_checkpoint(const std::string& directory, std::int64_t step,
                             const std::vector<CheckpointTensor>& tensors, const std::string& state_json,
                             HostGroup& group, const CheckpointWriteOptions& options) {
  Save save{directory, step, state_json, group, options, {}};
  return save.write_or_clean_up([&] {
    ShardPlan plan;
    group.all_or_error(save.doing("tensors"), [&] {
      plan = plan_shard(group.rank(), tensors);
      check_memory(plan);
    });
    ShardValues values;
    return save.write({&plan, 1}, values);
  });
}

std::string write_checkpoint(const std::string& directory, std::int64_t step,
                             std::span<const ShardPlan> plans, ShardValues& values,
                             const std::string& state_json, HostGroup& group,
                             const CheckpointWriteOptions& options) {
  Save save{directory, step, state_json, group, options, {}};
  try {
    return save.write_or_clean_up([&] { return save.write(plans, values); });
  } catch (...) {
    values.abandon();
    throw;
  }
}

}  // namespace lapidary
