// Collectives over NCCL, one GPU per rank. MPI only carries the unique id at set-up.
#pragma once
#include <mpi.h>

#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace lapidary {

/// Whether this program was built with NCCL.
bool nccl_built();

/// The ranks of `parent` that give the same color, in their order. Collective over parent; every rank has a
/// GPU of its own (NCCL refuses to share one). bf16 sums are rounded at every hop between ranks: with two
/// ranks that is the float32 sum rounded once, with more it depends on their order, which NCCL keeps from run
/// to run. Throws Error in a build without NCCL.
std::unique_ptr<Communicator> split_nccl_communicator(MPI_Comm parent, int color, const std::string& name,
                                                      Backend& backend);

}  // namespace lapidary
