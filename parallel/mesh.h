// The ranks' arrangement: world = replicate x shard, shard = (vocabulary replicas) x vocabulary. Rank r has
// the place (r / shard, r % shard); the vocabulary groups are consecutive ranks inside a shard group,
// normally one node's.
#pragma once
#include <memory>

#include "parallel/communicator.h"

namespace lapidary {

struct MeshShape {
  int world = 1;
  int shard = 1;       ///< divides world
  int vocabulary = 1;  ///< divides shard
  int rank = 0;
  bool copies =
      false;  ///< on GPUs: shard groups lie inside nodes, so that ranks may read each other's memory
  int replicate() const { return world / shard; }
};

/// Fills in 0s (shard: all ranks; vocabulary: the largest divisor of shard that is at most ranks_per_node)
/// and checks the divisions; throws Error naming the configuration keys parallel.shard and
/// parallel.vocabulary.
MeshShape resolve_mesh(int world, int rank, int shard, int vocabulary, int ranks_per_node);

/// The communicators of one rank. Gather and reduce are two communicators over the same ranks, so that an
/// all-gather and a reduce-scatter never wait for each other.
struct Mesh {
  MeshShape shape;
  std::unique_ptr<Communicator> gather;    ///< shard group: weights
  std::unique_ptr<Communicator> reduce;    ///< shard group: gradients
  std::unique_ptr<Communicator> replicas;  ///< ranks of the other shard groups at this rank's place in theirs
  std::unique_ptr<Communicator> vocabulary;      ///< ranks that together hold the table once
  std::unique_ptr<Communicator> table_replicas;  ///< ranks of the world that hold the same table rows

  /// Host memory that the communicators hold from set-up on where they are MPI's (4 MiB each on the CPU, 8
  /// MiB for staged GPU tensors; none for a group of one): a line of the memory table, beside the arenas.
  std::size_t staging_bytes(Device device) const;
};

/// With MPI: CPU tensors, or GPU tensors staged through the host where the backend is a GPU. Collective over
/// MPI's world.
Mesh make_mpi_mesh(const MeshShape& shape, Backend& backend);
/// With NCCL: GPU tensors, one GPU per rank. Collective over MPI's world. Throws Error in a build without
/// NCCL.
Mesh make_nccl_mesh(const MeshShape& shape, Backend& backend);
/// Places and sizes of the same groups, for a run on dry streams. Nothing is communicated or allocated; the
/// real mesh's staging is staging_bytes() of this one.
Mesh make_plan_mesh(const MeshShape& shape, Backend& backend);

}  // namespace lapidary
