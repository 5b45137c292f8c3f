// What a run needs before it runs: memory by purpose and rank count, from the same code that later runs it.
#pragma once
#include <iosfwd>
#include <vector>

#include "trainer/rates.h"
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
  std::size_t offloaded = 0;   ///< host memory of an optimizer that is offloaded, beside the arenas
  std::size_t staging = 0;     ///< host memory of communication, beside the arenas
  std::size_t checkpoint = 0;  ///< bytes on disk of one checkpoint's tensors, all ranks together
  MemorySizes sizes;           ///< the arenas' capacities for an Instance
};

/// Runs the model on a device that only counts.
MemoryPlan make_plan(const RunSetup& setup, Device device);

struct PlanOptions {
  std::vector<int> ranks{1, 2, 8, 64};
  int ranks_per_node = 8;
  std::size_t memory = 0;      ///< bytes of a rank's device; 0: not known
  std::string card;            ///< whose rates a forecast uses: part of a device's name
  std::vector<RateSet> rates;  ///< measured here; where they have none of the card, the built-in ones count
};

/// Makes and prints the table for several numbers of ranks; nothing is allocated. With the memory of a
/// device: also what fits. With a card: also a step's time and rate.
void print_plan(const RunConfig& config, const PlanOptions& options, Device device, std::ostream& out);

/// Most packed rows of a micro-batch, or most tokens of its rows (a multiple of kRowStep), that `memory`
/// bytes hold on each rank; 0 where not even the least fits. And with the micro-batch as it is, the most
/// layers that may keep more (memory.richer_layers).
struct Room {
  static constexpr std::int64_t kRowStep = 128;
  std::int64_t rows = 0;        ///< of the configured length
  std::int64_t row_length = 0;  ///< with the configured number of rows
  std::int64_t richer_layers = 0;
};
Room find_room(const RunConfig& config, int ranks, int ranks_per_node, Device device, std::size_t memory);

/// Throws Error with the sum spelled out where a plan does not fit into `available` bytes of `device` memory.
void check_fits(const MemoryPlan& plan, std::size_t available, Device device);

/// The same for the host memory that an offloaded optimizer needs on each rank.
void check_fits_host(const MemoryPlan& plan, std::size_t available);

}  // namespace lapidary
