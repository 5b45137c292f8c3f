// All-gathers and exchanges between the GPUs of one node by their copy engines: no multiprocessor is taken
// from the computation beside them.
#pragma once
#include <mpi.h>

#include <memory>

#include "parallel/communicator.h"

namespace lapidary {

/// `base`, made over the ranks of `parent` that gave the same color, with all-gathers and exchanges of shared
/// tensors by copies, each rank reading the others' memory; everything else stays base's. Returns base itself
/// on every rank where one of them cannot map the others' memory, or in a build without CUDA. Collective over
/// parent.
std::unique_ptr<Communicator> add_peer_copies(std::unique_ptr<Communicator> base, MPI_Comm parent, int color,
                                              Backend& backend);

}  // namespace lapidary
