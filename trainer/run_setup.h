// From a run's configuration to what the rooms below are built from.
#pragma once
#include <string>

#include "model/config.h"
#include "model/parameter_table.h"
#include "parallel/mesh.h"
#include "trainer/instance.h"
#include "trainer/run_config.h"

namespace lapidary {

/// auto: the GPU where the program can use one. Throws Error with the reason where cuda is asked for and
/// there is none.
Device choose_device(DeviceChoice choice);

/// Where this process runs: what MPI says of it.
struct NodePlace {
  int local_rank = 0;  ///< number among the node's ranks: chooses the GPU
  int ranks_per_node = 1;
};

/// This process's device: the node's GPUs are dealt to its ranks in turn.
Backend& open_backend(Device device, const NodePlace& place);
/// The communicators for it: NCCL where every rank has a GPU of its own, else MPI, through the host for GPU
/// tensors. Collective over MPI's world.
Mesh make_mesh(const MeshShape& shape, Backend& backend, const NodePlace& place);

/// Everything about a run that follows from its configuration and the number of ranks, before any memory is
/// taken.
struct RunSetup {
  ModelConfig model;
  ParameterTable table;
  InstanceOptions options;
  MeshShape mesh;
};

/// A run's first line: "1662848 parameters, 2 ranks (1 x 2, vocabulary over 2), bf16 on CPU, ...".
std::string describe(const RunSetup& setup, const Backend& backend);

/// training: false for evaluation, which has no optimizer. Throws Error naming the configuration key.
RunSetup make_run_setup(const RunConfig& config, int world, int rank, int ranks_per_node, bool training);

}  // namespace lapidary
