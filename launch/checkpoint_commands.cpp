// lapidary checkpoint inspect.
#include <filesystem>
#include <iostream>

#include "kernels/check.h"
#include "launch/commands.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_directory.h"

namespace lapidary {

namespace {

/// A checkpoint's folder, or the newest one of a run's folder.
std::string find(const std::string& path) {
  const std::filesystem::path folder(path);
  if (std::filesystem::exists(folder / CheckpointManifest::kFileName)) return path;
  for (const std::filesystem::path& place : {folder, folder / "checkpoints"}) {
    if (!std::filesystem::is_directory(place)) continue;
    const std::vector<std::int64_t> steps = published_steps(place.string());
    if (!steps.empty()) return (place / checkpoint_name(steps.front())).string();
  }
  fail("{}: neither a checkpoint nor a run's folder with one", path);
}

}  // namespace

int run_checkpoint_inspect(const CheckpointInspectArguments& arguments) {
  inspect_checkpoint(find(arguments.checkpoint), true, std::cout);
  return 0;
}

}  // namespace lapidary
