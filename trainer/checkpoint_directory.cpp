#include "trainer/checkpoint_directory.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <iterator>
#include <set>
#include <system_error>

#include "kernels/check.h"
#include "kernels/file.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kLargestManifest = std::int64_t{1} << 30;

bool all_digits(std::string_view text) {
  return !text.empty() && text.size() <= 18 &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

/// ".tmp-60-1" or ".del-60-1"
bool is_leftover(std::string_view name) {
  if (!name.starts_with(".tmp-") && !name.starts_with(".del-")) return false;
  name.remove_prefix(5);
  const std::size_t dash = name.find('-');
  return dash != std::string_view::npos && all_digits(name.substr(0, dash)) &&
         all_digits(name.substr(dash + 1));
}

/// Names in a directory that are folders themselves (links to folders are not).
std::vector<std::string> folders_in(const std::string& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (fs::is_directory(it->symlink_status(ignored))) names.push_back(it->path().filename().string());
  }
  if (error && error != std::errc::no_such_file_or_directory)
    fail_with_errno("cannot list", directory, error.value());
  std::sort(names.begin(), names.end());
  return names;
}

/// First a rename, so that a checkpoint that is half deleted can never be taken for a whole one.
void delete_checkpoint(const std::string& directory, std::int64_t step, const CheckpointHook& hook) {
  const std::string path = fmt::format("{}/{}", directory, checkpoint_name(step));
  const std::string hidden = create_hidden_folder(directory, "del", step);
  if (std::rename(path.c_str(), hidden.c_str()) != 0)
    fail_with_errno("cannot rename for deletion", path, errno);
  if (hook) hook("delete renamed");
  sync_directory(directory);
  if (hook) hook("delete synced");
  for (const auto& entry : fs::directory_iterator(hidden)) {
    fs::remove_all(entry.path());
    if (hook) hook("delete removed a file");
  }
  fs::remove_all(hidden);
}

}  // namespace

std::string checkpoint_name(std::int64_t step) {
  return fmt::format("step-{:08}", step);
}

std::optional<std::int64_t> checkpoint_step(const std::string& name) {
  if (!name.starts_with("step-") || !all_digits(std::string_view(name).substr(5))) return std::nullopt;
  const std::int64_t step = std::stoll(name.substr(5));
  if (checkpoint_name(step) != name) return std::nullopt;  // other padding: not ours
  return step;
}

std::vector<std::int64_t> published_steps(const std::string& directory) {
  std::vector<std::int64_t> steps;
  for (const std::string& name : folders_in(directory))
    if (const auto step = checkpoint_step(name)) steps.push_back(*step);
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

bool is_checkpoint(const std::string& path) {
  return fs::exists(fs::path(path) / CheckpointManifest::kFileName);
}

std::string folder_of_checkpoints(const std::string& path) {
  const fs::path inner = fs::path(path) / "checkpoints";
  return fs::is_directory(inner) ? inner.string() : path;
}

bool holds_checkpoint(const std::string& path) {
  return is_checkpoint(path) || !published_steps(folder_of_checkpoints(path)).empty();
}

std::string find_checkpoint(const std::string& path) {
  if (is_checkpoint(path)) return path;
  require(fs::exists(path), "{}: no such folder, expected a checkpoint or a run's folder", path);
  const std::string folder = folder_of_checkpoints(path);
  const std::vector<std::int64_t> steps = published_steps(folder);
  if (!steps.empty()) return fmt::format("{}/{}", folder, checkpoint_name(steps.front()));
  const bool hugging_face = fs::exists(fs::path(path) / "config.json");
  fail("{}: neither a checkpoint nor a run's folder with one{}", path,
       hugging_face ? ", but a Hugging Face folder: `lapidary checkpoint import` makes a checkpoint of it"
                    : "");
}

CheckpointManifest read_manifest(const std::string& path) {
  const std::string file_name = fmt::format("{}/{}", path, CheckpointManifest::kFileName);
  CheckpointManifest manifest = parse_manifest(read_text_file(file_name, kLargestManifest), file_name);
  for (const CheckpointManifest::File& file : manifest.files) {
    const std::string name = fmt::format("{}/{}", path, file.name);
    const std::int64_t size = File::open_to_read(name).size();
    require(size == file.bytes, "{}: {} bytes, expected {}: truncated or damaged", name, size, file.bytes);
  }
  const auto step = checkpoint_step(fs::path(path).filename().string());
  require(!step || *step == manifest.step, "{}: belongs to step {}, not to the folder it is in", file_name,
          manifest.step);
  return manifest;
}

std::vector<SoundCheckpoint> sound_checkpoints(const std::string& directory) {
  std::vector<SoundCheckpoint> sound;
  for (const std::int64_t step : published_steps(directory)) {
    try {
      sound.push_back({step, read_manifest(fmt::format("{}/{}", directory, checkpoint_name(step))).metric});
    } catch (const Error&) {
      continue;  // whoever looks for a checkpoint to load reports it
    }
  }
  return sound;
}

std::vector<std::int64_t> superfluous_steps(const std::vector<SoundCheckpoint>& sound,
                                            const CheckpointRetention& retention) {
  require(retention.keep_last >= 1, "checkpoint retention: keep_last is {}, expected at least 1",
          retention.keep_last);
  std::set<std::int64_t, std::greater<>> steps;
  std::set<std::pair<double, std::int64_t>> by_metric;  // of equals the newest first
  for (const SoundCheckpoint& checkpoint : sound) {
    steps.insert(checkpoint.step);
    if (checkpoint.metric) by_metric.emplace(*checkpoint.metric, -checkpoint.step);
  }
  std::set<std::int64_t> keep;
  int rank = 0;
  for (const std::int64_t step : steps)
    if (rank++ < retention.keep_last || (retention.keep_every > 0 && step % retention.keep_every == 0))
      keep.insert(step);
  rank = 0;
  for (const auto& [metric, negative_step] : by_metric)
    if (rank++ < retention.keep_best) keep.insert(-negative_step);
  std::vector<std::int64_t> superfluous;
  std::copy_if(steps.begin(), steps.end(), std::back_inserter(superfluous),
               [&](std::int64_t step) { return !keep.contains(step); });
  return superfluous;
}

std::vector<std::string> delete_old_checkpoints(const std::string& directory,
                                                const CheckpointRetention& retention,
                                                const CheckpointHook& hook) {
  std::vector<std::string> problems;
  for (const std::int64_t step : superfluous_steps(sound_checkpoints(directory), retention)) {
    try {
      delete_checkpoint(directory, step, hook);
    } catch (const std::exception& e) {
      problems.push_back(
          fmt::format("{}/{} could not be deleted: {}", directory, checkpoint_name(step), e.what()));
    }
  }
  return problems;
}

std::string set_aside_damaged(const std::string& directory, std::int64_t step) {
  const std::string path = fmt::format("{}/{}", directory, checkpoint_name(step));
  for (int number = 1;; ++number) {
    std::string aside = fmt::format("{}.damaged-{}", path, number);
    if (fs::exists(fs::symlink_status(aside))) continue;
    publish_new(path, aside);
    return aside;
  }
}

std::vector<std::string> sweep_leftovers(const std::string& directory) {
  std::vector<std::string> removed;
  for (const std::string& name : folders_in(directory)) {
    if (!is_leftover(name)) continue;
    std::error_code error;
    fs::remove_all(fmt::format("{}/{}", directory, name), error);
    if (!error) removed.push_back(name);
  }
  return removed;
}

std::string create_hidden_folder(const std::string& directory, const std::string& prefix, std::int64_t step) {
  for (int attempt = 1;; ++attempt) {
    std::string path = fmt::format("{}/.{}-{}-{}", directory, prefix, step, attempt);
    if (::mkdir(path.c_str(), 0777) == 0) return path;
    if (errno != EEXIST) fail_with_errno("cannot create folder", path, errno);
  }
}

}  // namespace lapidary
