#include "parallel/mesh.h"

#include <gtest/gtest.h>

#include "kernels/error.h"

namespace lapidary {
namespace {

std::string message_of(int world, int shard, int vocabulary) {
  try {
    resolve_mesh(world, 0, shard, vocabulary, 8);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(ResolveMesh, FillsInWhatIsLeftOpen) {
  const MeshShape all = resolve_mesh(12, 5, 0, 0, 8);
  EXPECT_EQ(all.shard, 12);
  EXPECT_EQ(all.vocabulary, 6);  // the largest divisor of 12 that fits a node of 8
  EXPECT_EQ(all.replicate(), 1);
  EXPECT_EQ(all.rank, 5);
  const MeshShape hybrid = resolve_mesh(64, 0, 8, 0, 8);
  EXPECT_EQ(hybrid.vocabulary, 8);
  EXPECT_EQ(hybrid.replicate(), 8);
  EXPECT_EQ(resolve_mesh(7, 0, 0, 0, 4).vocabulary, 1);
  EXPECT_EQ(resolve_mesh(1, 0, 0, 0, 1).vocabulary, 1);
  EXPECT_EQ(resolve_mesh(4, 0, 2, 1, 4).vocabulary, 1);
}

TEST(ResolveMesh, NamesTheKeyThatDoesNotDivide) {
  EXPECT_EQ(message_of(6, 4, 0),
            "parallel.shard is 4, which does not divide the job's 6 ranks: use a divisor of 6, or 0 for all");
  EXPECT_EQ(
      message_of(6, 12, 0),
      "parallel.shard is 12, which does not divide the job's 6 ranks: use a divisor of 6, or 0 for all");
  EXPECT_EQ(message_of(6, -1, 0),
            "parallel.shard is -1, expected 0 (all ranks) or a divisor of the job's 6 ranks");
  EXPECT_EQ(
      message_of(8, 4, 3),
      "parallel.vocabulary is 3, which does not divide the shard group of 4 ranks (parallel.shard): use a "
      "divisor of 4, or 0 to let the program choose");
  EXPECT_EQ(
      message_of(8, 4, -2),
      "parallel.vocabulary is -2, expected 0 (chosen by the program) or a divisor of parallel.shard (4)");
}

// Rank r has the place (r / shard, r % shard); groups and places of a plan of 16 = 4 replicas x 4 shards with
// vocabulary groups of 2.
TEST(PlanMesh, KnowsItsGroups) {
  for (int rank = 0; rank < 16; ++rank) {
    const Mesh mesh = make_plan_mesh(resolve_mesh(16, rank, 4, 2, 8), plan_backend(Device::cuda));
    EXPECT_EQ(mesh.gather->rank(), rank % 4);
    EXPECT_EQ(mesh.reduce->size(), 4);
    EXPECT_EQ(mesh.replicas->rank(), rank / 4);
    EXPECT_EQ(mesh.replicas->size(), 4);
    EXPECT_EQ(mesh.vocabulary->rank(), rank % 2);
    EXPECT_EQ(mesh.vocabulary->size(), 2);
    EXPECT_EQ(mesh.table_replicas->rank(), rank / 2);
    EXPECT_EQ(mesh.table_replicas->size(), 8);
    EXPECT_EQ(mesh.staging_bytes(Device::cpu), std::size_t{5 * 4} << 20);
    EXPECT_EQ(mesh.staging_bytes(Device::cuda), std::size_t{5 * 8} << 20);
  }
  const Mesh alone = make_plan_mesh(resolve_mesh(1, 0, 0, 0, 1), plan_backend(Device::cuda));
  EXPECT_EQ(alone.staging_bytes(Device::cuda), 0u);
}

}  // namespace
}  // namespace lapidary
