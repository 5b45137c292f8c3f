#include "parallel/mesh.h"

#include <algorithm>

#include "kernels/check.h"
#include "parallel/local_communicator.h"
#include "parallel/mpi_communicator.h"
#include "parallel/nccl_communicator.h"
#include "parallel/peer_communicator.h"

namespace lapidary {

namespace {

int largest_divisor(int n, int limit) {
  int divisor = std::clamp(limit, 1, n);
  while (n % divisor != 0) --divisor;
  return divisor;
}

// Builds the mesh from a function that makes one communicator: (name, color, rank in it, size). Ranks that
// give equal colors form a group, in the order of their world ranks.
template <class Make>
Mesh make_mesh(const MeshShape& shape, const Make& make) {
  const int place = shape.rank % shape.shard;
  const int shard_group = shape.rank / shape.shard;
  const int row_block = shape.rank % shape.vocabulary;
  const int vocabulary_group = shape.rank / shape.vocabulary;
  Mesh mesh;
  mesh.shape = shape;
  mesh.gather = make("gather", shard_group, place, shape.shard);
  mesh.reduce = make("reduce", shard_group, place, shape.shard);
  mesh.replicas = make("replicas", place, shard_group, shape.replicate());
  mesh.vocabulary = make("vocabulary", vocabulary_group, row_block, shape.vocabulary);
  mesh.table_replicas = make("table_replicas", row_block, vocabulary_group, shape.world / shape.vocabulary);
  return mesh;
}

/// Makes communicators by splitting MPI's world with `split`, and checks that each is what the mesh expects.
template <class Split>
auto split_world(const MeshShape& shape, Backend& backend, Split split) {
  return [=, &backend](const char* name, int color, int rank, int size) {
    if (shape.world == 1) return std::unique_ptr<Communicator>(std::make_unique<LocalCommunicator>(name));
    std::unique_ptr<Communicator> group = split(MPI_COMM_WORLD, color, name, backend);
    require(group->rank() == rank && group->size() == size,
            "communicator '{}' is rank {} of {}, the mesh expects rank {} of {}", name, group->rank(),
            group->size(), rank, size);
    return group;
  };
}

}  // namespace

MeshShape resolve_mesh(int world, int rank, int shard, int vocabulary, int ranks_per_node) {
  require(world >= 1 && rank >= 0 && rank < world, "rank {} of {}", rank, world);
  require(shard >= 0, "parallel.shard is {}, expected 0 (all ranks) or a divisor of the job's {} ranks",
          shard, world);
  if (shard == 0) shard = world;
  require(shard <= world && world % shard == 0,
          "parallel.shard is {}, which does not divide the job's {} ranks: use a divisor of {}, or 0 for all",
          shard, world, world);
  require(vocabulary >= 0,
          "parallel.vocabulary is {}, expected 0 (chosen by the program) or a divisor of parallel.shard ({})",
          vocabulary, shard);
  if (vocabulary == 0) vocabulary = largest_divisor(shard, ranks_per_node);
  require(
      vocabulary <= shard && shard % vocabulary == 0,
      "parallel.vocabulary is {}, which does not divide the shard group of {} ranks (parallel.shard): use "
      "a divisor of {}, or 0 to let the program choose",
      vocabulary, shard, shard);
  return {.world = world,
          .shard = shard,
          .vocabulary = vocabulary,
          .rank = rank,
          .copies = ranks_per_node % shard == 0};
}

namespace {

/// Gather and reduce move weights and gradients: by copy engines where all ranks of the shard group can.
Mesh with_copies(Mesh mesh, Backend& backend) {
  if (!mesh.shape.copies || mesh.shape.shard == 1 || backend.device() != Device::cuda) return mesh;
  const int color = mesh.shape.rank / mesh.shape.shard;
  for (auto* group : {&mesh.gather, &mesh.reduce})
    *group = add_peer_copies(std::move(*group), MPI_COMM_WORLD, color, backend);
  return mesh;
}

}  // namespace

Mesh make_mpi_mesh(const MeshShape& shape, Backend& backend) {
  return with_copies(make_mesh(shape, split_world(shape, backend, split_communicator)), backend);
}

Mesh make_nccl_mesh(const MeshShape& shape, Backend& backend) {
  return with_copies(make_mesh(shape, split_world(shape, backend, split_nccl_communicator)), backend);
}

Mesh make_plan_mesh(const MeshShape& shape, Backend& backend) {
  const bool copies = shape.copies && shape.shard > 1 && backend.device() == Device::cuda;
  return make_mesh(shape, [copies](const std::string& name, int, int rank, int size) {
    const bool units = name == "gather" || name == "reduce";
    return std::unique_ptr<Communicator>(
        std::make_unique<PlanCommunicator>(name, rank, size, units && copies));
  });
}

std::size_t Mesh::staging_bytes(Device device) const {
  std::size_t bytes = 0;
  for (const auto* group : {&gather, &reduce, &replicas, &vocabulary, &table_replicas}) {
    bytes += mpi_staging_bytes((*group)->size(), device);
  }
  return bytes;
}

}  // namespace lapidary
