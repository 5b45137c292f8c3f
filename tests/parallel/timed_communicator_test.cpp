// Waits of a mesh's communicators: one for every collective that is waited for, and as long as a late rank
// makes the others wait.
#include "parallel/timed_communicator.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "tests/parallel/collectives.h"

namespace lapidary {
namespace {

TEST(TimedCommunicator, RecordsEveryWaitAndHowLongItTook) {
  const World world;
  WaitTimer timer;
  Mesh mesh = world.mesh(0, 0);
  time_waits(mesh, timer);
  EXPECT_EQ(mesh.gather->name(), "gather");
  EXPECT_EQ(mesh.gather->size(), world.size);
  EXPECT_EQ(mesh.reduce->rank(), world.rank);
  EXPECT_FALSE(mesh.reduce->copies());
  const auto stream = cpu_backend().make_stream("test");
  std::vector<float> mine(3, static_cast<float>(world.rank)),
      all(mine.size() * static_cast<std::size_t>(world.size));
  const Tensor part(mine.data(), DType::f32, {3}), whole(all.data(), DType::f32, {3 * world.size});

  constexpr double kLate = 0.2;
  if (world.rank == 0) std::this_thread::sleep_for(std::chrono::duration<double>(kLate));
  Ticket gathered = mesh.gather->all_gather(*stream, part, whole);
  mesh.gather->wait(*stream, gathered);
  Ticket summed = mesh.reduce->reduce_scatter(*stream, whole, part);
  mesh.reduce->wait(*stream, summed);
  EXPECT_EQ(all.back(), static_cast<float>(world.size - 1));
  EXPECT_EQ(mine.front(), static_cast<float>(world.size * world.rank));

  const std::vector<WaitTimer::Wait> waits = timer.collect(*stream);
  if (world.size == 1) {
    EXPECT_TRUE(waits.empty());
  } else {
    ASSERT_EQ(waits.size(), 2u);
    EXPECT_EQ(waits[0].group, "gather");
    EXPECT_EQ(waits[1].group, "reduce");
    if (world.rank > 0) {
      EXPECT_GE(waits[0].seconds, 0.5 * kLate);
      EXPECT_LT(waits[1].seconds, waits[0].seconds);
    }
  }
  EXPECT_TRUE(timer.collect(*stream).empty());
}

}  // namespace
}  // namespace lapidary
