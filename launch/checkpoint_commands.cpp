// lapidary checkpoint inspect, verify, import, export, reshard, average, diff.
#include <mpi.h>

#include <chrono>
#include <iostream>

#include "kernels/check.h"
#include "launch/commands.h"
#include "parallel/mpi_session.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_directory.h"
#include "trainer/checkpoint_tools.h"

namespace lapidary {

namespace {

constexpr auto kHostDeadline = std::chrono::minutes(30);

/// The ranks that mpirun started, or this process alone.
HostGroup group_of(const MpiSession* session) {
  if (session == nullptr) return {};
  return {MPI_COMM_WORLD, kHostDeadline};
}

int code_of(bool well) {
  return static_cast<int>(well ? ExitCode::ok : ExitCode::bad_input);
}

}  // namespace

int run_checkpoint_inspect(const CheckpointInspectArguments& arguments) {
  const std::string path = find_checkpoint(arguments.checkpoint);
  if (!is_checkpoint(arguments.checkpoint)) {
    list_checkpoints(folder_of_checkpoints(arguments.checkpoint), std::cout);
    std::cout << '\n';
  }
  inspect_checkpoint(path, arguments.all, std::cout);
  return 0;
}

int run_checkpoint_verify(const CheckpointVerifyArguments& arguments) {
  bool sound = true;
  for (const std::string& path : arguments.checkpoints)
    sound = verify_checkpoint(find_checkpoint(path), std::cout) && sound;
  return code_of(sound);
}

int run_checkpoint_import(const CheckpointImportArguments& arguments, const MpiSession* session) {
  HostGroup group = group_of(session);
  const std::string path = import_checkpoint(arguments.folder, arguments.output, group);
  if (group.rank() == 0) std::cout << path << std::endl;
  return 0;
}

int run_checkpoint_export(const CheckpointExportArguments& arguments, const MpiSession* session) {
  HostGroup group = group_of(session);
  std::string path;
  group.all_or_error("export: checkpoint", [&] {
    if (group.rank() == 0) path = find_checkpoint(arguments.checkpoint);
  });
  path = group.broadcast(std::move(path), 0, "export: checkpoint");
  ExportOptions options;
  options.source = arguments.source;
  options.max_file_bytes = arguments.max_file;
  options.type = arguments.dtype;
  export_checkpoint(path, arguments.output, options, group, std::cout);
  return 0;
}

int run_checkpoint_reshard(const CheckpointReshardArguments& arguments) {
  HostGroup alone;
  const Checkpoint checkpoint = open_checkpoint(find_checkpoint(arguments.checkpoint), alone);
  std::cout << reshard_checkpoint(checkpoint, arguments.output, arguments.shards, arguments.weights_only)
            << std::endl;
  return 0;
}

int run_checkpoint_average(const CheckpointAverageArguments& arguments) {
  HostGroup alone;
  std::vector<Checkpoint> checkpoints;
  for (const std::string& path : arguments.checkpoints)
    checkpoints.push_back(open_checkpoint(find_checkpoint(path), alone));
  std::cout << average_checkpoints(checkpoints, arguments.output) << std::endl;
  return 0;
}

int run_checkpoint_diff(const CheckpointDiffArguments& arguments) {
  require(arguments.paths.size() == 2, "checkpoint diff compares two checkpoints or folders, found {}",
          arguments.paths.size());
  return code_of(diff_checkpoints(arguments.paths[0], arguments.paths[1], std::cout));
}

}  // namespace lapidary
