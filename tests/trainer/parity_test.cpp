// The whole model against transformers: losses, hidden states, every gradient and AdamW steps of the
// reference cases, on any number of ranks, with every way of sharding and of keeping activations.
#include "trainer/parity.h"

#include <gtest/gtest.h>
#include <mpi.h>

#include <algorithm>
#include <sstream>

#include "kernels/error.h"

namespace lapidary {
namespace {

const std::string kCases = std::string(LAPIDARY_SOURCE_DIR) + "/tests/reference/";

struct Ranks {
  HostGroup world{MPI_COMM_WORLD, std::chrono::seconds(60)};
  Mesh mesh(int shard = 0, int vocabulary = 0) {
    return make_mpi_mesh(resolve_mesh(world.size(), world.rank(), shard, vocabulary, world.size()),
                         cpu_backend());
  }
};

std::string run_case(ParityOptions options, const std::string& name, int shard = 0, int vocabulary = 0) {
  Ranks ranks;
  Mesh mesh = ranks.mesh(shard, vocabulary);
  options.reference = kCases + name;
  std::ostringstream out;
  return run_parity(options, ranks.world, mesh, cpu_backend(), out) ? "" : out.str() + "(failed)";
}

class ParityCases : public testing::TestWithParam<const char*> {};

TEST_P(ParityCases, EqualsTransformersInFloat32WithTheTrajectory) {
  ParityOptions options;
  options.trajectory = true;
  EXPECT_EQ(run_case(options, GetParam()), "");
}

// In float64 what is left is the reference's own float32 rounding.
TEST_P(ParityCases, EqualsTransformersInFloat64) {
  ParityOptions options;
  options.type = DType::f64;
  EXPECT_EQ(run_case(options, GetParam()), "");
}

INSTANTIATE_TEST_SUITE_P(Reference, ParityCases,
                         testing::Values("text", "image", "image-sliding", "audio", "mixed", "packed",
                                         "edges", "prompt", "no-cap"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(Parity, HoldsForEveryActivationPolicyAndZeroStage) {
  for (const auto policy : {ActivationPolicy::keep, ActivationPolicy::recompute_cheap,
                            ActivationPolicy::recompute_gate_up, ActivationPolicy::recompute_block}) {
    for (const int zero : {2, 3}) {
      ParityOptions options;
      options.activations = policy;
      options.zero = zero;
      EXPECT_EQ(run_case(options, "mixed"), "") << static_cast<int>(policy) << ' ' << zero;
    }
  }
}

TEST(Parity, HoldsForEveryMeshOfTheseRanks) {
  Ranks ranks;
  const int n = ranks.world.size();
  for (int shard = 1; shard <= n; ++shard) {
    for (int vocabulary = 1; vocabulary <= shard; ++vocabulary) {
      if (n % shard != 0 || shard % vocabulary != 0) continue;
      ParityOptions options;
      options.trajectory = true;
      EXPECT_EQ(run_case(options, "mixed", shard, vocabulary), "") << shard << ' ' << vocabulary;
    }
  }
}

// A comparison that cannot fail would be worth nothing: the wrong mask rule must be seen.
TEST(Parity, FailsForADifferentModel) {
  Ranks ranks;
  Mesh mesh = ranks.mesh();
  ParityOptions options;
  options.reference = kCases + "text";
  options.tolerance = 1e-12;
  std::ostringstream out;
  EXPECT_FALSE(run_parity(options, ranks.world, mesh, cpu_backend(), out));
}

TEST(Parity, NamesTheFileThatIsMissing) {
  Ranks ranks;
  Mesh mesh = ranks.mesh();
  ParityOptions options;
  options.reference = "/no/such/case";
  std::ostringstream out;
  try {
    run_parity(options, ranks.world, mesh, cpu_backend(), out);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("/no/such/case/config.json"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace lapidary
