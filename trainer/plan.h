// What a run needs before it runs: memory by purpose and rank count, from the same code that later runs it.
#pragma once
#include <iosfwd>
#include <vector>

#include "trainer/run_setup.h"

namespace lapidary {

/// Bytes of one rank by purpose; their sum is the arenas' peak.
struct MemoryPlan {
  MeshShape mesh;
  std::size_t weights = 0, gradients = 0, optimizer = 0;  ///< shards
  std::size_t gathered = 0;                               ///< whole weights and gradients of units in use
  std::size_t activations = 0, workspace = 0;
  std::size_t loss_chunk = 0;  ///< of the workspace: what the loss head was given (loss.scratch bounds it)
  std::size_t total() const { return weights + gradients + optimizer + gathered + activations + workspace; }
  std::size_t offloaded = 0;  ///< host memory of an optimizer that is offloaded, beside the arenas
  std::size_t staging = 0;    ///< host memory of communication, beside the arenas
  MemorySizes sizes;          ///< the arenas' capacities for an Instance
};

/// Runs the model on a device that only counts.
MemoryPlan make_plan(const RunSetup& setup, Device device);

/// Makes and prints the table for several numbers of ranks; nothing is allocated. memory_limit (bytes a rank,
/// 0: none): also says which do not fit.
void print_plan(const RunConfig& config, const std::vector<int>& ranks, int ranks_per_node, Device device,
                std::size_t memory_limit, std::ostream& out);

/// Throws Error with the sum spelled out where a plan does not fit into `available` bytes of `device` memory.
void check_fits(const MemoryPlan& plan, std::size_t available, Device device);

/// The same for the host memory that an offloaded optimizer needs on each rank.
void check_fits_host(const MemoryPlan& plan, std::size_t available);

/// "1.50 GiB".
std::string format_bytes(std::size_t bytes);

}  // namespace lapidary
