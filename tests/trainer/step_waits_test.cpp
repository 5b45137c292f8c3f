// What of the ranks' waits is exposed communication, and a step's table.
#include "trainer/step_waits.h"

#include <gtest/gtest.h>
#include <mpi.h>

#include <chrono>

#include "kernels/error.h"
#include "trainer/step_profile.h"

namespace lapidary {
namespace {

TEST(StepWaits, TheShortestWaitIsCommunicationAndTheRestIsForOthers) {
  HostGroup world(MPI_COMM_WORLD, std::chrono::seconds(30));
  const double rank = world.rank(), last = world.size() - 1;
  StepWaits waits;
  // The first rank comes first to the gather, the last one to both reductions.
  const std::vector<WaitTimer::Wait> step{
      {"gather", 1 + last - rank}, {"reduce", 2 + rank}, {"reduce", 4 + rank}};
  waits.add(step, world);
  waits.add(step, world);
  EXPECT_EQ(waits.exposed().size(), 2u);
  EXPECT_EQ(waits.exposed().at("gather"), 2 * 1.0);
  EXPECT_EQ(waits.exposed().at("reduce"), 2 * (2.0 + 4.0));
  EXPECT_EQ(waits.all_exposed(), 14.0);
  EXPECT_EQ(waits.for_others(), 2 * (last - rank + 2 * rank));
}

TEST(StepWaits, NoWaitsAreNothing) {
  HostGroup alone;
  StepWaits waits;
  waits.add({}, alone);
  EXPECT_EQ(waits.all_exposed(), 0.0);
  EXPECT_EQ(waits.for_others(), 0.0);
}

TEST(StepProfile, SharesOutTheWholeStep) {
  OpTimer::Line product{
      .work = {.kind = "MatMul", .label = "MatMul 1 x 2 x 3", .flops = 3e12}, .count = 4, .seconds = 6};
  const StepProfile profile({product}, {{"gather", 1}, {"reduce", 0.5}, {"gather", 0.25}}, 8);
  EXPECT_EQ(profile.waited(), 1.75);
  EXPECT_EQ(profile.between(), 0.25);
  EXPECT_EQ(profile.operations().size(), 1u);
  const std::string table = profile.table();
  for (const char* line :
       {"MatMul 1 x 2 x 3                                          4   6000.000  75.00%       0.5",
        "waits for communication: gather                           2   1250.000  15.62%",
        "waits for communication: reduce                           1    500.000   6.25%",
        "between operations: copies, launches                      0    250.000   3.12%",
        "whole step                                                1   8000.000 100.00%"})
    EXPECT_NE(table.find(line), std::string::npos) << line << "\n" << table;
  EXPECT_EQ(profile.summary(),
            "8000.00 ms: operations 6000.00, waits for communication 1750.00, between them 250.00");
}

}  // namespace
}  // namespace lapidary
